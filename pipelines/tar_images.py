"""Images in tar files: an index of where each member's bytes are, and reading one of them.

Only headers are read for the index, a tar a thread. A member is then one seek and one read.
"""

import glob
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines import storage

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.z")
# How gzip, bzip2, xz and Zstandard begin.
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_THREADS = min(8, 2 * (os.cpu_count() or 1))
_NAMED = 3


class Member(NamedTuple):
    """Where an image's bytes are: the tar's path, the name in it, offset and size in bytes."""

    tar: str
    name: str
    offset: int
    size: int

    @property
    def source(self) -> str:
        """`PATH.tar/MEMBER`, for people."""
        return f"{self.tar}/{self.name}"


class TarIndex(NamedTuple):
    """The members that may be an image of the annotations, of one tar or of several.

    Attributes:
      members: by the name's last part.
      cut: the tars that end early or are damaged, and at which byte.
    """

    members: Mapping[str, list[Member]]
    cut: list[tuple[str, int]]


def is_tar(images: str) -> bool:
    """Whether IMAGES names tar files.

    Raises:
      InvalidInput: compressed ones.
    """
    if images.lower().endswith(_COMPRESSED):
        raise _refuse_compressed(images)
    return images.lower().endswith(".tar")


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
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index-tars") as pool:
        for path, (found, end) in pool.map(partial(_index_tar, wanted=wanted), match_tars(images)):
            for member in found.values():
                members[posixpath.basename(member.name)].append(member)
            cut += [(path, end)] if end is not None else []
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


def read_member(tar: str, offset: int, size: int, max_bytes: int) -> bytes:
    """The bytes of a member, or the first `max_bytes` of a larger one.

    Raises:
      ItemFailure: TRUNCATED, the tar ends within it.
    """
    wanted = min(size, max_bytes)
    with storage.open_read(tar) as file:
        data = _read_at(file, offset, wanted)
    if len(data) < wanted:
        raise ItemFailure(
            Reason.TRUNCATED, f"{tar} ends after {len(data)} of its {size} bytes; make it again"
        )
    return data


def _read_at(file: Any, offset: int, size: int) -> bytes:
    # Beam's buckets fetch 16 MiB at a time, for an image of 100 kB: S3's below this buffer, and
    # GCS's by a size that its reader lets one set.
    file = getattr(file, "raw", file)
    if hasattr(file, "_chunk_size"):
        file._chunk_size = max(size, 1)
    file.seek(offset)
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


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
        message += f"; {path} is cut short or damaged at byte {end}"
    return message


def _index_tar(
    path: str, wanted: frozenset[str]
) -> tuple[str, tuple[dict[str, Member], int | None]]:
    """Members by name, and the byte at which a tar that has no proper end is cut."""
    try:
        with storage.open_read(path) as file:
            return path, _read_headers(path, file, wanted)
    except OSError as error:
        raise InvalidInput(f"images {path}: cannot be read ({error}), expected a tar") from error


def _read_headers(
    path: str, file: BinaryIO, wanted: frozenset[str]
) -> tuple[dict[str, Member], int | None]:
    magic = file.read(6)
    if magic.startswith(_COMPRESSED_MAGIC):
        raise _refuse_compressed(path)
    file.seek(0)
    try:
        tar = tarfile.TarFile(fileobj=file)
    except tarfile.TarError as error:
        raise InvalidInput(
            f"images {path}: no tar ({error}), expected photographs in one"
        ) from error
    found: dict[str, Member] = {}
    for member in _members(tar):
        name = posixpath.normpath(member.name)
        if posixpath.basename(name) not in wanted or member.issparse():
            continue
        # Of a name that comes again the last one counts, as for tar itself.
        if member.isreg():
            found[name] = Member(path, name, member.offset_data, member.size)
        # A file that tar has met before, under another name.
        elif member.islnk() and (linked := found.get(posixpath.normpath(member.linkname))):
            found[name] = linked._replace(name=name)
    end = tar.offset
    file.seek(end)
    # Every tar ends with blocks of zeros.
    return found, None if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE) else end


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every header up to the end or to the first that cannot be read."""
    try:
        while (member := tar.next()) is not None:
            # A damaged size would lead back, for ever.
            if tar.offset <= member.offset:
                tar.offset = member.offset
                return
            yield member
            # A kilobyte each, of which tarfile keeps all.
            tar.members.clear()  # type: ignore[attr-defined]
    # What a damaged header makes its parser raise.
    except (tarfile.TarError, ValueError, OverflowError, LookupError):
        return


def _refuse_compressed(path: str) -> InvalidInput:
    return InvalidInput(
        f"images {path}: a compressed tar, in which no image can be found without unpacking all "
        "before it, expected a plain .tar; unpack it once with gunzip or the like (photographs are "
        "compressed already)"
    )
