"""train, evaluate and export as commands: unusable arguments end with one line and exit 2."""

from pathlib import Path

import pytest

import captionbeam
from tests import tiny


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must exit with 2; its only line on stderr."""
    try:
        code = captionbeam.main(arguments)
    except SystemExit as error:
        code = int(str(error.code))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("missing", ["nowhere", "interrupted"])
def test_train_on_unfinished_records(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / missing
    if missing == "interrupted":
        (tiny.make_records(records) / "manifest.json").unlink()
    line = one_line(
        capsys, "train", "--records", str(records), "--model_dir", str(tmp_path / "model")
    )
    assert f"{records}: no manifest.json, expected a finished records directory" in line
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "0"), "argument --steps: got '0', expected an integer of at least 1"),
        (("--steps", "2", "--epochs", "2"), "not allowed with argument --steps"),
        (("--set", "dropout=7"), "decoder.dropout 7.0, expected 0.0 to 0.95"),
        (("--config", "none.json"), "none.json: cannot be read"),
        (("--strategy", "tpu"), "invalid choice: 'tpu'"),
        (("--nonsense",), "unknown argument --nonsense"),
    ],
)
def test_train_flags(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = one_line(capsys, "train", "--records", "r", "--model_dir", str(tmp_path / "m"), *flags)
    assert message in line


def test_records_in_a_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(capsys, "train", "--records", "gs://bucket/records", "--model_dir", "m")
    assert "got gs://bucket/records, expected a directory on this machine" in line


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--records", "RECORDS", "--output", "report.json"),
        ("export", "--output", "models/captioner"),
    ],
)
def test_without_a_trained_model(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = str(tiny.make_records(tmp_path / "records"))
    arguments = [records if part == "RECORDS" else part for part in command]
    line = one_line(capsys, *arguments, "--model_dir", str(tmp_path / "model"))
    assert "no manifest.json, expected a directory of `captionbeam train`" in line


def test_export_over_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(capsys, "export", "--model_dir", "m", "--output", "models/captioner/3")
    assert "a number would be taken for a version, expected MODELS/NAME" in line


def test_evaluate_into_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = one_line(
        capsys, "evaluate", "--records", "r", "--model_dir", "m", "--output", str(tmp_path)
    )
    assert "is a directory, expected a file to write" in line
