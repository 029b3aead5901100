"""Reads the flags that name sources: --split, --karpathy and --split_list."""

import re
from dataclasses import dataclass

from model.errors import InvalidInput
from pipelines import storage
from pipelines.annotation_formats import SUFFIXES

# A known suffix ends the annotation file's name; both paths may be URLs, which have colons.
_FILE = rf"(?:(?P<known>.+?(?:{'|'.join(map(re.escape, SUFFIXES))}))|(?P<any>.+?))"
_IMAGES = r":(?!//)(?P<images>.+)"
_SPLIT = re.compile(rf"(?P<name>\w+)={_FILE}{_IMAGES}")
_KARPATHY = re.compile(rf"{_FILE}(?:{_IMAGES})?")
_LIST = re.compile(r"(?P<name>\w+)=(?P<any>.+)")


@dataclass(frozen=True)
class Source:
    """An annotation file and where its images are.

    Attributes:
      split: the split of its images; None where the file says so itself (Karpathy's).
      annotations: path of the annotation file.
      images: prefix of the images' paths, or a `.tar` file or glob of them.
    """

    split: str | None
    annotations: str
    images: str


@dataclass(frozen=True)
class SplitList:
    """A file with the names of a split's images, one a line."""

    split: str
    path: str


def parse_source(text: str) -> Source:
    """Read `NAME=FILE:IMAGES`; either path may be a URL such as gs://bucket/x.

    Raises:
      InvalidInput: not of that form.
    """
    match = _SPLIT.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"--split {text}, expected NAME=ANNOTATIONS.json:IMAGES with a NAME of letters, "
            "digits and _, for example train=captions_train2017.json:train2017"
        )
    return Source(match["name"], _file(match), _images(match))


def parse_karpathy(text: str) -> Source | str:
    """Read `FILE:IMAGES`, a source, or `FILE`, the path of splits for other sources."""
    match = _KARPATHY.fullmatch(text)
    if match is None:
        raise InvalidInput(f"--karpathy {text!r}, expected FILE or FILE:IMAGES")
    return Source(None, _file(match), _images(match)) if match["images"] else _file(match)


def parse_split_list(text: str) -> SplitList:
    """Read `NAME=FILE`; raises InvalidInput where it is not of that form."""
    match = _LIST.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"--split_list {text}, expected NAME=FILE, for example train=Flickr_8k.trainImages.txt"
        )
    return SplitList(match["name"], storage.absolute_path(match["any"]))


def _file(match: re.Match[str]) -> str:
    return storage.absolute_path(match["known"] or match["any"])


def _images(match: re.Match[str]) -> str:
    return storage.absolute_path(match["images"]).rstrip("/")
