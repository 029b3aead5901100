"""`captionbeam export`: which flags go together, and what is refused before any work."""

from pathlib import Path

import pytest

import captionbeam
from serving.labels import MODELS_CONFIG


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "no --model_dir and no --output: expected --model_dir MODEL --output MODELS/NAME, or"),
        ("--model_dir m", "no --output: expected"),
        ("--output models/captioner", "no --model_dir: expected"),
        ("--model_dir m --output models/3", "--output models/3: a number would be taken for a ver"),
        (
            "--check models/captioner/1 --output o",
            "--output o with --check, which writes nothing; leave",
        ),
        ("--check models/captioner/1", "no published version, expected MODELS/NAME/VERSION as"),
        ("--check models/captioner", "no published version, expected MODELS/NAME/VERSION as"),
    ],
)
def test_flags_that_do_not_fit_are_named(
    flags: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # A directory with a number as its name is no published version yet.
    (tmp_path / "models" / "captioner" / "1").mkdir(parents=True)
    assert captionbeam.main(["export", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("captionbeam export: ")
    assert said in line
    assert not (tmp_path / "o").exists()


def test_a_config_that_cannot_be_kept_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is, before the model is looked at, which is not there."""
    models = tmp_path / "models"
    models.mkdir()
    (models / MODELS_CONFIG).write_text("model_config_list {")
    given = ["--model_dir", str(tmp_path / "none"), "--output", str(models / "captioner")]
    assert captionbeam.main(["export", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{models / MODELS_CONFIG}: not a ModelServerConfig of TensorFlow Serving" in line
