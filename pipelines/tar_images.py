"""The members of tar files that are the images of annotations."""

import glob
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from model.errors import InvalidInput
from pipelines import storage, tar_names
from pipelines.tar_files import THREADS, Index, Member, cut_message, index_tar

_NAMED = 3


class TarIndex(NamedTuple):
    """The members that may be an image of the annotations, of one tar or of several.

    Attributes:
      members: by the name's last part.
      cut: the tars that end early or are damaged, and at which byte.
    """

    members: Mapping[str, list[Member]]
    cut: list[tuple[str, int]]


def is_tar(images: str) -> bool:
    """Whether IMAGES names tar files; raises InvalidInput for compressed ones."""
    with _named_images():
        return tar_names.is_tar(images)


def match_tars(images: str) -> list[str]:
    """Paths of the tar files that IMAGES names, in order.

    Raises:
      InvalidInput: there is none, or they cannot be listed.
    """
    try:
        paths = sorted(storage.match(images) if glob.has_magic(images) else [images])
    # Each filesystem's client raises errors of its own.
    except Exception as error:
        raise InvalidInput(f"images {images}: cannot be listed ({error})") from error
    if not paths:
        raise InvalidInput(f"images {images}: no file matches, expected tar files of photographs")
    return paths


def index_tars(images: str, names: Collection[str]) -> TarIndex:
    """Find the members that may be one of the named images; reads no image.

    Raises:
      InvalidInput: a file is missing, no tar, or compressed.
    """
    wanted = frozenset(map(posixpath.basename, names))
    members: dict[str, list[Member]] = defaultdict(list)
    cut = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="index-tars") as pool:
        paths = match_tars(images)
        for path, index in zip(paths, pool.map(partial(_index, wanted), paths), strict=True):
            for member in index.members.values():
                members[posixpath.basename(member.name)].append(member)
            cut += [(path, index.cut)] if index.cut is not None else []
    return TarIndex(members, cut)


def locate(images: str, index: TarIndex, names: Collection[str]) -> Iterator[Member | str]:
    """For every name its member, or why there is none.

    A name is that of the member, or one of both is the end of the other: `1.jpg` finds
    `photos/1.jpg`.

    Raises:
      InvalidInput: several members have a name, or several names lead to one member.
    """
    found = {name: _candidates(index, name) for name in names}
    if many := {name: members for name, members in found.items() if len(members) > 1}:
        shown = "; ".join(
            f"{name} is {' and '.join(member.source for member in members)}"
            for name, members in sorted(many.items())[:_NAMED]
        )
        raise InvalidInput(
            f"images {images}: several members for {len(many)} of the names: {shown}; leave one of "
            "the tars out, or name the images with their folder in the annotations"
        )
    taken: dict[Member, str] = {}
    for name, members in found.items():
        for member in members:
            if (other := taken.setdefault(member, name)) != name:
                raise InvalidInput(
                    f"images {images}: {other} and {name} are both {member.source}, expected a "
                    "member each"
                )
    missing = _missing(index)
    return (found[name][0] if found[name] else missing for name in names)


def _candidates(index: TarIndex, name: str) -> list[Member]:
    members = index.members.get(posixpath.basename(name), [])
    exact = [member for member in members if member.name == name]
    return exact or [member for member in members if _is_end(name, member.name)]


def _is_end(one: str, other: str) -> bool:
    """Whether the shorter path is the end of the longer one."""
    parts, others = PurePosixPath(one).parts, PurePosixPath(other).parts
    length = min(len(parts), len(others))
    return parts[-length:] == others[-length:]


def _missing(index: TarIndex) -> str:
    message = "no member of this name in the tar files, expected an image"
    if index.cut:
        path, end = index.cut[0]
        message += f"; {path} {cut_message(end)}"
    return message


def _index(wanted: frozenset[str], path: str) -> Index:
    def is_wanted(member: tarfile.TarInfo) -> bool:
        return posixpath.basename(posixpath.normpath(member.name)) in wanted

    with _named_images():
        return index_tar(path, is_wanted)


@contextmanager
def _named_images() -> Iterator[None]:
    """Say in a message which argument names the tar."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"images {error}") from error
