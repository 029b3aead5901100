"""The command line: quick answers, exit codes, one line on stderr."""

import argparse
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import captionbeam
from captionbeam import STAGES, Stage, main
from model.errors import CheckFailed, InvalidInput

ROOT = Path(__file__).parents[1]
HEAVY = ("tensorflow", "keras", "apache_beam", "numpy", "grpc", "matplotlib", "PIL")

# Runs the command line on each JSON list of arguments in turn; after each, says its exit code
# and what heavy modules the process has loaded by then.
PROBE = """
import contextlib, io, json, sys
import captionbeam
answers = []
for argv in json.loads(sys.argv[1]):
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = captionbeam.main(argv)
    except SystemExit as ended:
        code = ended.code
    answers.append([code, [name for name in json.loads(sys.argv[2]) if name in sys.modules]])
print(json.dumps(answers))
"""


def probe(commands: list[list[str]]) -> list[tuple[int, list[str]]]:
    finished = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands), json.dumps(HEAVY)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [(code, loaded) for code, loaded in json.loads(finished.stdout)]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "captionbeam", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def a_stage(
    monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException, *, beam: bool = False
) -> list[argparse.Namespace]:
    """Adds a stage `probe` that returns or raises `outcome`; returns the arguments it got."""
    calls: list[argparse.Namespace] = []

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--records", required=True)

    def run(args: argparse.Namespace) -> int:
        calls.append(args)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    module = types.ModuleType("probe_stage")
    vars(module).update(add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, "probe_stage", module)
    monkeypatch.setitem(STAGES, "probe", Stage("probe_stage", "for a test", beam=beam))
    return calls


def test_help_loads_nothing_heavy() -> None:
    commands = [["--help"], *([name, "--help"] for name in STAGES)]
    for command, (code, loaded) in zip(commands, probe(commands), strict=True):
        assert (code, loaded) == (0, []), command


def test_a_wrong_flag_loads_nothing_heavy() -> None:
    commands = [["nonsense"], *([name, "--no_such_flag"] for name in STAGES)]
    for command, (code, loaded) in zip(commands, probe(commands), strict=True):
        assert (code, loaded) == (2, []), command


def test_help_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, stage in STAGES.items():
        assert name in text
        assert stage.help in text


def test_unknown_stage_is_one_line_that_lists_the_stages() -> None:
    finished = cli("nonsense")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert "'nonsense'" in finished.stderr
    assert all(name in finished.stderr for name in STAGES)


def test_a_flag_before_the_stage_is_one_line() -> None:
    finished = cli("--", "serve")
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)


def test_wrong_flag_is_one_line_that_names_it() -> None:
    finished = cli("train", "--records", "R", "--model_dir", "M", "--learning-rate", "1")
    assert finished.returncode == 2
    assert finished.stderr == (
        "captionbeam train: unknown argument --learning-rate; see `captionbeam train --help`\n"
    )


def test_missing_flag_is_one_line_that_names_it() -> None:
    finished = cli("train", "--records", "R")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "--model_dir" in finished.stderr


def test_unusable_input_is_one_line_without_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "settings.json"
    finished = cli("train", "--records", "R", "--model_dir", "M", "--config", str(missing))
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert finished.stderr.startswith(f"captionbeam train: --config {missing}: ")


def test_a_stage_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = a_stage(monkeypatch, 1)
    assert main(["probe", "--records", "R"]) == 1
    assert [call.records for call in calls] == ["R"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidInput("got x, expected y"), 2, "captionbeam probe: got x, expected y\n"),
        (CheckFailed("3 images failed"), 1, "captionbeam probe: 3 images failed\n"),
        (KeyboardInterrupt(), 130, "captionbeam probe: interrupted\n"),
    ],
)
def test_an_error_becomes_a_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    a_stage(monkeypatch, error)
    assert main(["probe", "--records", "R"]) == code
    assert capsys.readouterr().err == message


def test_an_error_of_ours_only_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    a_stage(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["probe", "--records", "R"])


def test_an_abbreviated_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--rec` must not start to mean another flag when one is added."""
    calls = a_stage(monkeypatch, 0)
    with pytest.raises(SystemExit):
        main(["probe", "--rec", "R"])
    assert not calls


def test_a_beam_stage_passes_beams_own_flags_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = a_stage(monkeypatch, 0, beam=True)
    beam_args = ["--runner=DirectRunner", "--direct_num_workers", "2", "--save_main_session"]
    assert main(["probe", *beam_args, "--records", "R"]) == 0
    assert calls[0].beam_args == beam_args
    assert calls[0].records == "R"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no_such_flag", "1"], "--no_such_flag"),
        (["--no_such_flag=1"], "--no_such_flag"),
        (["stray"], "stray"),
        (["--runner=DirectRunner", "stray"], "stray"),
        (["--runner", "DirectRunner", "stray"], "stray"),
    ],
)
def test_a_beam_stage_refuses_what_beam_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    calls = a_stage(monkeypatch, 0, beam=True)
    with pytest.raises(SystemExit) as ended:
        main(["probe", "--records", "R", *arguments])
    assert ended.value.code == 2
    assert f"unknown argument {named};" in capsys.readouterr().err
    assert not calls


def test_other_stages_refuse_beams_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = a_stage(monkeypatch, 0)
    with pytest.raises(SystemExit):
        main(["probe", "--records", "R", "--runner=DirectRunner"])
    assert not calls


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        captionbeam.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: captionbeam {name}" in text
    module = sys.modules[STAGES[name].module]
    assert module.__doc__ is not None
    assert module.__doc__.splitlines()[0] in text
