"""`captionbeam serve` as a process: the ready line, signals, refusals."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

import captionbeam
from serving.client import connect
from tests.serving_fixtures import save_tiny_model, tiny_caption

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", version=2)
    return save_tiny_model(path, version=10)


@contextmanager
def serve(*flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "captionbeam.py", "serve", "--port=0", "--rest_port=0", *flags]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("number", "flags", "name"),
    [(signal.SIGTERM, [], "tiny"), (signal.SIGINT, ["--model_name=other"], "other")],
)
def test_serves_until_a_signal_and_exits_0(
    model_dir: Path, number: signal.Signals, flags: list[str], name: str
) -> None:
    with serve(f"--model={model_dir}", *flags) as process:
        assert process.stdout is not None
        ready = re.fullmatch(
            rf"serving {name} version 10 on (127\.0\.0\.1:\d+)\n", process.stdout.readline()
        )
        assert ready is not None
        with connect(model=None, server=ready[1], model_name=name) as client:
            assert client.model == (name, 10)
            assert client.caption([b"a"])[0].caption == tiny_caption(b"a")
        rest = re.fullmatch(r"REST on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert rest is not None
        status = requests.get(f"{rest[1]}/v1/models/{name}", timeout=60).json()
        assert status["model_version_status"][0]["state"] == "AVAILABLE"
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        assert process.stdout.read() == ""


def test_refusals_are_one_line_and_exit_2(
    tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {
        "no version in it": [f"--model={tmp_path}"],
        "no such directory": [f"--model={tmp_path / 'nowhere'}"],
        "--port 99999: expected 0": [f"--model={model_dir}", "--port=99999"],
        "cannot listen on": [f"--model={model_dir}", "--port=0", "--host=192.0.2.1"],
    }
    for message, arguments in refused.items():
        assert captionbeam.main(["serve", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("captionbeam serve: ")
        assert message in line
