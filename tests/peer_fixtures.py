"""Other people's clients and servers, each in a Python environment of its own (`make peers`).

They are run as processes, by the scripts in tests/peers: they want other versions of NumPy and
protobuf than we do, and bring TensorFlow's protocol buffers under the same names.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import contract

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "peers"
# `make peers` sets it: there, a peer that is missing is a failure.
REQUIRED = "CAPTIONBEAM_PEERS_REQUIRED"
# A server's start, TensorFlow's import on two busy cores included.
START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 120.0


def program(peer: str, name: str = "python") -> str:
    """A program of a peer's environment; skips or fails the test if there is none."""
    environment = ROOT / ".peers" / peer
    if not (environment / ".installed").exists():
        missing = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
        missing(f"no environment for {peer}: `make peers` makes it and runs these tests")
    return str(environment / "bin" / name)


def ask(peer: str, question: dict[str, Any]) -> dict[str, Any]:
    """The answer of tests/peers/call_PEER.py to a question; fails with what it wrote."""
    ran = subprocess.run(
        # -I: our own modules are not on its path.
        [program(peer), "-I", str(SCRIPTS / f"call_{peer}.py")],
        input=json.dumps(question),
        env=os.environ | {"no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=ANSWER_TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


@contextlib.contextmanager
def captionbeam_serve(model_dir: Path) -> Iterator[Iterator[str]]:
    """`captionbeam serve` on free ports; its lines as it prints them."""
    command = [sys.executable, "captionbeam.py", "serve", f"--model={model_dir}"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        [*command, "--port=0", "--rest_port=0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield iter(process.stdout)
        finally:
            process.kill()


def read_address(lines: Iterator[str], pattern: str) -> str:
    """HOST:PORT in the next line that a server prints."""
    line = next(lines, "(it ended)\n")
    ready = re.fullmatch(pattern + r"(127\.0\.0\.1:\d+)\n", line)
    assert ready is not None, line
    return ready[1]


@contextlib.contextmanager
def pythie_serving(place: Path, name: str, *flags: str, rows: bool = True) -> Iterator[str]:
    """pythie-serving with the model of tests/peers/make_pythie_model.py; its HOST:PORT.

    Args:
      place: an empty folder for the model and the server's log.
      name: the model's name.
      flags: of its command line.
      rows: takes inputs of shape [N], by tests/peers/serve_pythie_rows.py.
    """
    python = program("pythie")
    command = [python, "-I", str(SCRIPTS / "make_pythie_model.py")]
    subprocess.run([*command, str(place), name, contract.IMAGE_BYTES], check=True)
    stock = [program("pythie", "pythie-serving")]
    server = [python, "-I", str(SCRIPTS / "serve_pythie_rows.py")] if rows else stock
    port = _free_port()
    with (
        (place / "log").open("w") as log,
        subprocess.Popen(
            [*server, str(place / "models.config"), f"--port={port}", *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            _wait_for(port, process, place / "log")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def pythie_caption(image: bytes) -> bytes:
    """What that model says of these bytes."""
    return b"size %d crc %d" % (len(image), zlib.crc32(image))


def _free_port() -> int:
    # pythie-serving does not tell which port it got for 0.
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.fail(f"pythie-serving does not listen: {log.read_text()}")
