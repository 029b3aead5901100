"""Processes of the demo: logs, failures, and a server that never outlives it."""

import io
import os
import re
import sys
from pathlib import Path

import pytest

from demo.stages import Stages
from model.errors import CheckFailed

READY = re.compile(r"^ready on (\S+)$", re.MULTILINE)
# Answers until SIGTERM, then ends with the exit code it was given.
SERVER = """
import os, signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
print(f"process {os.getpid()}")
print("ready on 127.0.0.1:1")
stop.wait(60)
print("stopped")
sys.exit(int(sys.argv[1]))
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def alive(log: Path) -> bool:
    """Whether the process that wrote its id to a log still runs."""
    match = re.search(r"process (\d+)", log.read_text())
    assert match
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stage_is_logged_and_timed(tmp_path: Path) -> None:
    stream = io.StringIO()
    stages = Stages(tmp_path / "logs", stream)
    stages.run("draw", python("import sys; print('drew'); print('warned', file=sys.stderr)"))
    stages.run("train", python("pass"))
    assert (tmp_path / "logs" / "draw.log").read_text() == "drew\nwarned\n"
    assert list(stages.seconds) == ["draw", "train"]
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["draw", "train"]


def test_a_failed_stage_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    stages = Stages(tmp_path, io.StringIO())
    code = "for i in range(100): print(f'line {i}')\nraise SystemExit(3)"
    with pytest.raises(CheckFailed) as failed:
        stages.run("train", python(code))
    first, *rest = str(failed.value).splitlines()
    assert first == f"stage train ended with exit code 3; {tmp_path / 'train.log'} ends with:"
    assert rest == [f"line {i}" for i in range(85, 100)]
    assert failed.value.exit_code == 1
    assert "train" not in stages.seconds


def test_a_server_runs_while_the_block_does(tmp_path: Path) -> None:
    stages = Stages(tmp_path, io.StringIO())
    with stages.background("serve", python(SERVER, "0"), READY) as ready:
        assert ready[1] == "127.0.0.1:1"
        assert alive(tmp_path / "serve.log")
    assert not alive(tmp_path / "serve.log")
    # SIGTERM, not SIGKILL: it had the time to finish what was under way.
    assert (tmp_path / "serve.log").read_text().endswith("stopped\n")


@pytest.mark.parametrize("error", [CheckFailed("bulk"), KeyboardInterrupt()])
def test_a_server_is_stopped_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    stages = Stages(tmp_path, io.StringIO())
    with (
        pytest.raises(type(error)),
        stages.background("serve", python(SERVER, "0"), READY),
    ):
        raise error
    assert not alive(tmp_path / "serve.log")


def test_a_server_that_ends_before_it_is_ready_is_named(tmp_path: Path) -> None:
    stages = Stages(tmp_path, io.StringIO())
    message = "stage serve ended with exit code 2 before it was ready"
    with (
        pytest.raises(CheckFailed, match=message),
        stages.background("serve", python("print('no model'); raise SystemExit(2)"), READY),
    ):
        pytest.fail("the block ran without a server")


def test_a_server_that_stops_badly_is_named(tmp_path: Path) -> None:
    stages = Stages(tmp_path, io.StringIO())
    message = "stage serve ended with exit code 7 when it was told to stop"
    with (
        pytest.raises(CheckFailed, match=message),
        stages.background("serve", python(SERVER, "7"), READY),
    ):
        pass


def test_the_live_line_shows_what_the_stage_says(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    # Runs until the live line has shown its word: no clock decides this test.
    code = (
        "import pathlib, sys, time\n"
        "print('step 7')\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    )
    flag = tmp_path / "seen"

    class Watched(Terminal):
        def write(self, text: str) -> int:
            if "step 7" in text:
                flag.touch()
            return stream.write(text)

    Stages(tmp_path, Watched()).run("train", python(code, str(flag)))
    assert re.search(r"train +\d+\.\d s  step 7", stream.getvalue())
    assert re.fullmatch(r"train +\d+\.\d s\n", stream.getvalue().rpartition("\x1b[2K")[2])
