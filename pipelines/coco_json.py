"""One COCO captions JSON file, 2014 or 2017, read one entry at a time.

The result is that of pycocotools' index (a test compares them), which would hold the whole
file as dictionaries, several times the size of the captions themselves.
"""

from collections.abc import Mapping
from typing import Any

from model.errors import InvalidInput
from pipelines.annotations import (
    AnnotatedImage,
    Annotations,
    Columns,
    check_field,
    check_unique,
    shallow,
)
from pipelines.json_stream import read_lists

_EXPECTED = "COCO captions JSON"
_IMAGES, _ANNOTATIONS = "images", "annotations"


def read_coco(path: str, columns: Columns) -> Annotations:
    """Read COCO captions JSON.

    Raises:
      InvalidInput: missing, not JSON, not COCO captions, without annotations, or with an id or
        file name twice.
    """
    del columns
    images: dict[int, str] = {}
    captions: dict[int, list[tuple[int, object]]] = {}
    # Not looked for among the captions, where JSON's null may be one.
    captioned = False

    def add_image(position: int, entry: Any) -> None:
        where = f"{path}: {_IMAGES}[{position}]"
        if isinstance(entry, dict) and "sentences" in entry:
            raise InvalidInput(
                f"{where} has sentences, expected {_EXPECTED}; pass Karpathy's dataset JSON as "
                "--karpathy FILE:IMAGES"
            )
        check_field(entry, "id", int, where)
        check_field(entry, "file_name", str, where)
        if entry["id"] in images:
            raise InvalidInput(f"{path}: {_IMAGES}: id {entry['id']} twice, expected each once")
        images[entry["id"]] = entry["file_name"]

    def add_annotation(position: int, entry: Any) -> None:
        nonlocal captioned
        where = f"{path}: {_ANNOTATIONS}[{position}]"
        check_field(entry, "id", int, where)
        check_field(entry, "image_id", int, where)
        captioned = captioned or "caption" in entry
        caption = entry["id"], shallow(entry.get("caption"))
        captions.setdefault(entry["image_id"], []).append(caption)

    found = read_lists(path, {_IMAGES: add_image, _ANNOTATIONS: add_annotation}, _EXPECTED)
    for name in (_IMAGES, _ANNOTATIONS):
        if name not in found:
            raise InvalidInput(
                f"{path}: no list {name!r}, expected {_EXPECTED} such as captions_train2017.json"
            )
    _check(path, images, captions, captioned)
    return Annotations(
        [AnnotatedImage(name, number, captions.pop(number, [])) for number, name in images.items()],
        [(annotation[0], number) for number, rest in captions.items() for annotation in rest],
    )


def _check(
    path: str,
    images: Mapping[int, str],
    captions: Mapping[int, list[tuple[int, object]]],
    captioned: bool,
) -> None:
    if not captions:
        raise InvalidInput(f"{path}: the list of annotations is empty, expected captions")
    ids = (annotation[0] for of_image in captions.values() for annotation in of_image)
    check_unique(ids, f"{path}: {_ANNOTATIONS}: id")
    check_unique(images.values(), f"{path}: file_name")
    if not captioned:
        raise InvalidInput(
            f"{path}: no annotation has a caption, expected {_EXPECTED}; instances_*.json "
            "and person_keypoints_*.json hold none"
        )
