# `make demo` and `make test` are all that a first try needs: each makes .venv from
# requirements.lock (names, versions and hashes) and runs. Needs Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= demo-output
STAMP := $(VENV)/.installed
# Other people's clients and servers, each in an environment of its own.
PEERS := ovmsclient min_tfs_client pythie
PEER_STAMPS := $(PEERS:%=.peers/%/.installed)

.PHONY: demo test test-slow peers peer-environments soak mutations check bench lock clean

demo: $(STAMP)
	$(BIN)/captionbeam demo --output $(OUTPUT)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not peers" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Independent clients against our server, our client against an independent server.
peers: $(STAMP) $(PEER_STAMPS)
	CAPTIONBEAM_PEERS_REQUIRED=1 $(BIN)/python -m pytest -m peers tests/test_peers.py

peer-environments: $(PEER_STAMPS)

# Ten minutes of three times the requests that the local server can answer. Not part of CI.
soak: $(STAMP)
	$(BIN)/python -m benchmarks.soak

# Each known trap brought back: does its test fail? Not part of CI.
mutations: $(STAMP)
	$(BIN)/python -m tests.mutations

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Resolves setup.py anew; run it to take newer versions, then commit the file.
lock:
	uv pip compile setup.py build-requirements.in --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header -o requirements.lock
	for peer in $(PEERS); do uv pip compile tests/peers/$$peer.in --python-version 3.11 \
	  --only-binary :all: --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  -o tests/peers/$$peer.txt || exit 1; done

clean:
	rm -rf $(VENV) .peers $(OUTPUT) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(STAMP): requirements.lock setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

.peers/%/.installed: tests/peers/%.txt
	$(PYTHON) -m venv --clear .peers/$*
	.peers/$*/bin/python -m pip install --quiet --require-hashes --only-binary :all: --requirement $<
	touch $@
