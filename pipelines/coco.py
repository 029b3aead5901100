"""Annotation files and images of all sources → images with their captions, by split.

Ids and file names stay those of the source (pipelines/annotation_formats lists the formats).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.errors import InvalidInput, ItemFailure, Reason
from model.vocabulary import tokenise
from pipelines.annotation_formats import read_annotations
from pipelines.annotations import AnnotatedImage, Annotations, Columns, is_unicode
from pipelines.image_files import MISSING, TAR
from pipelines.jobs import Item
from pipelines.karpathy import RESTVAL, TRAIN, Assignment, read_karpathy
from pipelines.source_flags import Source, SplitList
from pipelines.splits import Part, SplitLists, check_disjoint, check_keys
from pipelines.tar_images import Member, index_tars, is_tar, locate


@dataclass(frozen=True)
class Selection:
    """Which images of the sources go where.

    Attributes:
      karpathy: dataset_*.json whose splits replace those of sources that name one.
      join_restval: whether Karpathy's `restval` becomes part of `train`.
      lists: files that name the images of a split; the others of its sources are left out.
      columns: where tables keep what.
    """

    karpathy: str | None = None
    join_restval: bool = False
    lists: tuple[SplitList, ...] = ()
    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True)
class Inputs:
    """What the annotation files hold.

    Attributes:
      splits: items by split: key (the file name), source (the path), image_id, and captions
        as (annotation id, caption) in the file's order; a caption may be any JSON value, a list
        or object stands empty. An image in a tar has where it is (pipelines/image_files).
      images: images of all annotation files; one that two sources have counts twice.
      skipped: of these, those without annotations, unnamed by Karpathy, or not in their list.
      captions: annotations in all, whatever became of them.
      skipped_captions: annotations of skipped images.
      orphans: failure rows of annotations whose image is not in the file.
    """

    splits: Mapping[str, list[Item]]
    images: int
    skipped: int
    captions: int
    skipped_captions: int
    orphans: tuple[dict[str, str], ...]


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


def read_inputs(
    sources: Sequence[Source], selection: Selection | None = None, stage: str = ""
) -> Inputs:
    """Read and check annotation files.

    Args:
      sources: annotation files and where their images are.
      selection: which of the images go where.
      stage: what failure rows call this stage.

    Raises:
      InvalidInput: a file that is missing or none of annotations, an id or file name twice, a
        source of which no image is left, or an image in two splits.
    """
    selection = selection or Selection()
    reading = _Reading(selection, stage)
    for source in sources:
        reading.read(source)
    reading.lists.check_found()
    _check_filled(reading.parts, sources, selection)
    check_keys(reading.parts)
    _find_in_tars(reading.parts)
    check_disjoint(reading.parts)
    splits: dict[str, list[Item]] = {}
    for part in reading.parts:
        splits.setdefault(part.split, []).extend(part.items)
    counts = reading.counts
    return Inputs(
        splits,
        counts["images"],
        counts["skipped"],
        counts["captions"],
        counts["skipped_captions"],
        tuple(reading.orphans),
    )


class _Reading:
    """Reads one source after the other into parts, and counts what is left out."""

    def __init__(self, selection: Selection, stage: str) -> None:
        self.lists = SplitLists(selection.lists)
        self.parts: list[Part] = []
        self.orphans: list[dict[str, str]] = []
        self.counts: Counter[str] = Counter()
        self._selection, self._stage = selection, stage
        karpathy = selection.karpathy
        self._assignment = None if karpathy is None else Assignment(karpathy)

    def read(self, source: Source) -> None:
        """Add the parts of one source."""
        if source.split is None:
            annotations = read_karpathy(source.annotations)
        else:
            annotations = read_annotations(source.annotations, self._selection.columns)
        self._add_orphans(source, annotations)
        parts: dict[str, Part] = {}
        for image in annotations.images:
            captions = len(image.captions)
            self.counts.update(images=1, captions=captions)
            split = self._split_of(source, image)
            if split is None or not captions or not self.lists.keeps(split, image.name):
                self.counts.update(skipped=1, skipped_captions=captions)
            else:
                part = parts.setdefault(split, Part(split, source, []))
                part.items.append(_item(source, image))
        self.parts += parts.values()

    def _split_of(self, source: Source, image: AnnotatedImage) -> str | None:
        split = source.split
        if split is None:
            split = image.split
        elif self._assignment is not None:
            split = self._assignment.split_of(image)
        return TRAIN if split == RESTVAL and self._selection.join_restval else split

    def _add_orphans(self, source: Source, annotations: Annotations) -> None:
        self.counts["captions"] += len(annotations.orphans)
        self.orphans += (
            {
                "key": f"annotation {annotation_id}",
                "source": source.annotations,
                "stage": self._stage,
                "reason": str(Reason.UNKNOWN_IMAGE),
                "message": f"image_id {image_id}, expected one of the file's images",
            }
            for annotation_id, image_id in annotations.orphans
        )


def _item(source: Source, image: AnnotatedImage) -> dict[str, Any]:
    return {
        "key": image.name,
        "source": f"{source.images}/{image.path or image.name}",
        "image_id": image.image_id,
        "captions": image.captions,
    }


def _check_filled(parts: Sequence[Part], sources: Sequence[Source], selection: Selection) -> None:
    """Raise InvalidInput when a source has no image with captions in any split."""
    filled = {part.source for part in parts}
    for source in sources:
        if source in filled:
            continue
        needs, remedies = ["captions"], ["leave this source out"]
        # A source without a split has Karpathy's splits in its own file.
        if source.split is not None and selection.karpathy is not None:
            needs.append(f"a split in {selection.karpathy}")
            remedies.append("run without --karpathy")
        if selection.lists:
            needs.append("a line in its split's list")
            remedies.append("add its images to --split_list")
        raise InvalidInput(
            f"{source.annotations}: no image has {' and '.join(needs)}, expected at least one; "
            f"{', or '.join(remedies)}"
        )


def _find_in_tars(parts: Sequence[Part]) -> None:
    """Say in each item where in which tar its image is; the headers of a tar are read once."""
    by_images: dict[str, list[Part]] = {}
    for part in parts:
        if is_tar(part.source.images):
            by_images.setdefault(part.source.images, []).append(part)
    for images, group in by_images.items():
        paths = [
            [item["source"].removeprefix(f"{images}/") for item in part.items] for part in group
        ]
        index = index_tars(images, {path for names in paths for path in names})
        for part, names in zip(group, paths, strict=True):
            for item, found in zip(part.items, locate(images, index, names), strict=True):
                if isinstance(found, Member):
                    item["source"] = found.source
                    item[TAR] = [found.tar, found.offset, found.size]
                else:
                    item[MISSING] = found
