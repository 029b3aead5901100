"""The demo as a whole: what it refuses, what it leaves, and that it says when a stage fails."""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import captionbeam
from demo import journey
from demo.run import run
from model.errors import CheckFailed, InvalidInput

ROOT = Path(__file__).parents[1]
SUMMARY: dict[str, Any] = {
    "stages": {"draw": {"seconds": 1.5, "images_per_s": 20.0}, "serve": {"seconds": 2.0}},
    "scores": {"exact_match": 0.975, "cider": 9.5},
    "ledger": {"directory": {"inputs": 3, "captioned": 2, "failed": {"empty": 1}, "skipped": {}}},
    "differs_from_evaluate": {"directory": [], "urls": []},
    "paths": {"captions": {"directory": "D"}, "attention": "A", "model": "M", "logs": "L"},
}


def arguments(output: Path, **changes: int) -> argparse.Namespace:
    return argparse.Namespace(**{"output": output, "scenes": 8, "steps": 2, "seed": 0} | changes)


def stub_journey(monkeypatch: pytest.MonkeyPatch, summary: dict[str, Any]) -> None:
    monkeypatch.setattr(journey.Journey, "run", lambda self: summary)  # noqa: ARG005


@pytest.mark.parametrize(("flag", "value"), [("scenes", 0), ("steps", 0), ("seed", -1)])
def test_a_number_out_of_range_is_refused(tmp_path: Path, flag: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=f"--{flag} {value}, expected at least"):
        run(arguments(tmp_path / "out", **{flag: value}))
    assert not (tmp_path / "out").exists()


def test_a_directory_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="holds files that no demo wrote"):
        run(arguments(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidInput, match="name a directory that can be written"):
        run(arguments(tmp_path / "out"))


def test_an_earlier_demo_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_journey(monkeypatch, SUMMARY)
    assert run(arguments(tmp_path / "out")) == 0
    (tmp_path / "out" / "records").mkdir()
    assert run(arguments(tmp_path / "out")) == 0
    assert not (tmp_path / "out" / "records").exists()


def test_the_summary_is_written_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_journey(monkeypatch, SUMMARY)
    assert run(arguments(tmp_path)) == 0
    assert json.loads((tmp_path / "summary.json").read_text()) == SUMMARY
    shown = capsys.readouterr().out
    assert re.search(r"^draw +1\.5 +20\.0$", shown, re.MULTILINE)
    assert re.search(r"^exact_match +0\.9750$", shown, re.MULTILINE)
    assert "directory: 3 inputs = 2 captioned + failed 1 (empty 1) + skipped 0" in shown
    assert shown.endswith("the same strings as evaluate's\n")


def test_other_captions_than_evaluates_fail_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    differing = {"directory": [], "urls": ["a.png: 'x', expected 'y'"]}
    stub_journey(monkeypatch, SUMMARY | {"differs_from_evaluate": differing})
    with pytest.raises(CheckFailed, match=r"bulk_urls differs from evaluate: a\.png: 'x'"):
        run(arguments(tmp_path))
    assert (tmp_path / "summary.json").exists()
    assert "the same strings" not in capsys.readouterr().out


def test_sigterm_ends_the_demo_as_ctrl_c_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: journey.Journey) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 5)
        return SUMMARY

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(journey.Journey, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(arguments(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failed_stage_is_named_and_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Draws as ever, then every stage of captionbeam fails.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = demo.toy_coco ]; then exec {sys.executable} "$@"; fi\n'
        'echo "no room for $3" >&2\nexit 2\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(ROOT)
    output = tmp_path / "out"
    assert captionbeam.main(["demo", "--output", str(output), "--scenes", "4"]) == 1
    log = output / "logs" / "preprocess.log"
    assert capsys.readouterr().err == (
        f"captionbeam demo: stage preprocess ended with exit code 2; {log} ends with:\n"
        "no room for preprocess\n"
    )
    assert not (output / "summary.json").exists()


@pytest.mark.slow
def test_every_stage_runs_and_leaves_its_part(tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = ["--output", str(output), "--scenes", "40", "--steps", "10"]
    finished = subprocess.run(
        [sys.executable, "-m", "captionbeam", "demo", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((output / "summary.json").read_text())
    stages = ["draw", "preprocess", "train", "evaluate", "export", "serve"]
    assert list(summary["stages"]) == [*stages, "bulk_directory", "bulk_urls", "explain"]
    assert all(measured["seconds"] > 0 for measured in summary["stages"].values())
    assert {"exact_match", "exact_match_seen", "exact_match_novel", "cider"} <= set(
        summary["scores"]
    )
    report = json.loads((output / "report.json").read_text())
    assert report["summary"]["pointing"]["images"] == report["images"] == 35
    directory, urls = summary["ledger"]["directory"], summary["ledger"]["urls"]
    assert (directory["inputs"], directory["captioned"]) == (38, 35)
    assert directory["failed"] == {"empty": 1, "not_an_image": 1, "truncated": 1}
    assert (urls["inputs"], urls["captioned"], urls["failed"]) == (31, 30, {"http_4xx": 1})
    assert summary["differs_from_evaluate"] == {"directory": [], "urls": []}
    assert len(list((output / "attention").glob("*.png"))) == 3
    assert (output / "models" / "captioner" / "1" / "saved_model.pb").is_file()
    for name in [*stages, "bulk_urls"][1:]:
        assert (output / "logs" / f"{name}.log").is_file()
    served = re.search(r"on 127\.0\.0\.1:(\d+)", (output / "logs" / "serve.log").read_text())
    assert served
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(served[1])), timeout=5)
