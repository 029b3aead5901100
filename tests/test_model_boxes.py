"""Boxes of COCO's instances JSON: where they lie, and one clear line for what is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.boxes import Box, read_boxes
from model.errors import InvalidInput
from tests.boxes_fixtures import instances, write_instances


def test_boxes_are_shares_of_their_own_picture(tmp_path: Path) -> None:
    document = instances(
        {
            "a.jpg": [("dog", [30, 20, 60, 50]), ("Hot Dog", [0, 0, 300, 100])],
            "b.jpg": [("dog", [40, 10, 40, 20])],
            "c.jpg": [],
        }
    )
    document["images"][1] |= {"width": 80, "height": 40}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    boxes = read_boxes(tmp_path / "boxes.json")
    assert boxes.names == {"dog", "hot dog"}
    assert boxes.of("a.jpg") == {
        "dog": (pytest.approx(Box(0.1, 0.2, 0.3, 0.7)),),
        "hot dog": (Box(0, 0, 1, 1),),
    }
    assert boxes.of("b.jpg") == {"dog": (pytest.approx(Box(0.5, 0.25, 1.0, 0.75)),)}
    assert boxes.of("c.jpg") == {}
    assert boxes.of("d.jpg") is None
    assert [boxes.size_of(f"{name}.jpg") for name in "abc"] == [(300, 100), (80, 40), (300, 100)]
    assert boxes.size_of("b.jpg#flip") == (80, 40)


def test_several_of_one_name_stay_apart_and_one_name_written_twice_is_one(tmp_path: Path) -> None:
    pictures = {"a.jpg": [("dog", [0, 0, 30, 10]), ("dog", [30, 0, 30, 10]), ("Dog!", [0] * 4)]}
    boxes = read_boxes(write_instances(tmp_path / "boxes.json", pictures)).of("a.jpg")
    assert boxes is not None
    assert [box.left for box in boxes["dog"]] == pytest.approx([0.0, 0.1, 0.0])


def test_the_record_of_a_mirror_image_has_its_boxes_mirrored(tmp_path: Path) -> None:
    pictures = {"a.jpg": [("dog", [30, 20, 60, 50])]}
    boxes = read_boxes(write_instances(tmp_path / "boxes.json", pictures)).of("a.jpg#flip")
    assert boxes == {"dog": (pytest.approx(Box(0.7, 0.2, 0.9, 0.7)),)}


def change(entries: str, position: int, /, **fields: Any) -> Callable[[Any], None]:
    return lambda document: document[entries][position].update(fields)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("categories"), "no list 'categories', expected COCO instances JSON"),
        (lambda d: d.update(annotations={}), "no list 'annotations', expected COCO instances"),
        (change("categories", 0, name=""), "categories[0]: name is '', expected a name"),
        (change("categories", 0, id="7"), "categories[0]: id is '7', expected an integer"),
        (change("images", 1, file_name=None), "images[1]: file_name is None, expected a name"),
        (change("images", 1, file_name="a.jpg"), "images[1]: file_name 'a.jpg' twice"),
        (change("images", 0, width=0), "images[0]: 0×100 pixels, expected at least one"),
        (change("images", 0, height=None), "images[0]: height is None, expected an integer"),
        (change("annotations", 0, image_id=7), "image_id 7, expected the id of one of the file's"),
        (change("annotations", 0, category_id=True), "category_id is True, expected an integer"),
        (change("annotations", 0, category_id=9), "category_id 9, expected the id of one of"),
        (change("annotations", 0, bbox=None), "annotations[0]: bbox is None, expected [left, top"),
        (change("annotations", 0, bbox=[1, 2, 3]), "bbox is [1, 2, 3], expected [left, top"),
        (change("annotations", 0, bbox=[1, 2, 3, "4"]), "bbox is [1, 2, 3, '4'], expected"),
        (change("annotations", 0, bbox=[1, 2, -3, 4]), "bbox is [1, 2, -3, 4], expected"),
        (change("annotations", 0, bbox=[1, 2, 3, float("nan")]), "bbox is [1, 2, 3, nan]"),
        (lambda d: d["annotations"].insert(0, 3), "annotations[0]: image_id is None"),
    ],
)
def test_what_is_not_coco_is_named(
    edit: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    document = instances({"a.jpg": [("dog", [1, 2, 3, 4])], "b.jpg": []})
    edit(document)
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInput) as raised:
        read_boxes(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory), expected COCO instances JSON"),
        (b"{", "invalid JSON (Expecting property name"),
        (b"\xff\xfe\x00", "invalid JSON ("),
        (b"[" * 100_000, "invalid JSON ("),
        (b"[]", "no list 'categories', expected COCO instances JSON"),
    ],
)
def test_what_is_no_json_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput) as raised:
        read_boxes(path)
    assert f"{path}: {message}" in str(raised.value)
