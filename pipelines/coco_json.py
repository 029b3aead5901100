"""One COCO captions JSON file (2014 or 2017), checked and indexed by pycocotools.

The check comes first, since pycocotools' index fails on odd JSON with a bare KeyError. Only
the fields that we use are kept of what is read, and the index lives no longer than this call.
"""

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO

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
    coco = COCO()
    coco.dataset = _read_dataset(path)
    # It reports its progress on stdout, where results belong.
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    images = [
        AnnotatedImage(
            image["file_name"],
            image_id,
            [
                (annotation["id"], annotation.get("caption"))
                for annotation in coco.imgToAnns.get(image_id, ())
            ],
        )
        for image_id, image in coco.imgs.items()
    ]
    orphans = [
        (annotation["id"], annotation["image_id"])
        for annotation in coco.anns.values()
        if annotation["image_id"] not in coco.imgs
    ]
    return Annotations(images, orphans)


def _read_dataset(path: str) -> dict[str, list[dict[str, Any]]]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add_image(position: int, entry: Any) -> None:
        where = f"{path}: {_IMAGES}[{position}]"
        if isinstance(entry, dict) and "sentences" in entry:
            raise InvalidInput(
                f"{where} has sentences, expected {_EXPECTED}; pass Karpathy's dataset JSON as "
                "--karpathy FILE:IMAGES"
            )
        check_field(entry, "id", int, where)
        check_field(entry, "file_name", str, where)
        images.append({"id": entry["id"], "file_name": entry["file_name"]})

    def add_annotation(position: int, entry: Any) -> None:
        where = f"{path}: {_ANNOTATIONS}[{position}]"
        check_field(entry, "id", int, where)
        check_field(entry, "image_id", int, where)
        slim = {"id": entry["id"], "image_id": entry["image_id"]}
        if "caption" in entry:
            slim["caption"] = shallow(entry["caption"])
        annotations.append(slim)

    found = read_lists(path, {_IMAGES: add_image, _ANNOTATIONS: add_annotation}, _EXPECTED)
    for name in (_IMAGES, _ANNOTATIONS):
        if name not in found:
            raise InvalidInput(
                f"{path}: no list {name!r}, expected {_EXPECTED} such as captions_train2017.json"
            )
    _check(path, images, annotations)
    return {_IMAGES: images, _ANNOTATIONS: annotations}


def _check(path: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    if not annotations:
        raise InvalidInput(f"{path}: the list of annotations is empty, expected captions")
    for name, entries in ((_IMAGES, images), (_ANNOTATIONS, annotations)):
        check_unique((entry["id"] for entry in entries), f"{path}: {name}: id")
    check_unique((image["file_name"] for image in images), f"{path}: file_name")
    if not any("caption" in annotation for annotation in annotations):
        raise InvalidInput(
            f"{path}: no annotation has a caption, expected {_EXPECTED}; instances_*.json "
            "and person_keypoints_*.json hold none"
        )
