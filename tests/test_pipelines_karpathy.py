import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput
from pipelines.annotations import AnnotatedImage
from pipelines.coco import Inputs, Selection, read_inputs
from pipelines.karpathy import Assignment, read_karpathy
from pipelines.source_flags import Source


def coco(number: int, split: str, **more: Any) -> dict[str, Any]:
    """An image as dataset_coco.json has it."""
    return {
        "filepath": "val2014",
        "sentids": [number * 10, number * 10 + 1],
        "filename": f"COCO_val2014_{number:012d}.jpg",
        "imgid": number - 1,
        "split": split,
        "sentences": [
            {"tokens": ["a", "dog"], "raw": "A dog.", "imgid": 0, "sentid": number * 10},
            {"tokens": ["it"], "raw": f"It is {number}", "imgid": 0, "sentid": number * 10 + 1},
        ],
        "cocoid": number,
        **more,
    }


def flickr(number: int, split: str) -> dict[str, Any]:
    """An image as dataset_flickr8k.json and dataset_flickr30k.json have it."""
    entry = coco(number, split, filename=f"{number}_ab.jpg")
    return {name: value for name, value in entry.items() if name not in ("filepath", "cocoid")}


def write(path: Path, *images: Any) -> Source:
    path.write_text(json.dumps({"images": images, "dataset": "any"}))
    return Source(None, str(path), "/images")


def ids(inputs: Inputs) -> dict[str, list[int]]:
    return {
        split: [item["image_id"] for item in items]
        for split, items in sorted(inputs.splits.items())
    }


def test_dataset_coco_brings_ids_folders_captions_and_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "dataset_coco.json", coco(42, "train"), coco(7, "restval"))
    assert read_inputs([source]).splits == {
        "train": [
            {
                "key": "COCO_val2014_000000000042.jpg",
                "source": "/images/val2014/COCO_val2014_000000000042.jpg",
                "image_id": 42,
                "captions": [(420, "A dog."), (421, "It is 42")],
            }
        ],
        "restval": [
            {
                "key": "COCO_val2014_000000000007.jpg",
                "source": "/images/val2014/COCO_val2014_000000000007.jpg",
                "image_id": 7,
                "captions": [(70, "A dog."), (71, "It is 7")],
            }
        ],
    }


def test_dataset_flickr_has_ids_of_its_own_and_no_folders(tmp_path: Path) -> None:
    source = write(tmp_path / "dataset_flickr8k.json", flickr(42, "train"), flickr(7, "val"))
    assert read_karpathy(source.annotations).images == [
        AnnotatedImage("42_ab.jpg", 41, [(420, "A dog."), (421, "It is 42")], "", "train"),
        AnnotatedImage("7_ab.jpg", 6, [(70, "A dog."), (71, "It is 7")], "", "val"),
    ]
    [item] = read_inputs([source]).splits["val"]
    assert item["source"] == "/images/7_ab.jpg"


def test_restval_joins_train_by_a_flag(tmp_path: Path) -> None:
    images = [coco(1, "train"), coco(2, "restval"), coco(3, "val"), coco(4, "test")]
    source = write(tmp_path / "k.json", *images)
    apart = {"restval": [2], "test": [4], "train": [1], "val": [3]}
    assert ids(read_inputs([source])) == apart
    joined = {"test": [4], "train": [1, 2], "val": [3]}
    assert ids(read_inputs([source], Selection(join_restval=True))) == joined

    # The same where the file only assigns the images of other annotations.
    captions = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (1, 2, 3, 4)],
        "annotations": [{"id": i, "image_id": i, "caption": "a dog"} for i in (1, 2, 3, 4)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(captions))
    other = Source("any", str(tmp_path / "coco.json"), "/images")
    assignment = str(tmp_path / "k.json")
    assert ids(read_inputs([other], Selection(assignment))) == apart
    assert ids(read_inputs([other], Selection(assignment, join_restval=True))) == joined


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("COCO_val2014_000000000042.jpg", True),
        ("val2014/COCO_val2014_000000000042.jpg", True),
        ("COCO_train2014_000000000042.jpg", True),
        ("000000000042.jpg", True),
        ("000000000043.jpg", False),
        ("COCO_val2014_000000000007.jpg", False),
        ("x.jpg", False),
    ],
)
def test_an_id_assigns_only_the_photograph_of_that_name(
    tmp_path: Path, name: str, named: bool
) -> None:
    path = write(tmp_path / "k.json", coco(42, "test"), coco(7, "val")).annotations
    assert Assignment(path).split_of(AnnotatedImage(name, 42, [])) == ("test" if named else None)


def test_images_without_sentences_are_skipped_and_odd_captions_travel(tmp_path: Path) -> None:
    sentences = [{"raw": None, "sentid": 1}, {"sentid": 2}, {"raw": ["a"], "sentid": 3}]
    source = write(
        tmp_path / "k.json",
        coco(1, "train", sentences=[]),
        coco(2, "train", sentences=sentences),
    )
    inputs = read_inputs([source])
    assert inputs.splits["train"][0]["captions"] == [(1, None), (2, None), (3, [])]
    assert (inputs.images, inputs.skipped, inputs.captions, inputs.skipped_captions) == (2, 1, 3, 0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no list of images, expected Karpathy's dataset JSON"),
        ([3], "images[0] without filename or split, expected Karpathy's dataset JSON"),
        (
            [coco(1, "train"), coco(2, "../x")],
            "images[1] without filename or split, expected Karpathy's dataset JSON",
        ),
        ([coco(1, "train", filename="")], "images[0]: filename is '', expected a file name"),
        ([coco(1, "train", cocoid="1")], "images[0]: cocoid is '1', expected an integer"),
        (
            [{**flickr(1, "train"), "imgid": None}],
            "images[0]: imgid is None, expected an integer",
        ),
        (
            [coco(1, "train", sentences=None)],
            "images[0] without a list of sentences, expected Karpathy's dataset JSON",
        ),
        (
            [coco(1, "train", sentences=[{"raw": "a"}])],
            "images[0]: sentences[0]: sentid is None, expected an integer",
        ),
        (
            [flickr(1, "train"), {**flickr(1, "val"), "imgid": 9}],
            "filename '1_ab.jpg' twice, expected each once",
        ),
        (
            [flickr(1, "train"), {**flickr(2, "val"), "imgid": 0}],
            "image id 0 twice, expected each once",
        ),
        (
            [coco(1, "train", sentences=[])],
            "no image has captions, expected at least one; leave this source out",
        ),
    ],
)
def test_what_is_no_source_of_karpathys_is_refused(
    tmp_path: Path, images: list[Any], message: str
) -> None:
    source = write(tmp_path / "k.json", *images)
    with pytest.raises(InvalidInput) as caught:
        read_inputs([source])
    assert str(caught.value) == f"{source.annotations}: {message}"


def test_karpathys_file_given_as_a_split_is_told_from_coco(tmp_path: Path) -> None:
    path = write(tmp_path / "k.json", coco(1, "train", id=1)).annotations
    with pytest.raises(InvalidInput) as caught:
        read_inputs([Source("train", path, "/images")])
    assert str(caught.value) == (
        f"{path}: images[0] has sentences, expected COCO captions JSON; pass Karpathy's dataset "
        "JSON as --karpathy FILE:IMAGES"
    )
