"""Tar files: an index of where each member's bytes are, and reading one of them.

Only headers are read for the index. A member is then one seek and one read.
"""

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines import storage
from pipelines.tar_names import compressed_tar

THREADS = min(8, 2 * (os.cpu_count() or 1))
"""Tars that are indexed at once."""
# How gzip, bzip2, xz and Zstandard begin.
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
# A tar is filled up with zeros to a multiple of its record, which is rarely larger.
_LARGEST_RECORD = 2**20


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


class Index(NamedTuple):
    """What was wanted of a tar.

    Attributes:
      members: by name; of a name that comes again the last one counts, as for tar itself.
      replaced: how many of the members before such last ones are passed over.
      dangling: names of hard links to what is not among them.
      cut: the byte at which the tar ends early or is damaged, or None.
    """

    members: dict[str, Member]
    replaced: int
    dangling: list[str]
    cut: int | None


def index_tar(path: str, wanted: Callable[[tarfile.TarInfo], bool]) -> Index:
    """Read the headers of a tar.

    Args:
      path: of the tar.
      wanted: whether the index shall have a member.

    Raises:
      InvalidInput: it cannot be read, is no tar, or compressed.
    """
    try:
        with storage.open_read(path) as file:
            return _read_headers(path, file, wanted)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error}), expected a tar") from error


def cut_message(end: int) -> str:
    """What is wrong with a tar that is cut."""
    return f"is cut short or damaged at byte {end}"


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


def _read_headers(path: str, file: BinaryIO, wanted: Callable[[tarfile.TarInfo], bool]) -> Index:
    magic = file.read(6)
    if magic.startswith(_COMPRESSED_MAGIC):
        raise compressed_tar(path)
    file.seek(0)
    try:
        tar = tarfile.TarFile(fileobj=file)
    except tarfile.TarError as error:
        raise InvalidInput(f"{path}: no tar ({error}), expected photographs in one") from error
    found: dict[str, Member] = {}
    replaced, dangling = 0, []
    for member in _members(tar):
        if not wanted(member) or member.issparse():
            continue
        name = posixpath.normpath(member.name)
        if member.isreg():
            here = Member(path, name, member.offset_data, member.size)
        # A file that tar has met before, under another name.
        elif member.islnk():
            linked = found.get(posixpath.normpath(member.linkname))
            if linked is None:
                dangling.append(name)
                continue
            here = linked._replace(name=name)
        else:
            continue
        replaced += name in found
        found[name] = here
    return Index(found, replaced, dangling, None if _has_end(file, tar.offset) else tar.offset)


def _has_end(file: BinaryIO, end: int) -> bool:
    """Whether nothing but blocks of zeros follows: every tar ends so, and only there."""
    file.seek(end)
    rest = file.read(_LARGEST_RECORD)
    return len(rest) >= tarfile.BLOCKSIZE and not rest.strip(b"\0") and not file.read(1)


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
