"""Boxes of named objects: COCO's instances JSON, as shares of the picture's sides."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model.errors import InvalidInput
from model.records import FLIP_MARK
from model.tokeniser import tokenise

_EXPECTED = "COCO instances JSON such as instances_val2017.json"
_REMEDY = "download it again"
# Far beyond any picture; no number that a float cannot hold.
_MOST_PIXELS = 1e9
# Most of the file, and of no use here.
_OUTLINE = "segmentation"


class Box(NamedTuple):
    """Sides of a box as shares of the picture's width and height, from its top left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in the box or on its edge."""
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    def mirrored(self) -> "Box":
        """The box in the picture's mirror image."""
        return Box(1.0 - self.right, self.top, 1.0 - self.left, self.bottom)


@dataclass(frozen=True)
class Boxes:
    """The objects of many pictures.

    Attributes:
      source: file they were read from.
      names: of all categories, in the words of model/tokeniser joined by blanks.
      pictures: boxes by name, of each picture by its file name.
      sizes: width and height in pixels of each picture.
    """

    source: str
    names: frozenset[str]
    pictures: Mapping[str, Mapping[str, tuple[Box, ...]]]
    sizes: Mapping[str, tuple[int, int]]

    def of(self, key: str) -> Mapping[str, tuple[Box, ...]] | None:
        """Boxes by name of a record's picture, which may be a mirror image.

        Args:
          key: of the record.

        Returns:
          None for a picture that the file does not have.
        """
        found = self.pictures.get(_file_name(key))
        if found is None or not key.endswith(FLIP_MARK):
            return found
        return {name: tuple(box.mirrored() for box in boxes) for name, boxes in found.items()}

    def size_of(self, key: str) -> tuple[int, int]:
        """Width and height in pixels of a record's picture, one that the file has."""
        return self.sizes[_file_name(key)]


def read_boxes(path: Path) -> Boxes:
    """Read COCO's instances JSON; crowds are boxes like the others.

    Raises:
      InvalidInput: missing, not JSON, or not what COCO writes; the message says where.
    """
    document = _load(path)
    names: dict[int, str] = {}
    for where, entry in _entries(document, "categories", path):
        name = _field(entry, "name", str, where)
        names[_new_id(entry, names, where)] = " ".join(tokenise(name))
    pictures: dict[str, dict[str, tuple[Box, ...]]] = {}
    files: dict[int, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for where, entry in _entries(document, "images", path):
        file_name = _field(entry, "file_name", str, where)
        if file_name in pictures:
            raise InvalidInput(f"{where}: file_name {file_name!r} twice, expected each once")
        number = _new_id(entry, files, where)
        sizes[file_name] = _size(entry, where)
        files[number], pictures[file_name] = file_name, {}
    for where, entry in _entries(document, "annotations", path):
        number = _known(entry, "image_id", files, "images", where)
        name = names[_known(entry, "category_id", names, "categories", where)]
        file_name = files[number]
        boxes = pictures[file_name].get(name, ())
        pictures[file_name][name] = (*boxes, _box(entry, sizes[file_name], where))
    return Boxes(str(path), frozenset(filter(None, names.values())), pictures, sizes)


def _file_name(key: str) -> str:
    return key.removesuffix(FLIP_MARK)


def _load(path: Path) -> Any:
    def without_outline(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop(_OUTLINE, None)
        return entry

    try:
        return json.loads(path.read_bytes(), object_hook=without_outline)
    except OSError as error:
        raise InvalidInput(
            f"{path}: cannot be read ({error.strerror}), expected {_EXPECTED}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: invalid JSON ({error}), expected {_EXPECTED}; {_REMEDY}"
        ) from error


def _entries(document: Any, name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a list, each with where it stands."""
    entries = document.get(name) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise InvalidInput(
            f"{path}: no list {name!r}, expected {_EXPECTED}; captions_*.json has no boxes"
        )
    for position, entry in enumerate(entries):
        yield f"{path}: {name}[{position}]", entry


def _field(entry: Any, field: str, kind: type, where: str) -> Any:
    value = entry.get(field) if isinstance(entry, dict) else None
    if type(value) is not kind or value == "":
        expected = "an integer" if kind is int else "a name"
        raise InvalidInput(f"{where}: {field} is {value!a}, expected {expected}")
    return value


def _new_id(entry: Any, known: Mapping[int, object], where: str) -> int:
    number: int = _field(entry, "id", int, where)
    if number in known:
        raise InvalidInput(f"{where}: id {number} twice, expected each once")
    return number


def _known(entry: Any, field: str, known: Mapping[int, object], of: str, where: str) -> int:
    number: int = _field(entry, field, int, where)
    if number not in known:
        raise InvalidInput(f"{where}: {field} {number}, expected the id of one of the file's {of}")
    return number


def _size(entry: Any, where: str) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = (_field(entry, side, int, where) for side in ("width", "height"))
    if min(width, height) < 1:
        raise InvalidInput(f"{where}: {width}×{height} pixels, expected at least one")
    return width, height


def _box(entry: Any, size: tuple[int, int], where: str) -> Box:
    bbox = entry.get("bbox")
    numbers = bbox if isinstance(bbox, list) else []
    valid = len(numbers) == 4 and all(
        type(number) in (int, float) and abs(number) < _MOST_PIXELS for number in numbers
    )
    if not valid or min(numbers[2:]) < 0:
        raise InvalidInput(
            f"{where}: bbox is {bbox!a}, expected [left, top, width, height] in pixels"
        )
    (left, top, width, height), (across, down) = numbers, size
    return Box(left / across, top / down, (left + width) / across, (top + height) / down)
