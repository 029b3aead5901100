"""Karpathy's dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json.

Either a source of its own, with captions and splits, or only the splits of the images that
other annotation files have.
"""

import re
from typing import Any

from model.errors import InvalidInput
from pipelines.annotations import (
    AnnotatedImage,
    Annotations,
    check_field,
    check_unique,
    photograph_of,
    shallow,
)
from pipelines.json_stream import Handler, read_lists

TRAIN, RESTVAL = "train", "restval"
_EXPECTED = "Karpathy's dataset JSON"
_NAME = re.compile(r"\w+")


def read_karpathy(path: str) -> Annotations:
    """Read images with captions and splits; `filepath`, where given, is the images' folder.

    Raises:
      InvalidInput: missing, not JSON, not Karpathy's, or with a name or id twice.
    """
    images: list[AnnotatedImage] = []

    def add(position: int, entry: Any) -> None:
        name, split = _name_and_split(path, position, entry)
        where = f"{path}: images[{position}]"
        id_field = "cocoid" if "cocoid" in entry else "imgid"
        check_field(entry, id_field, int, where)
        folder = entry.get("filepath")
        images.append(
            AnnotatedImage(
                name,
                entry[id_field],
                _captions(entry.get("sentences"), where),
                f"{folder}/{name}" if isinstance(folder, str) and folder else "",
                split,
            )
        )

    _read_images(path, add)
    check_unique((image.name for image in images), f"{path}: filename")
    check_unique((image.image_id for image in images), f"{path}: image id")
    return Annotations(images, [])


class Assignment:
    """Karpathy's splits alone: by COCO id and file name where the file gives both, else by name."""

    def __init__(self, path: str) -> None:
        """Read a file.

        Raises:
          InvalidInput: missing, not JSON, not Karpathy's, or an image is in two splits.
        """
        self._by_id: dict[int, tuple[str, str]] = {}
        self._by_name: dict[str, str] = {}

        def add(position: int, entry: Any) -> None:
            name, split = _name_and_split(path, position, entry)
            if self._by_name.setdefault(name, split) != split:
                raise InvalidInput(f"{path}: {name} in two splits, expected each image in one")
            if isinstance(entry.get("cocoid"), int):
                self._by_id[entry["cocoid"]] = photograph_of(name), split

        _read_images(path, add)

    def split_of(self, image: AnnotatedImage) -> str | None:
        """The split of an image, or None when the file does not name it."""
        # An id of another data set may equal one of COCO's, so the name has to agree.
        if self._by_id:
            name, split = self._by_id.get(image.image_id, ("", None))
            return split if name == photograph_of(image.name) else None
        return self._by_name.get(image.name.rpartition("/")[2])


def _read_images(path: str, add: Handler) -> None:
    count = 0

    def counted(position: int, entry: Any) -> None:
        nonlocal count
        count += 1
        add(position, entry)

    read_lists(path, {"images": counted}, _EXPECTED)
    if not count:
        raise InvalidInput(f"{path}: no list of images, expected {_EXPECTED}")


def _name_and_split(path: str, position: int, entry: Any) -> tuple[str, str]:
    fields = entry if isinstance(entry, dict) else {}
    name, split = fields.get("filename"), fields.get("split")
    if not (isinstance(name, str) and isinstance(split, str) and _NAME.fullmatch(split)):
        raise InvalidInput(
            f"{path}: images[{position}] without filename or split, expected {_EXPECTED}"
        )
    check_field(fields, "filename", str, f"{path}: images[{position}]")
    return name, split


def _captions(sentences: Any, where: str) -> list[tuple[int, object]]:
    if not isinstance(sentences, list):
        raise InvalidInput(f"{where} without a list of sentences, expected {_EXPECTED}")
    for number, sentence in enumerate(sentences):
        check_field(sentence, "sentid", int, f"{where}: sentences[{number}]")
    return [(sentence["sentid"], shallow(sentence.get("raw"))) for sentence in sentences]
