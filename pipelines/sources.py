"""Where bulk captioning takes its images from: directories, globs, tars and manifests → items.

An item has "key" and "source": `source` is a path or URL, `key` names the image in the output
and is unique.

  directory   image files of the whole tree; key: path relative to the directory
  glob        every file that matches; key: the path
  image       key: the path
  tar         image members of a .tar, or of a glob of them; key: `PATH.tar/MEMBER`
  manifest    a list of URLs or paths (pipelines/manifest_rows); key: the id column, else the
              URL or path as it stands there

Keys that come again get "#2", "#3" …, except ids, which must come once. Of several inputs the
keys of directories and manifests have the input's name in front (pipelines/input_names).
Relative paths in a manifest are relative to it. All may lie on a Beam filesystem (`gs://…`),
where a directory is a prefix. A file name that is no UTF-8 stands with escapes and so fails as
missing.
"""

import glob
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from model.errors import InvalidInput
from pipelines.columns import Columns
from pipelines.input_names import name_inputs
from pipelines.listing import IMAGE_SUFFIXES, Found, encodable, is_image, scheme
from pipelines.local_listing import list_directory, list_file, list_glob
from pipelines.manifest_rows import MANIFEST_SUFFIXES, TABLE_SUFFIXES, manifest_kind
from pipelines.manifests import read_manifest
from pipelines.tar_names import is_tar
from pipelines.tree_walk import Elsewhere

_EXPECTED = (
    f"expected a directory, a glob or a manifest ({', '.join(MANIFEST_SUFFIXES)}, .gz), or .tar"
)


class _Input(NamedTuple):
    """An input: where, what lists it and counts what it passes over, and whose keys it has."""

    where: str
    read: Callable[[Counter[str]], Iterator[Found]]
    has_own_keys: bool


class Sources:
    """Items of one or several inputs, found as they are asked for; their keys may come again.

    Attributes:
      skipped: what was passed over, by kind; whole when the iteration has come to its end.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        columns: Columns | None = None,
        elsewhere: Elsewhere | None = None,
        own: Sequence[str] = (),
    ) -> None:
        """Looks at what each input is.

        Args:
          inputs: directories, globs, tars or manifests.
          columns: where a manifest keeps what.
          elsewhere: lists what is left of a large tree; None where this process lists all.
          own: directories of the job's results, which are no inputs though links may lead there.

        Raises:
          InvalidInput: one is not there or of no known kind, or comes twice.
        """
        for where, times in Counter(inputs).items():
            if times > 1:
                raise InvalidInput(f"--input {where} {where}: the same input twice; give it once")
        real = {str(Path(path).resolve()) for path in own if scheme(path) is None}
        columns = columns or Columns()
        self._inputs = [_look_at(where, columns, elsewhere, real) for where in inputs]
        named = [known.where for known in self._inputs if known.has_own_keys]
        names = name_inputs(named) if len(self._inputs) > 1 else []
        self._names = dict(zip(named, map(encodable, names), strict=False))
        self.skipped: dict[str, int] = {}

    def __iter__(self) -> Iterator[Found]:
        """Lists the inputs anew; InvalidInput where one has no image or cannot be read."""
        skipped: Counter[str] = Counter()
        for where, read, _ in self._inputs:
            name, passed, is_empty = self._names.get(where), Counter[str](), True
            for found in read(passed):
                is_empty = False
                if name:
                    found.item["key"] = f"{name}/{found.item['key']}"
                yield found
            if is_empty:
                raise _no_image(where, passed)
            skipped.update(passed)
        self.skipped = dict(sorted(skipped.items()))


def has_columns(where: str) -> bool:
    """Whether an input would be read as a manifest with columns."""
    if manifest_kind(where) not in TABLE_SUFFIXES:
        return False
    path = Path(where)
    return bool(scheme(where)) or path.is_file() or not (path.is_dir() or glob.has_magic(where))


def _look_at(
    where: str, columns: Columns, elsewhere: Elsewhere | None, own: Collection[str]
) -> _Input:
    path = Path(where)
    if scheme(where) in ("http", "https"):
        raise InvalidInput(f"{where}: a URL; {_EXPECTED} that lists URLs, or `captionbeam caption`")
    if scheme(where):
        return _look_at_bucket(where, columns, elsewhere)
    if path.is_dir():
        return _Input(where, partial(list_directory, where, elsewhere=elsewhere, own=own), True)
    if path.is_file() and manifest_kind(where):
        return _Input(where, lambda _: read_manifest(where, columns), True)
    if path.exists():
        if is_tar(where):
            return _Input(where, partial(_members, lambda _: list_file(where), elsewhere), False)
        if path.is_file() and is_image(where):
            return _Input(where, lambda _: list_file(where), False)
        raise InvalidInput(f"{where}: a file of another kind; {_EXPECTED}")
    if not glob.has_magic(where):
        raise InvalidInput(f"{where}: no such file or directory; {_EXPECTED}")
    listed = partial(list_glob, where, elsewhere=elsewhere, own=own)
    return _Input(where, partial(_members, listed, elsewhere) if is_tar(where) else listed, False)


def _look_at_bucket(where: str, columns: Columns, elsewhere: Elsewhere | None) -> _Input:
    # Beam takes seconds to load, and a local input needs none of it.
    from pipelines import storage
    from pipelines.bucket_listing import list_glob as list_bucket_glob
    from pipelines.bucket_listing import list_object, list_prefix

    storage.check_filesystem(where, "--input")
    if manifest_kind(where) and not glob.has_magic(where):
        return _Input(where, lambda _: read_manifest(where, columns), True)
    list_objects = list_bucket_glob if glob.has_magic(where) else list_object
    listed = partial(list_objects, where, elsewhere=elsewhere)
    if is_tar(where):
        return _Input(where, partial(_members, listed, elsewhere), False)
    if glob.has_magic(where) or is_image(where):
        return _Input(where, listed, False)
    return _Input(where, partial(list_prefix, where, elsewhere=elsewhere), True)


def _members(
    tars: Callable[[Counter[str]], Iterator[Found]],
    elsewhere: Elsewhere | None,
    skipped: Counter[str],
) -> Iterator[Found]:
    """The image members of the tars that a listing finds."""
    from pipelines.tar_listing import list_members

    return list_members(tars(skipped), skipped, elsewhere)


def _no_image(where: str, skipped: Counter[str]) -> InvalidInput:
    passed = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    return InvalidInput(
        f"{where}: no image in it ({passed or 'it is empty'}); {_EXPECTED} "
        f"with {', '.join(sorted(IMAGE_SUFFIXES))} files or URLs"
    )
