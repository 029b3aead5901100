"""Files that get their names when they are whole."""

import errno
import io
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pipelines import storage


def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done in what order from now on; of a synced file, its bytes at that time."""
    done: list[str] = []
    fsync, rename = os.fsync, storage.rename

    def noted_fsync(number: int) -> None:
        fsync(number)
        done.append(f"fsync {Path(f'/proc/self/fd/{number}').read_bytes()!r}")

    def noted_rename(source: str, destination: str) -> None:
        done.append(f"rename {Path(destination).name}")
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(storage, "rename", noted_rename)
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = steps(monkeypatch)
    storage.write_bytes(str(tmp_path / "a"), b"one")
    storage.concatenate([str(tmp_path / "a")] * 2, str(tmp_path / "b"))
    assert done == ["fsync b'one'", "rename a", "fsync b'oneone'", "rename b"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_a_large_file_reaches_the_disk_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PIECE_BYTES", 2)
    monkeypatch.setattr(storage, "_SYNC_BYTES", 4)
    done = steps(monkeypatch)
    with storage.replacing(str(tmp_path / "a")) as file:
        for letter in (b"a", b"bc", b"d", b"ef", b"g"):
            file.write(letter)
    assert done == ["fsync b'abcdef'", "fsync b'abcdefg'", "rename a"]


def test_a_file_that_cannot_be_synced_needs_no_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Uploaded(io.BufferedWriter):
        """As that of a bucket, which is durable once it is closed."""

        def fileno(self) -> int:
            raise io.UnsupportedOperation("fileno")

    monkeypatch.setattr(storage, "open_write", lambda path: Uploaded(io.FileIO(path, "w")))
    storage.write_bytes(str(tmp_path / "a"), b"one")
    assert (tmp_path / "a").read_bytes() == b"one"
    monkeypatch.setattr(storage, "_PIECE_BYTES", 1)
    monkeypatch.setattr(storage, "_SYNC_BYTES", 2)
    with storage.replacing(str(tmp_path / "a")) as file:
        for letter in (b"a", b"b", b"c", b"d", b"e"):
            file.write(letter)
    assert (tmp_path / "a").read_bytes() == b"abcde"


@pytest.mark.parametrize("step", ["write", "fsync", "fsync amid", "close", "rename"])
def test_a_step_that_fails_is_not_swallowed_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if step == "write":
                full()
            return super().write(data) or 0

        def close(self) -> None:
            if not self.closed:
                super().close()
                full()

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif step == "fsync amid":
        monkeypatch.setattr(storage, "_PIECE_BYTES", 1)
        monkeypatch.setattr(storage, "_SYNC_BYTES", 1)
        # The last one is well.
        monkeypatch.setattr(os, "fsync", Mock(side_effect=[OSError("No space left"), None]))
    elif step == "rename":
        monkeypatch.setattr(storage, "rename", full)
    else:
        monkeypatch.setattr(storage, "open_write", lambda path: Full(path, "w"))
    with pytest.raises(OSError, match="No space left"), storage.replacing(str(path)) as file:
        file.write(b"after")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"a": b"before"}


def test_a_file_that_cannot_be_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened_in_part(path: str) -> None:
        Path(path).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "open_write", opened_in_part)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(str(tmp_path / "a"), b"one")
    assert not list(tmp_path.iterdir())


def test_deleting_what_another_process_deleted_is_fine_and_what_stays_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"x")
    storage.delete(str(tmp_path / "gone"), str(there))
    assert not there.exists()
    storage.delete()

    def refused(_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    there.write_bytes(b"x")
    monkeypatch.setattr(storage.FileSystems, "delete", refused)
    with pytest.raises(OSError, match="Read-only"):
        storage.delete(str(there))


def test_small_pieces_are_written_together_and_large_ones_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    open_write = storage.open_write

    def noted(path: str) -> Any:
        file = open_write(path)
        write = file.write
        file.write = lambda data: written.append(len(data)) or write(data)  # type: ignore[method-assign,func-returns-value]
        return file

    monkeypatch.setattr(storage, "open_write", noted)
    monkeypatch.setattr(storage, "_PIECE_BYTES", 10)
    with storage.replacing(str(tmp_path / "a")) as file:
        for piece in (b"1234", b"5678", b"90", b"a" * 25, b"tail"):
            file.write(piece)
        assert written == [10, 25]
    assert written == [10, 25, 4]
    assert (tmp_path / "a").read_bytes() == b"1234567890" + b"a" * 25 + b"tail"
