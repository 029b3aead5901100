"""A version appears whole or not at all, whoever else publishes and whatever fails."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow_serving.config import model_server_config_pb2

from export import publishing
from export.models_config import CANARY, STABLE
from export.publishing import publish
from model.errors import CheckFailed, InvalidInput
from serving.labels import MODELS_CONFIG
from tests.disks import small_disk

ROOT = Path(__file__).parents[1]
FILES = ("saved_model.pb", "variables/variables.index")


def make(path: Path) -> None:
    """A version, as far as publishing looks into one."""
    for file in FILES:
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(path.name)


def labels(models: Path, name: str) -> dict[str, int]:
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((models / MODELS_CONFIG).read_text(), config)
    (entry,) = (entry for entry in config.model_config_list.config if entry.name == name)
    return dict(entry.version_labels)


def promote(models: Path, version: int) -> None:
    """Move `stable` from 1, as a person does."""
    file = models / MODELS_CONFIG
    before, after = (f'key: "{STABLE}"\n      value: {number}' for number in (1, version))
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))


def everything(models: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(models)): path.read_bytes()
        for path in sorted(models.rglob("*"))
        if path.is_file()
    }


def assert_whole(version: Path) -> None:
    texts = {(version / file).read_text() for file in FILES}
    assert len(texts) == 1
    assert {path.name for path in version.iterdir()} == {"saved_model.pb", "variables"}


def test_each_version_is_one_more_than_the_highest(tmp_path: Path) -> None:
    name_dir = tmp_path / "captioner"
    assert publish(name_dir, make) == name_dir / "1"
    (name_dir / "7").mkdir()
    (name_dir / "notes").mkdir()
    assert publish(name_dir, make) == name_dir / "8"
    assert sorted(path.name for path in name_dir.iterdir()) == ["1", "7", "8", "notes"]


def test_the_number_of_a_deleted_version_is_not_given_again(tmp_path: Path) -> None:
    """Else what a person said of the old one, with a label, would be said of the new one."""
    name_dir = tmp_path / "captioner"
    for _ in range(3):
        publish(name_dir, make)
    promote(tmp_path, 3)
    assert labels(tmp_path, "captioner") == {STABLE: 3, CANARY: 3}
    shutil.rmtree(name_dir / "3")
    assert publish(name_dir, make).name == "4"
    assert labels(tmp_path, "captioner") == {STABLE: 2, CANARY: 4}


def test_what_a_person_has_to_do_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path / "captioner", make)
    assert capsys.readouterr().out == ""
    file = tmp_path / MODELS_CONFIG
    listed = re.sub(r"all \{\s*\}", "specific { versions: 1 }", file.read_text())
    file.write_text(listed)
    publish(tmp_path / "captioner", make)
    assert labels(tmp_path, "captioner") == {STABLE: 1, CANARY: 1}
    assert "set canary to 2 once 2 is AVAILABLE" in capsys.readouterr().out


def test_exports_at_once_publish_versions_of_their_own(tmp_path: Path) -> None:
    """Of two models, all at the same moment: none is lost, mixed with another or unlabelled."""
    names, each = ("one", "two"), 8
    barrier = threading.Barrier(len(names) * each)

    def make_at_once(path: Path) -> None:
        make(path)
        barrier.wait(timeout=60)

    with ThreadPoolExecutor(len(names) * each) as pool:
        jobs = [pool.submit(publish, tmp_path / name, make_at_once) for name in names * each]
        published = [job.result(timeout=60) for job in jobs]
    for name in names:
        versions = [path for path in published if path.parent.name == name]
        assert sorted(int(path.name) for path in versions) == list(range(1, each + 1))
        for version in versions:
            assert_whole(version)
        assert len({(path / FILES[0]).read_text() for path in versions}) == each
        assert labels(tmp_path, name) == {STABLE: 1, CANARY: each}
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".export.lock"]


def test_a_version_that_a_person_copied_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_dir = tmp_path / "captioner"
    rename = Path.rename

    def rename_too_late(self: Path, target: Path) -> Path:
        if target.name == "1" and not target.exists():
            target.mkdir()
            (target / "copied").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_too_late)
    assert publish(name_dir, make).name == "2"
    assert [path.name for path in (name_dir / "1").iterdir()] == ["copied"]
    assert labels(tmp_path, "captioner") == {STABLE: 1, CANARY: 2}


def test_what_does_not_pass_is_not_published(tmp_path: Path) -> None:
    publish(tmp_path / "captioner", make)
    before = everything(tmp_path)

    def refuse(path: Path) -> None:
        make(path)
        raise CheckFailed("no")

    with pytest.raises(CheckFailed):
        publish(tmp_path / "captioner", refuse)
    assert everything(tmp_path) == before


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("point", ["the SavedModel", "the sync", "models.config", "the rename"])
def test_a_full_disk_leaves_no_half_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    models = tmp_path / "models"
    publish(models / "captioner", make)
    before = everything(models)
    write: Callable[[Path], None] = make
    if point == "the SavedModel":

        def write(path: Path) -> None:
            make(path)
            full()

    elif point == "the sync":
        monkeypatch.setattr(os, "fsync", full)
    elif point == "models.config":
        monkeypatch.setattr(Path, "write_text", _full_for(f".{MODELS_CONFIG}.new"))
    else:
        monkeypatch.setattr(Path, "rename", full)
    expected = f"{models / 'captioner'}: cannot be written (No space left on device), nothing is "
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        publish(models / "captioner", write)
    monkeypatch.undo()
    assert everything(models) == before
    assert [path.name for path in (models / "captioner").iterdir()] == ["1"]
    assert publish(models / "captioner", make).name == "2"


def test_a_disk_that_is_full_after_the_rename_does_not_take_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "captioner", make)
    before = (tmp_path / MODELS_CONFIG).read_text()
    monkeypatch.setattr(Path, "replace", full)
    expected = (
        f"{tmp_path / 'captioner' / '2'} is published, but models.config could not be replaced "
        "(No space left on device): set canary to 2 by hand, or export again"
    )
    with pytest.raises(InvalidInput, match=f"^{re.escape(expected)}$"):
        publish(tmp_path / "captioner", make)
    monkeypatch.undo()
    assert_whole(tmp_path / "captioner" / "2")
    assert (tmp_path / MODELS_CONFIG).read_text() == before
    assert not list(tmp_path.glob(".*.new"))
    assert publish(tmp_path / "captioner", make).name == "3"
    assert labels(tmp_path, "captioner") == {STABLE: 1, CANARY: 3}


def test_mode_and_link_of_models_config_stay(tmp_path: Path) -> None:
    models, kept = tmp_path / "models", tmp_path / "kept" / "ours.config"
    publish(models / "captioner", make)
    kept.parent.mkdir()
    (models / MODELS_CONFIG).rename(kept)
    (models / MODELS_CONFIG).symlink_to(kept)
    kept.chmod(0o640)
    publish(models / "captioner", make)
    assert (models / MODELS_CONFIG).readlink() == kept
    assert labels(models, "captioner") == {STABLE: 1, CANARY: 2}
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    assert list(kept.parent.iterdir()) == [kept]


def _full_for(name: str) -> Callable[..., int]:
    write_text = Path.write_text

    def write(self: Path, text: str, **settings: str) -> int:
        if self.name == name:
            # As a disk does: what fits is there.
            write_text(self, text[:10], **settings)
            full()
        return write_text(self, text, **settings)

    return write


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    def make_large(path: Path) -> None:
        make(path)
        for number in range(100):
            (path / f"{number}").write_bytes(bytes(16_384))

    with small_disk(tmp_path / "disk", "256k") as disk:
        publish(disk / "captioner", make)
        before = everything(disk)
        with pytest.raises(InvalidInput, match="No space left on device"):
            publish(disk / "captioner", make_large)
        assert everything(disk) == before
        assert publish(disk / "captioner", make).name == "2"


KILLED = """
import os, signal, sys
from pathlib import Path
from export.publishing import publish

def make(path):
    (path / "saved_model.pb").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

publish(Path(sys.argv[1]), make)
"""


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    name_dir = tmp_path / "captioner"
    command = [sys.executable, "-c", KILLED, str(name_dir)]
    killed = subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert killed.returncode == -signal.SIGKILL
    (left,) = name_dir.iterdir()
    assert left.name.startswith(f".unpublished-{socket.gethostname()}-")
    hosts = ("another-host", f"{socket.gethostname()}-0")
    elsewhere = [name_dir / f".unpublished-{host}-1-00000000" for host in hosts]
    for path in elsewhere:
        path.mkdir()

    def look(path: Path) -> None:
        assert sorted(name_dir.iterdir()) == sorted([path, *elsewhere])
        make(path)

    publish(name_dir, look)
    assert sorted(name_dir.iterdir()) == sorted([*elsewhere, name_dir / "1"])


def assert_not_locked(models: Path) -> None:
    # Without waiting: the lock that one would wait for is this process's own.
    with (models / publishing._LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_export_that_is_at_work_is_left_alone(tmp_path: Path) -> None:
    name_dir = tmp_path / "captioner"

    def make_two(path: Path) -> None:
        make(path)
        assert_not_locked(tmp_path)
        publish(name_dir, make)
        assert_whole(path)

    assert publish(name_dir, make_two).name == "2"
    assert sorted(path.name for path in name_dir.iterdir()) == ["1", "2"]


def test_no_lock_is_held_while_a_version_is_made(tmp_path: Path) -> None:
    """Else an export of an hour would keep all others waiting."""

    def look(path: Path) -> None:
        make(path)
        assert_not_locked(tmp_path)

    publish(tmp_path / "captioner", look)


def test_a_config_that_was_broken_meanwhile_stops_the_export(tmp_path: Path) -> None:
    publish(tmp_path / "captioner", make)

    def make_and_break(path: Path) -> None:
        make(path)
        (tmp_path / MODELS_CONFIG).write_text("model_config_list {")

    with pytest.raises(InvalidInput, match=r"models\.config: not a ModelServerConfig"):
        publish(tmp_path / "captioner", make_and_break)
    assert [path.name for path in (tmp_path / "captioner").iterdir()] == ["1"]
    assert (tmp_path / MODELS_CONFIG).read_text() == "model_config_list {"
