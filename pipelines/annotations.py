"""One COCO captions JSON file, checked and indexed by pycocotools.

The check comes first, since pycocotools' index fails on odd JSON with a bare KeyError.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pycocotools.coco import COCO

from model.errors import InvalidInput
from pipelines import storage

# What every entry must have; anything else is left to pycocotools and to the shards.
_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int},
}
_INT64 = range(-(2**63), 2**63)


def index_captions(path: str) -> COCO:
    """pycocotools' index of a checked file.

    Raises:
      InvalidInput: missing, not JSON, not COCO captions, without annotations, or with an id or
        file name twice.
    """
    coco = COCO()
    coco.dataset = _check_captions(read_json(path, "COCO captions JSON"), path)
    # It reports its progress on stdout, where results belong.
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_json(path: str, expected: str) -> Any:
    """The JSON in a file that a user named; InvalidInput says what was expected of it."""
    try:
        return json.loads(storage.read_bytes(path))
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error}), expected {expected}") from error
    # Brackets nested by the thousand end the parser with the second.
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: invalid JSON ({error}), expected {expected}; download it again"
        ) from error


def _check_captions(content: Any, path: str) -> dict[str, Any]:
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise InvalidInput(
                f"{path}: no list {name!r}, expected COCO captions JSON such as "
                "captions_train2017.json"
            )
    if not content["annotations"]:
        raise InvalidInput(f"{path}: the list of annotations is empty, expected captions")
    for name, kinds in _FIELDS.items():
        for position, entry in enumerate(content[name]):
            for field, kind in kinds.items():
                _check_field(entry, field, kind, f"{path}: {name}[{position}]")
        check_unique((entry["id"] for entry in content[name]), f"{path}: {name}: id")
    check_unique((image["file_name"] for image in content["images"]), f"{path}: file_name")
    if not any("caption" in annotation for annotation in content["annotations"]):
        raise InvalidInput(
            f"{path}: no annotation has a caption, expected COCO captions JSON; instances_*.json "
            "and person_keypoints_*.json hold none"
        )
    return dict(content)


def _check_field(entry: Any, field: str, kind: type, where: str) -> None:
    value: Any = entry.get(field) if isinstance(entry, dict) else None
    # bool is an int to Python, and a record stores ids in 64 bits.
    valid = type(value) is kind and (value in _INT64 if kind is int else is_unicode(str(value)))
    if not valid or value == "":
        expected = "an integer" if kind is int else "a file name"
        raise InvalidInput(f"{where}: {field} is {value!a}, expected {expected}")


def check_unique(values: Iterable[Any], what: str) -> None:
    """Raise InvalidInput naming the first value that is there twice."""
    if twice := sorted(value for value, count in Counter(values).items() if count > 1):
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        raise InvalidInput(f"{what} {twice[0]!r}{more} twice, expected each once")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it; JSON can hold half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
