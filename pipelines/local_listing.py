"""Images on a disk: the files of a tree, of a glob, or one file, each with its state."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path

from model.errors import InvalidInput
from pipelines.listing import Found, is_image, loaded_ahead, make_item
from pipelines.read_ahead import batches
from pipelines.tree_walk import Listing, walk

# Files whose state is asked for in one go.
_AT_ONCE = 1000


@dataclass(frozen=True)
class _Directory:
    """What a directory holds: names of images, links to directories, and what is passed over."""

    path: str
    real: str
    images: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def list_directory(top: str, skipped: Counter[str]) -> Iterator[Found]:
    """Every image of a tree, each directory once, however many links lead to it.

    Args:
      top: the directory; keys are relative to it.
      skipped: counts what is passed over, by kind.

    Raises:
      InvalidInput: a directory cannot be listed.
    """
    # `.` is no part of a path that others shall read.
    top = "" if (top := str(Path(top))) == "." else top
    files = (
        os.path.join(directory.path, name)  # noqa: PTH118
        for directory in _directories(top, skipped)
        for name in directory.images
    )
    start = len(top.rstrip("/")) + bool(top)
    for listed in loaded_ahead(batches(files, _AT_ONCE), _statuses):
        for path, status in listed:
            # A dangling link is no file either, but somebody meant it as one.
            if status is None or stat.S_ISREG(status.st_mode):
                yield Found(make_item(path[start:], path, _state(status)))
            else:
                skipped["no_regular_file"] += 1


def list_glob(pattern: str, skipped: Counter[str]) -> Iterator[Found]:
    """Every file that matches, whatever its suffix; the key is its path.

    Args:
      pattern: as of `glob`; `**` is every directory once, however many links lead to it.
      skipped: counts what is passed over, by kind.

    Raises:
      InvalidInput: a directory that `**` stands for cannot be listed.
    """
    paths = sorted(set(_matches(pattern, skipped)))
    for listed in loaded_ahead(batches(paths, _AT_ONCE), _statuses):
        for path, status in listed:
            if status is not None and stat.S_ISDIR(status.st_mode):
                skipped["directory"] += 1
            else:
                yield Found(make_item(path, path, _state(status)))


def list_file(path: str) -> Iterator[Found]:
    """One file; the key is its path."""
    yield Found(make_item(path, path, state_of(path)))


def state_of(path: str) -> str | None:
    """Size and time of change, which another content hardly keeps; None where no file is."""
    return _state(_status(path))


def _state(status: os.stat_result | None) -> str | None:
    return None if status is None else f"{status.st_size}-{status.st_mtime_ns}"


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    # A path from a manifest may hold whatever JSON can.
    except (OSError, ValueError):
        return None


def _statuses(paths: list[str]) -> list[tuple[str, os.stat_result | None]]:
    return [(path, _status(path)) for path in paths]


def _matches(pattern: str, skipped: Counter[str]) -> Iterator[str]:
    """What `glob` finds, which alone would follow links that lead back without end."""
    parts = pattern.split("/")
    if "**" not in parts:
        # Path.glob takes no absolute pattern.
        yield from glob.iglob(pattern)  # noqa: PTH207
        return
    place = parts.index("**")
    before = "".join(f"{part}/" for part in parts[:place])
    after = "/".join(dropwhile("**".__eq__, parts[place:])) or "*"
    passed: Counter[str] = Counter()
    for top in glob.iglob(before) if before else [""]:  # noqa: PTH207
        for directory in _directories(top, passed):
            found = os.path.join(directory.path, "")  # noqa: PTH118
            yield from _matches(glob.escape(found) + after, skipped)
    # All else that it counts is the pattern's to choose.
    if seen_before := passed["directory_seen_before"]:
        skipped["directory_seen_before"] += seen_before


def _directories(top: str, skipped: Counter[str]) -> Generator[_Directory, None, None]:
    """The directories of a tree, in an order that threads do not change."""
    seen: set[str] = set()

    def admit(directory: _Directory) -> bool:
        if directory.real in seen:
            skipped["directory_seen_before"] += 1
            return False
        seen.add(directory.real)
        skipped.update(directory.skipped)
        return True

    # What lies in the tree itself comes before what links lead to, so that a file's key is its
    # own path wherever it has one.
    linked = [top]
    for path in linked:
        for directory in walk(path, _scan, admit):
            linked += directory.links
            yield directory


def _scan(path: str) -> Listing[str, _Directory]:
    found = _Directory(path, os.path.realpath(path))
    below: list[str] = []
    try:
        with os.scandir(path or ".") as entries:
            for entry in entries:
                place = os.path.join(path, entry.name)  # noqa: PTH118
                if entry.name.startswith("."):
                    found.skipped["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    below.append(place)
                # Unlike the entry, Path says of a link to itself that it is no directory.
                elif entry.is_symlink() and Path(place).is_dir():
                    found.links.append(place)
                elif is_image(entry.name):
                    found.images.append(entry.name)
                else:
                    found.skipped["no_image_suffix"] += 1
    except OSError as error:
        raise InvalidInput(f"{path or '.'}: cannot be listed ({error.strerror})") from error
    found.images.sort()
    found.links.sort()
    return Listing(found, sorted(below))
