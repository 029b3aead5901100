"""What makes splits sound: listed images alone, unique keys, and no image in two of them."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from model.errors import InvalidInput
from pipelines.annotations import COCO_NAME, id_of_name, open_text
from pipelines.jobs import Item
from pipelines.source_flags import Source, SplitList
from pipelines.wording import some_of

# Flickr8k's names say id and secret of a photograph on Flickr, Flickr30k's the id alone.
_FLICKR_NAME = re.compile(r"(?P<id>\d+)(?P<secret>_[0-9a-f]{10})?\.jpg")


class Part(NamedTuple):
    """The images of one split that come from one source."""

    split: str
    source: Source
    items: list[dict[str, Any]]


class SplitLists:
    """Files that name the images of a split, one a line, with or without folder or suffix."""

    def __init__(self, lists: Sequence[SplitList]) -> None:
        """Read the lists; several of one split join.

        Raises:
          InvalidInput: a file is missing or empty.
        """
        self._lists = lists
        self._wanted: dict[str, set[str]] = {}
        self._found: dict[str, set[str]] = {}
        for split_list in lists:
            self._wanted.setdefault(split_list.split, set()).update(_read_list(split_list.path))
            self._found[split_list.split] = set()

    def keeps(self, split: str, name: str) -> bool:
        """Whether an image is listed, or its split has no list."""
        if split not in self._wanted:
            return True
        path = PurePosixPath(name)
        hits = self._wanted[split] & {name, path.name, path.stem}
        self._found[split] |= hits
        return bool(hits)

    def check_found(self) -> None:
        """Raise InvalidInput where a list names images that no source of its split has."""
        for split_list in self._lists:
            split = split_list.split
            if unknown := sorted(self._wanted[split] - self._found[split]):
                raise InvalidInput(
                    f"split_list {split_list.path}: {_count(unknown)} in no source of split "
                    f"{split}, expected images with captions: {some_of(unknown)}; take those lines "
                    "out, or name the source that has them"
                )


def check_keys(parts: Sequence[Part]) -> None:
    """Raise InvalidInput when two sources of a split have an image of the same name.

    Ids are unique within a source alone, on purpose: those of COCO and Flickr overlap. So two
    sources of a split may also give one image one id under two names, which is no leak.
    """
    count = Counter(part.split for part in parts)
    owners: dict[tuple[str, str], Part] = {}
    twice: dict[tuple[str, str, str], list[str]] = {}
    # Within a source its reader has seen to it.
    for part in (part for part in parts if count[part.split] > 1):
        for item in part.items:
            owner = owners.setdefault((part.split, item["key"]), part)
            if owner is not part:
                files = owner.source.annotations, part.source.annotations
                twice.setdefault((part.split, *files), []).append(item["key"])
    for (split, first, second), keys in twice.items():
        raise InvalidInput(
            f"split {split}: {_count(keys)} in both {first} and {second}, expected each name once: "
            f"{some_of(keys)}; leave one of the sources out, or restrict the split with "
            "--split_list"
        )


def check_disjoint(parts: Sequence[Part]) -> None:
    """Raise InvalidInput when an image is in two splits, under whatever name.

    The same are: one file; one base name with one id of the source; COCO's 2014 and 2017 names of
    a photograph; names with one Flickr id, of which at least one has a secret.
    """
    if len({part.split for part in parts}) == 1:
        return
    flickr_ids = _flickr_ids(parts)
    seen: dict[object, tuple[str, Item]] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        for item in part.items:
            for identity in _identities(item, flickr_ids):
                split, other = seen.setdefault(identity, (part.split, item))
                if split != part.split:
                    shared.setdefault((split, part.split), []).append(_both(other, item))
                    break
    for (first, second), images in shared.items():
        raise InvalidInput(
            f"{_count(images)} in splits {first} and {second}, expected each in one: "
            f"{some_of(images)}; a captioner must not be scored on what it learned from, so leave "
            "them out of one split, with --split_list"
        )


def _read_list(path: str) -> set[str]:
    with open_text(path, "image names, one a line") as file:
        names = {line.strip() for line in file if line.strip()}
    if not names:
        raise InvalidInput(f"split_list {path}: empty, expected image names, one a line")
    return names


def _flickr_ids(parts: Sequence[Part]) -> set[str]:
    """The Flickr ids of names with a secret; digits alone may be a number of any data set."""
    names = (_base_name(item) for part in parts for item in part.items)
    matches = map(_FLICKR_NAME.fullmatch, names)
    return {match["id"] for match in matches if match and match["secret"]}


def _identities(item: Item, flickr_ids: Set[str]) -> Iterator[object]:
    name, image_id = _base_name(item), item["image_id"]
    id_is_given = image_id != id_of_name(item["key"])
    yield posixpath.normpath(item["source"])
    # An id that is made of the name adds nothing to it, and any data set may have a 0.jpg.
    if id_is_given:
        yield name, image_id
    coco = COCO_NAME.fullmatch(name)
    # Nor does it say anything against the digits.
    if coco and (coco["prefix"] or not id_is_given or image_id == int(coco["id"])):
        yield int(coco["id"])
    flickr = _FLICKR_NAME.fullmatch(name)
    if flickr and flickr["id"] in flickr_ids:
        yield "flickr", flickr["id"]


def _base_name(item: Item) -> str:
    name: str = item["key"].rpartition("/")[2]
    return name


def _both(one: Item, other: Item) -> str:
    """An image's id, and the names that it has in both splits."""
    return f"{other['image_id']} ({', '.join(dict.fromkeys((one['key'], other['key'])))})"


def _count(names: Sequence[str]) -> str:
    return "1 image" if len(names) == 1 else f"{len(names)} images"
