"""Where bulk captioning takes its images from: a directory, a glob or a manifest → items.

An item is {"key", "source"}: `source` is a path or URL, `key` names the image in the output
and is unique.

  directory   image files of the whole tree; key: path relative to the directory
  glob        every file that matches; key: the path
  manifest    .txt (one URL or path a line), .csv, .tsv, .jsonl; key: the id column, else the
              URL or path as it stands there, with "#2", "#3" … where it comes again

Relative paths in a manifest are relative to it. All three may lie on a Beam filesystem
(`gs://…`). A file name that is no UTF-8 stands with escapes and so fails as missing.
"""

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from model.errors import InvalidInput
from pipelines.manifests import MANIFEST_SUFFIXES, Columns, make_item, read_manifest, scheme

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
)
# A .txt manifest has lines alone.
TABLE_SUFFIXES = tuple(suffix for suffix in MANIFEST_SUFFIXES if suffix != ".txt")
_EXPECTED = f"expected a directory, a glob or a manifest ({', '.join(MANIFEST_SUFFIXES)})"


@dataclass(frozen=True)
class Sources:
    """What an input holds.

    Attributes:
      items: {"key", "source"} with unique keys, in order.
      skipped: what was passed over, by kind.
    """

    items: list[dict[str, str]]
    skipped: dict[str, int]


def list_sources(where: str, columns: Columns | None = None) -> Sources:
    """Lists a directory, a glob or a manifest.

    Raises:
      InvalidInput: nothing is there, or it cannot be read as what it is.
    """
    found = _list(where, columns or Columns())
    if not found.items:
        passed = ", ".join(f"{count} {kind}" for kind, count in found.skipped.items())
        raise InvalidInput(
            f"{where}: no image in it ({passed or 'it is empty'}); {_EXPECTED} "
            f"with {', '.join(sorted(IMAGE_SUFFIXES))} files or URLs"
        )
    return found


def has_columns(where: str) -> bool:
    """Whether an input would be read as a manifest with columns."""
    if Path(where).suffix.lower() not in TABLE_SUFFIXES:
        return False
    path = Path(where)
    return bool(scheme(where)) or path.is_file() or not (path.is_dir() or glob.has_magic(where))


def _list(where: str, columns: Columns) -> Sources:
    suffix = Path(where).suffix.lower()
    if scheme(where) in ("http", "https"):
        raise InvalidInput(f"{where}: a URL; {_EXPECTED} that lists URLs, or `captionbeam caption`")
    if scheme(where):
        listed = suffix in MANIFEST_SUFFIXES
        return Sources(read_manifest(where, columns), {}) if listed else _match(where)
    path = Path(where)
    if path.is_dir():
        return _walk(path)
    if path.is_file() and suffix in MANIFEST_SUFFIXES:
        return Sources(read_manifest(where, columns), {})
    if path.is_file() and suffix in IMAGE_SUFFIXES:
        return Sources([make_item(where, where)], {})
    if path.exists():
        raise InvalidInput(f"{where}: a file of another kind; {_EXPECTED}")
    if not glob.has_magic(where):
        raise InvalidInput(f"{where}: no such file or directory; {_EXPECTED}")
    return _glob(where)


def _walk(top: Path) -> Sources:
    """Every image of a tree, each directory once, however many links lead to it."""
    items: list[dict[str, str]] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    # What lies in the tree itself comes before what links lead to, so that a file's key is
    # its own path wherever it has one.
    waiting, linked = [top], list[Path]()
    while waiting or linked:
        directory = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(directory)
        if real in seen:
            skipped["directory_seen_before"] += 1
            continue
        seen.add(real)
        for entry in _scan(directory):
            path = directory / entry.name
            if entry.name.startswith("."):
                skipped["hidden"] += 1
            elif path.is_dir():
                (linked if entry.is_symlink() else waiting).append(path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                skipped["no_image_suffix"] += 1
            # A dangling link is no file either, but somebody meant it as one.
            elif path.is_file() or entry.is_symlink():
                items.append(make_item(path.relative_to(top).as_posix(), str(path)))
            else:
                skipped["no_regular_file"] += 1
    return Sources(sorted(items, key=lambda item: item["key"]), dict(sorted(skipped.items())))


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidInput(f"{directory}: cannot be listed ({error.strerror})") from error


def _glob(pattern: str) -> Sources:
    items: list[dict[str, str]] = []
    skipped: Counter[str] = Counter()
    # Path.glob takes no absolute pattern.
    for path in sorted(set(glob.iglob(pattern, recursive=True))):  # noqa: PTH207
        if Path(path).is_dir():
            skipped["directory"] += 1
        else:
            items.append(make_item(path, path))
    return Sources(items, dict(skipped))


def _match(where: str) -> Sources:
    """A glob or a prefix on a Beam filesystem."""
    from apache_beam.io.filesystems import FileSystems

    magic = glob.has_magic(where)
    prefix = where.rstrip("/") + "/"
    try:
        [found] = FileSystems.match([where if magic else prefix + "**"])
    # Each filesystem's client raises errors of its own.
    except Exception as error:
        raise InvalidInput(f"{where}: cannot be listed ({error})") from error
    paths = sorted(metadata.path for metadata in found.metadata_list)
    if magic:
        return Sources([make_item(path, path) for path in paths], {})
    images = [path for path in paths if Path(path).suffix.lower() in IMAGE_SUFFIXES]
    skipped = {"no_image_suffix": len(paths) - len(images)} if len(paths) > len(images) else {}
    return Sources([make_item(path.removeprefix(prefix), path) for path in images], skipped)
