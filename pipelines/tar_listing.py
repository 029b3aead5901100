"""The images in tar files, WebDataset's shards or others, each read by its offset later."""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

from pipelines.image_files import DAMAGED, MISSING, TAR
from pipelines.listing import STATE, Found, is_image, make_item
from pipelines.tar_files import Member, cut_message, index_tar
from pipelines.tree_walk import Elsewhere, Listed, find


class _Nodes:
    """A node is the item of a tar, whose members it has."""

    # A read for each member's header.
    weight: ClassVar[int] = 100

    def opened(self) -> Callable[[Any], Listed]:
        return _index


def list_members(
    tars: Iterable[Found], skipped: Counter[str], elsewhere: Elsewhere | None = None
) -> Iterator[Found]:
    """Every image member of the tars; key and source are `PATH.tar/MEMBER`.

    Of a tar that is cut short or damaged the members before are items, and so is the tar
    itself: it fails, for what comes after is not known.

    Args:
      tars: the tar files.
      skipped: counts the members that are passed over, by kind.
      elsewhere: as of tree_walk.walk.

    Raises:
      InvalidInput: a file that cannot be read, is no tar, or compressed.
    """
    yield from find((found.item for found in tars), _Nodes(), skipped, elsewhere)


def _index(tar: dict[str, Any]) -> Listed:
    skipped: Counter[str] = Counter()
    path, state = tar["source"], tar.get(STATE)
    index = index_tar(path, partial(_is_wanted, skipped))
    if index.replaced:
        skipped["replaced_in_tar"] = index.replaced
    items = [_member_item(member, state) for member in index.members.values()]
    for name in index.dangling:
        item = make_item(f"{path}/{name}", f"{path}/{name}", state)
        items.append(
            {**item, MISSING: "a hard link to what is no image of this tar, expected an image"}
        )
    if index.cut is not None:
        message = f"{cut_message(index.cut)}, so that members may be missing; make it again"
        items.append({**make_item(path, path, state), DAMAGED: message})
    return Listed(items, skipped)


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
