"""Images on a disk: the files of a tree, of a glob, or one file, each with its state."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any, ClassVar

from model.errors import InvalidInput
from pipelines.listing import Found, is_image, make_item
from pipelines.read_ahead import batches
from pipelines.tree_walk import Elsewhere, Listed, find, walk

# Files whose state is asked for in one go.
_AT_ONCE = 1000
# What `skipped` calls directories of the job's own results.
_OWN = "own_results"


@dataclass(frozen=True)
class _Nodes:
    """A directory is its path; files whose state is asked for are [directory, names].

    Attributes:
      start: where in a path its key begins.
      wants_files: whether the images of directories are listed, or their directories alone.
      of_glob: whether a pattern matched the files, which says that all but directories are meant.
    """

    start: int = 0
    wants_files: bool = True
    of_glob: bool = False
    weight: ClassVar[int] = 1

    def opened(self) -> Callable[[Any], Listed]:
        return self._list

    def _list(self, node: Any) -> Listed:
        if not isinstance(node, str):
            return Listed(*self._states(*node))
        names, links, below, skipped = _scan(node)
        files = list(batches(names if self.wants_files else (), _AT_ONCE))
        items, others = self._states(node, files[0] if files else [])
        # Files come before what is below, so that those of a directory stand together.
        children = [*([node, more] for more in files[1:]), *below]
        return Listed(items, skipped + others, children, node, os.path.realpath(node), links)

    def _states(
        self, directory: str, names: list[str]
    ) -> tuple[list[dict[str, Any]], Counter[str]]:
        """The items of files, and what is passed over."""
        items: list[dict[str, Any]] = []
        skipped: Counter[str] = Counter()
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118
            status = _status(path)
            # A dangling link is no file either, but somebody meant it as one.
            if status is None or (
                not stat.S_ISDIR(status.st_mode) if self.of_glob else stat.S_ISREG(status.st_mode)
            ):
                items.append(make_item(path[self.start :], path, _state(status)))
            else:
                skipped["directory" if self.of_glob else "no_regular_file"] += 1
        return items, skipped


def list_directory(
    top: str,
    skipped: Counter[str],
    elsewhere: Elsewhere | None = None,
    own: Collection[str] = (),
) -> Iterator[Found]:
    """Every image of a tree, each directory once, however many links lead to it.

    Args:
      top: the directory; keys are relative to it.
      skipped: counts what is passed over, by kind.
      elsewhere: as of tree_walk.walk.
      own: directories to which links may lead and whose files are no inputs; without links.

    Raises:
      InvalidInput: a directory cannot be listed.
    """
    # `.` is no part of a path that others shall read.
    top = "" if (top := str(Path(top))) == "." else top
    nodes = _Nodes(start=len(top.rstrip("/")) + bool(top))
    for listed in _directories(top, nodes, skipped, elsewhere, own):
        yield from map(Found, listed.items)


def list_glob(
    pattern: str,
    skipped: Counter[str],
    elsewhere: Elsewhere | None = None,
    own: Collection[str] = (),
) -> Iterator[Found]:
    """Every file that matches, whatever its suffix; the key is its path.

    Args:
      pattern: as of `glob`; `**` is every directory once, however many links lead to it.
      skipped: counts what is passed over, by kind.
      elsewhere: as of tree_walk.walk.
      own: as of list_directory.

    Raises:
      InvalidInput: a directory that `**` stands for cannot be listed.
    """
    paths = sorted(set(_matches(pattern, skipped, elsewhere, own)))
    files = (["", chunk] for chunk in batches(paths, _AT_ONCE))
    yield from find(files, _Nodes(of_glob=True), skipped, elsewhere)


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


def _matches(
    pattern: str, skipped: Counter[str], elsewhere: Elsewhere | None, own: Collection[str]
) -> Iterator[str]:
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
        nodes = _Nodes(wants_files=False)
        # All of them first: another `**` may need the workers, too.
        below = [listed.path or "" for listed in _directories(top, nodes, passed, elsewhere, own)]
        for directory in below:
            found = os.path.join(directory, "")  # noqa: PTH118
            yield from _matches(glob.escape(found) + after, skipped, elsewhere, own)
    # All else that it counts is the pattern's to choose.
    for kind in ("directory_seen_before", _OWN):
        if passed[kind]:
            skipped[kind] += passed[kind]


def _directories(
    top: str,
    nodes: _Nodes,
    skipped: Counter[str],
    elsewhere: Elsewhere | None,
    own: Collection[str],
) -> Generator[Listed]:
    """What a tree holds, in an order that threads do not change."""
    seen: set[str] = set()

    def admit(listed: Listed) -> bool:
        if listed.real in own:
            skipped[_OWN] += 1
            return False
        if listed.real is not None and listed.real in seen:
            skipped["directory_seen_before"] += 1
            return False
        if listed.real is not None:
            seen.add(listed.real)
        skipped.update(listed.skipped)
        return True

    # What lies in the tree itself comes before what links lead to, so that a file's key is its
    # own path wherever it has one.
    linked = [top]
    for path in linked:
        for listed in walk([path], nodes, elsewhere, admit):
            linked += listed.links
            yield listed


def _scan(path: str) -> tuple[list[str], list[str], list[str], Counter[str]]:
    """Names of images, paths of links to directories and of directories, and what is skipped."""
    images: list[str] = []
    links: list[str] = []
    below: list[str] = []
    skipped: Counter[str] = Counter()
    try:
        with os.scandir(path or ".") as entries:
            for entry in entries:
                place = os.path.join(path, entry.name)  # noqa: PTH118
                if entry.name.startswith("."):
                    skipped["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    below.append(place)
                # Unlike the entry, Path says of a link to itself that it is no directory.
                elif entry.is_symlink() and Path(place).is_dir():
                    links.append(place)
                elif is_image(entry.name):
                    images.append(entry.name)
                else:
                    skipped["no_image_suffix"] += 1
    except OSError as error:
        raise InvalidInput(f"{path or '.'}: cannot be listed ({error.strerror})") from error
    return sorted(images), sorted(links), sorted(below), skipped
