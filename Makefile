# `make demo` and `make test` are all that a first try needs: each makes .venv from
# requirements.lock (names, versions and hashes) and runs. Needs Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= demo-output
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow mutations check bench lock clean

demo: $(STAMP)
	$(BIN)/captionbeam demo --output $(OUTPUT)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile tests/test_model_*.py
	$(BIN)/python -m pytest -m slow --ignore-glob='*/test_model_*'

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

clean:
	rm -rf $(VENV) $(OUTPUT) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(STAMP): requirements.lock setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)
