"""train, evaluate and export as commands: unusable arguments end with one line and exit 2."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import captionbeam
from model.records import Manifest
from model.vocabulary import Vocabulary
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


@pytest.mark.parametrize("split", ["train", "val"])
def test_train_on_records_that_lost_a_shard(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next(tiny.make_records(tmp_path / "records").glob(f"{split}-*.tfrecord"))
    shard.unlink()
    records, model = str(tmp_path / "records"), str(tmp_path / "model")
    line = one_line(capsys, "train", "--records", records, "--model_dir", model)
    assert f"{shard}: no such file, expected the " in line


def test_evaluate_on_records_that_lost_a_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tiny.make_records(tmp_path / "records")
    trained = SimpleNamespace(manifest=Manifest.load(records), vocabulary=tiny.make_vocabulary())
    monkeypatch.setattr("model.evaluation.load_trained", lambda _: trained)
    shard = next(records.glob("val-*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-1])
    flags = ("--records", str(records), "--model_dir", "m", "--output", str(tmp_path / "o.json"))
    line = one_line(capsys, "evaluate", *flags, "--split", "val")
    assert f"{shard}: {shard.stat().st_size} bytes, expected the " in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--steps", "0"), "argument --steps: got '0', expected an integer of at least 1"),
        (("--steps", "2", "--epochs", "2"), "not allowed with argument --steps"),
        (("--set", "dropout=7"), "decoder.dropout 7.0, expected 0.0 to 0.95"),
        (("--config", "none.json"), "none.json: no such file, expected a JSON file of settings or"),
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


@pytest.fixture(scope="module", name="trained")
def fixture_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `records` and, of one step, `model`."""
    root = tmp_path_factory.mktemp("trained")
    tiny.make_records(root / "records")
    small = [f"--set={name}_size=8" for name in ("embedding", "hidden", "attention", "batch")]
    arguments = ("--records", str(root / "records"), "--model_dir", str(root / "model"))
    assert captionbeam.main(["train", *arguments, *small, "--steps", "1"]) == 0
    return root


@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_a_vocabulary_that_does_not_match_the_checkpoint(
    command: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(trained / "model", model_dir)
    Vocabulary.build({"other": 1}, 1).save(model_dir / "vocabulary.json")
    settings = json.loads((model_dir / "config.json").read_text())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings))
    flags = {
        "train": ("--records", str(trained / "records"), "--config", str(config)),
        "evaluate": ("--records", str(trained / "records"), "--output", str(tmp_path / "r.json")),
        "export": ("--output", str(tmp_path / "models" / "captioner")),
    }
    line = one_line(capsys, command, "--model_dir", str(model_dir), *flags[command])
    assert "use the vocabulary.json that was saved with it" in line


def test_evaluate_on_unfinished_records(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tiny.make_records(tmp_path / "records")
    (records / "manifest.json").unlink()
    flags = ("--model_dir", str(trained / "model"), "--output", str(tmp_path / "r.json"))
    line = one_line(capsys, "evaluate", "--records", str(records), *flags)
    assert f"{records}: no manifest.json, expected a finished records directory" in line


@pytest.mark.parametrize(
    "flags",
    [
        ("train", "--records", "RECORDS", "--model_dir", "FILE"),
        ("evaluate", "--records", "RECORDS", "--model_dir", "MODEL", "--output", "FILE/r.json"),
        ("export", "--model_dir", "MODEL", "--output", "FILE"),
    ],
)
def test_a_file_where_a_directory_must_go(
    flags: tuple[str, ...], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("not a directory")
    places = {"RECORDS": trained / "records", "MODEL": trained / "model", "FILE": file}
    arguments = [str(places.get(flag, flag)).replace("FILE", str(file)) for flag in flags]
    line = one_line(capsys, *arguments)
    assert f"{file}: cannot be made a directory" in line


def test_a_manifest_that_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = tiny.make_records(tmp_path / "records")
    (records / "manifest.json").write_bytes(b"\xff\xfe\x00")
    line = one_line(capsys, "train", "--records", str(records), "--model_dir", str(tmp_path / "m"))
    assert "manifest.json: not UTF-8 text" in line
