"""The images in tar files, WebDataset's shards or others, each read by its offset later."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from pipelines.image_files import DAMAGED, MISSING, TAR
from pipelines.listing import STATE, Found, is_image, loaded_ahead, make_item
from pipelines.tar_files import Member, cut_message, index_tar


def list_members(tars: Iterable[Found], skipped: Counter[str]) -> Iterator[Found]:
    """Every image member of the tars; key and source are `PATH.tar/MEMBER`.

    Of a tar that is cut short or damaged the members before are items, and so is the tar
    itself: it fails, for what comes after is not known.

    Args:
      tars: the tar files.
      skipped: counts the members that are passed over, by kind.

    Raises:
      InvalidInput: a file that cannot be read, is no tar, or compressed.
    """
    for listed, others in loaded_ahead((found.item for found in tars), _index):
        skipped.update(others)
        yield from listed


def _index(tar: dict[str, Any]) -> tuple[list[Found], Counter[str]]:
    skipped: Counter[str] = Counter()
    path, state = tar["source"], tar.get(STATE)
    index = index_tar(path, partial(_is_wanted, skipped))
    if index.replaced:
        skipped["replaced_in_tar"] = index.replaced
    found = [Found(_member_item(member, state)) for member in index.members.values()]
    for name in index.dangling:
        item = make_item(f"{path}/{name}", f"{path}/{name}", state)
        message = "a hard link to what is no image of this tar, expected an image"
        found.append(Found({**item, MISSING: message}))
    if index.cut is not None:
        message = f"{cut_message(index.cut)}, so that members may be missing; make it again"
        found.append(Found({**make_item(path, path, state), DAMAGED: message}))
    return found, skipped


def _member_item(member: Member, state: str | None) -> dict[str, Any]:
    of_member = None if state is None else f"{state}@{member.offset}"
    item = make_item(member.source, member.source, of_member)
    return {**item, TAR: [member.tar, member.offset, member.size]}


def _is_wanted(skipped: Counter[str], member: tarfile.TarInfo) -> bool:
    name = posixpath.basename(posixpath.normpath(member.name))
    if member.isdir():
        return False
    if name.startswith("."):
        kind = "hidden"
    elif not is_image(name):
        kind = "no_image_suffix"
    elif not (member.isreg() or member.islnk()) or member.issparse():
        kind = "no_regular_file"
    else:
        return True
    skipped[kind] += 1
    return False
