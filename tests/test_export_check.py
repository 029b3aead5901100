"""`export --check`: what was published is what was verified, and still says the same."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

import captionbeam
from export import record, saved_model
from export.models_config import CANARY, STABLE
from export.verify import Source, recheck, verify
from export.versions import RECORD_FILE
from model.encoder import Encoder
from model.errors import CheckFailed, InvalidInput
from model.vocabulary import Vocabulary
from serving import contract
from serving.labels import MODELS_CONFIG
from serving.layout import WARMUP_FILE
from tests.disks import small_disk
from tests.export_fixtures import ENCODER_SETTINGS, Exported, export, save_model_dir
from tests.test_export_publishing import labels

ROOT = Path(captionbeam.__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="exported")
def fixture_exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    exported = export(tmp_path_factory.mktemp("check"))
    save_model_dir(exported)
    return exported


@pytest.fixture(name="copy")
def fixture_copy(exported: Exported, tmp_path: Path) -> Path:
    """The published version somewhere else, under another number."""
    return shutil.copytree(exported.version_dir, tmp_path / "elsewhere" / "7")


def test_a_published_version_passes_again(
    exported: Exported, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the model, then compared with it; nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in copy.parent.rglob("*")}
    line = rf"checked {copy}: \d+ kinds of operations, loads in \d+\.\d s, [\d,]+ MiB at peak, "
    for more in ([], ["--model_dir", str(exported.model_dir)]):
        assert captionbeam.main(["export", "--check", str(copy), *more]) == 0
        assert re.match(line, capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in copy.parent.rglob("*")} == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


VARIABLES = "variables/variables.data-00000-of-00001"


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (VARIABLES, _cut, "has changed"),
        (VARIABLES, _rot, "has changed"),
        ("saved_model.pb", _rot, "has changed"),
        ("saved_model.pb", Path.unlink, "is missing"),
        ("assets/vocabulary.json", Path.unlink, "is missing"),
        ("assets.extra/tf_serving_warmup_requests", Path.unlink, "is missing"),
        ("assets/more.json", Path.touch, "is new"),
    ],
)
def test_every_file_that_changed_is_named(
    copy: Path,
    file: str,
    damage: Callable[[Path], None],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(copy / file)
    assert captionbeam.main(["export", "--check", str(copy)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"captionbeam export: {copy}: {file} {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("{", "damaged"), ("[]", "damaged"), ('{"schema_version": 9}', "9")],
)
def test_a_version_without_a_record_is_not_vouched_for(
    copy: Path, text: str | None, said: str
) -> None:
    file = copy / RECORD_FILE
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(CheckFailed, match=f"{re.escape(str(file))}: .*{said}"):
        recheck(copy)


def test_other_captions_than_when_it_was_published_are_named(copy: Path) -> None:
    file = copy / RECORD_FILE
    fields = json.loads(file.read_text())
    fields["captions"][1]["caption"] = "a bird"
    file.write_text(json.dumps(fields))
    with pytest.raises(CheckFailed, match=r"sample 1 is captioned .* here, captioned 'a bird'"):
        recheck(copy)


def test_a_warm_up_that_lacks_a_size_is_named(exported: Exported, copy: Path) -> None:
    warmup = copy / WARMUP_FILE
    records = list(tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(warmup)) as writer:
        for data in (*records[:3], *records[4:]):
            writer.write(data)
    with pytest.raises(
        CheckFailed,
        match=r"warm-up requests .*serving_default of 4, serving_default"
        r" of 16.*, expected .*of 8",
    ):
        verify(copy, exported.trained, exported.encoder)


def test_the_model_it_was_exported_from_is_compared(exported: Exported, copy: Path) -> None:
    other = list(exported.trained.vocabulary.words)
    other[4:] = other[:3:-1]
    trained = dataclasses.replace(exported.trained, vocabulary=Vocabulary(tuple(other)))
    with pytest.raises(CheckFailed, match=r"sample 0 is .* after reloading, .* in memory"):
        recheck(copy, Source(trained, exported.encoder))
    encoder = Encoder(dataclasses.replace(ENCODER_SETTINGS, weights="random:1"))
    with pytest.raises(CheckFailed, match=r"holds encoder \w{8}, the model has \w{8}"):
        recheck(copy, Source(exported.trained, encoder))


def test_words_of_another_vocabulary_are_named(exported: Exported, copy: Path) -> None:
    """The graph holds its words itself: the asset is what people read."""
    words = list(exported.trained.vocabulary.words)
    words[4:] = words[:3:-1]
    asset = copy / "assets" / "vocabulary.json"
    Vocabulary(tuple(words)).save(asset)
    manifest = json.loads((copy / "assets" / "manifest.json").read_text())
    manifest["vocabulary"]["digest"] = Vocabulary.load(asset).digest
    (copy / "assets" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed, match=r"explain writes .*, the vocabulary in assets has"):
        verify(copy, exported.trained, exported.encoder)


def test_two_processes_export_at_once(exported: Exported, tmp_path: Path) -> None:
    """The same model, through the command; both versions pass a check of their own."""
    name_dir = tmp_path / "models" / "captioner"
    command = [sys.executable, "-m", "captionbeam", "export", "--output", str(name_dir)]
    command += ["--model_dir", str(exported.model_dir)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found = [re.search(r"published (\S+) \(step 1\)", text) for text in printed]
    assert sorted(str(match and match[1]) for match in found) == [
        str(name_dir / version) for version in "12"
    ]
    assert sorted(path.name for path in name_dir.iterdir()) == ["1", "2"]
    assert labels(tmp_path / "models", "captioner") == {STABLE: 1, CANARY: 2}
    for version in "12":
        record.read(name_dir / version).check_files(name_dir / version)


@pytest.mark.parametrize("size", ["100k", "50m"])
def test_a_disk_that_is_full_for_tensorflow(exported: Exported, tmp_path: Path, size: str) -> None:
    """Its own writers meet the end of the disk, within the weights' file and the graph's."""
    with small_disk(tmp_path / "disk", size) as disk:
        name_dir = disk / "tiny"
        with pytest.raises(
            InvalidInput, match=rf"{name_dir}: cannot be written \(No space left on device\)"
        ):
            saved_model.publish(exported.module, exported.model_dir, name_dir, lambda _: None)
        assert list(name_dir.iterdir()) == []
        assert not (disk / MODELS_CONFIG).exists()


def test_the_answer_of_every_signature_is_checked(exported: Exported, tmp_path: Path) -> None:
    class Part(tf.Module):
        """Has one signature of three."""

    part = Part()
    part.module = exported.module
    names = (contract.SERVING_DEFAULT, contract.NBEST)
    every = exported.module.signatures()
    shutil.copytree(exported.version_dir, tmp_path / "1")
    tf.saved_model.save(part, str(tmp_path / "1"), signatures={name: every[name] for name in names})
    with pytest.raises(CheckFailed, match="signature explain is missing"):
        verify(tmp_path / "1", exported.trained, exported.encoder)
