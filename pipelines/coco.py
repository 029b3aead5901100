"""COCO captions JSON → images with their captions, by split.

Ids and file names stay those of the source (2014 and 2017 layouts).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pycocotools.coco import COCO

from model.errors import InvalidInput, ItemFailure, Reason
from model.vocabulary import tokenise
from pipelines import storage
from pipelines.annotations import check_unique, index_captions, is_unicode, read_json
from pipelines.jobs import Item

_NAME = re.compile(r"\w+")
_SPLIT = re.compile(r"(?P<name>\w+)=(?:(?P<json>.+?\.json)|(?P<any>.+?)):(?!//)(?P<images>.+)")


@dataclass(frozen=True)
class Source:
    """One `--split`: its name, the annotation file, and the prefix of its images' paths."""

    split: str
    annotations: str
    images: str


@dataclass(frozen=True)
class Inputs:
    """What the annotation files hold.

    Attributes:
      splits: items by split: key (the file name), source (the path), image_id, and captions
        as [annotation id, caption] in the file's order; a caption may be any JSON value, a list
        or object stands empty.
      uncaptioned: images without annotations.
      unassigned: images that Karpathy's file does not name.
      captions: annotations in all, whatever became of them.
      unassigned_captions: annotations of unassigned images.
      orphans: failure rows of annotations whose image is not in the file.
    """

    splits: Mapping[str, list[Item]]
    uncaptioned: int
    unassigned: int
    captions: int
    unassigned_captions: int
    orphans: tuple[dict[str, str], ...]

    @property
    def images(self) -> int:
        """Images of all annotation files."""
        return sum(map(len, self.splits.values())) + self.uncaptioned + self.unassigned


def parse_source(text: str) -> Source:
    """Read `NAME=ANNOTATIONS.json:IMAGES`; either path may be a URL such as gs://bucket/x.

    Raises:
      InvalidInput: not of that form.
    """
    match = _SPLIT.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"--split {text}, expected NAME=ANNOTATIONS.json:IMAGES with a NAME of letters, "
            "digits and _, for example train=captions_train2017.json:train2017"
        )
    annotations = match["json"] or match["any"]
    return Source(
        match["name"],
        storage.absolute_path(annotations),
        storage.absolute_path(match["images"]).rstrip("/"),
    )


def words_of(annotation_id: int, caption: object) -> list[str]:
    """The words of a caption.

    Raises:
      ItemFailure: INVALID_CAPTION, it is no string or has no words.
    """
    if not isinstance(caption, str):
        found = f"a caption of type {type(caption).__name__}"
    elif not is_unicode(caption):
        found = f"caption {caption!a} with half a character"
    elif words := tokenise(caption):
        return words
    else:
        found = f"caption {caption!r} without words"
    raise ItemFailure(
        Reason.INVALID_CAPTION, f"annotation {annotation_id}: {found}, expected a sentence"
    )


def read_inputs(sources: Sequence[Source], karpathy: str | None = None, stage: str = "") -> Inputs:
    """Read and check annotation files.

    Args:
      sources: one a split.
      karpathy: Karpathy's dataset_*.json, whose splits then replace those of `sources`.
      stage: what failure rows call this stage.

    Raises:
      InvalidInput: a file that is missing or not COCO captions, an id or file name twice, or
        an image in two splits.
    """
    assignment = None if karpathy is None else _Karpathy(karpathy)
    splits: dict[str, list[Item]] = {}
    counts: Counter[str] = Counter()
    orphans: list[dict[str, str]] = []
    for source in sources:
        coco = index_captions(source.annotations)
        counts["captions"] += len(coco.anns)
        orphans += _orphans(coco, source, stage)
        for item in _items(coco, source):
            captions = len(item["captions"])
            split = source.split if assignment is None else assignment.split_of(item)
            if split is None:
                counts["unassigned"] += 1
                counts["unassigned_captions"] += captions
            elif not captions:
                counts["uncaptioned"] += 1
            else:
                splits.setdefault(split, []).append(item)
    _check_splits(splits, (source.split for source in sources if assignment is None), karpathy)
    return Inputs(
        splits,
        counts["uncaptioned"],
        counts["unassigned"],
        counts["captions"],
        counts["unassigned_captions"],
        tuple(orphans),
    )


class _Karpathy:
    """Karpathy's splits: by COCO id where the file gives one, else by file name."""

    def __init__(self, path: str) -> None:
        content = read_json(path, "Karpathy's dataset JSON")
        images = content.get("images") if isinstance(content, dict) else None
        if not isinstance(images, list) or not images:
            raise InvalidInput(f"{path}: no list of images, expected Karpathy's dataset JSON")
        self._by_id: dict[int, str] = {}
        self._by_name: dict[str, str] = {}
        for position, image in enumerate(images):
            fields = image if isinstance(image, dict) else {}
            name, split = fields.get("filename"), fields.get("split")
            if not (isinstance(name, str) and isinstance(split, str) and _NAME.fullmatch(split)):
                raise InvalidInput(
                    f"{path}: images[{position}] without filename or split, expected Karpathy's "
                    "dataset JSON"
                )
            if self._by_name.setdefault(name, split) != split:
                raise InvalidInput(f"{path}: {name} in two splits, expected each image in one")
            if isinstance(fields.get("cocoid"), int):
                self._by_id[fields["cocoid"]] = split

    def split_of(self, item: Item) -> str | None:
        """The split of an image, or None when the file does not name it."""
        # Ids of other data sets mean nothing here, so names decide where no COCO ids are given.
        if self._by_id:
            return self._by_id.get(item["image_id"])
        return self._by_name.get(item["key"].rpartition("/")[2])


def _items(coco: COCO, source: Source) -> Iterator[Item]:
    for image_id, image in coco.imgs.items():
        yield {
            "key": image["file_name"],
            "source": f"{source.images}/{image['file_name']}",
            "image_id": image_id,
            "captions": [
                [annotation["id"], _shallow(annotation.get("caption"))]
                for annotation in coco.imgToAnns.get(image_id, ())
            ],
        }


def _shallow(caption: object) -> object:
    # Only the type of what is no sentence is told; what nests deeply cannot be written again.
    return type(caption)() if isinstance(caption, list | dict) else caption


def _orphans(coco: COCO, source: Source, stage: str) -> Iterator[dict[str, str]]:
    for annotation in coco.anns.values():
        if annotation["image_id"] not in coco.imgs:
            yield {
                "key": f"annotation {annotation['id']}",
                "source": source.annotations,
                "stage": stage,
                "reason": str(Reason.UNKNOWN_IMAGE),
                "message": f"image_id {annotation['image_id']}, expected one of the file's images",
            }


def _check_splits(
    splits: Mapping[str, list[Item]], expected: Iterable[str], karpathy: str | None
) -> None:
    if karpathy is not None and not splits:
        raise InvalidInput(f"{karpathy}: names none of the images of the annotation files")
    for split in expected:
        if split not in splits:
            raise InvalidInput(f"split {split} has no image with captions, expected at least one")
    seen: dict[tuple[str, object], str] = {}
    for split, items in splits.items():
        for what in ("key", "image_id"):
            check_unique((item[what] for item in items), f"split {split}: {what}")
        for item in items:
            # The same file, or the same image of the source in a copy of its folder.
            for identity in (("file", item["source"]), (item["key"], item["image_id"])):
                if (other := seen.setdefault(identity, split)) != split:
                    raise InvalidInput(
                        f"image {item['image_id']} ({item['key']}) is in splits {other} and "
                        f"{split}, expected each image in one; a captioner must not be scored on "
                        "what it learned from"
                    )
