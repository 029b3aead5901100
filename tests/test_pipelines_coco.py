import json
import os
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines.coco import Inputs, Selection, read_inputs, words_of
from pipelines.source_flags import Source, parse_source

COCO = {
    "images": [
        {"id": 1, "file_name": "COCO_train2014_000000000001.jpg"},
        {"id": 2, "file_name": "COCO_train2014_000000000002.jpg"},
    ],
    "annotations": [
        {"id": 10, "image_id": 2, "caption": "second"},
        {"id": 11, "image_id": 1, "caption": "first"},
        {"id": 12, "image_id": 2, "caption": "second again"},
    ],
}


def write(path: Path, content: Any) -> Source:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Source(path.stem, str(path), "/images")


def numbered(*ids: int, prefix: str = "") -> dict[str, Any]:
    """Images with one caption each."""
    return {
        "images": [{"id": i, "file_name": f"{prefix}{i}.jpg"} for i in ids],
        "annotations": [{"id": i, "image_id": i, "caption": "a dog"} for i in ids],
    }


def ids(inputs: Inputs) -> dict[str, list[int]]:
    return {
        split: sorted(item["image_id"] for item in items)
        for split, items in sorted(inputs.splits.items())
    }


@pytest.mark.parametrize(
    ("text", "name", "annotations", "images"),
    [
        ("train=/a/b.json:/c", "train", "/a/b.json", "/c"),
        ("val=/a/b.json:gs://bucket/val2017/", "val", "/a/b.json", "gs://bucket/val2017"),
        ("t_1=gs://x/a.json:s3://y", "t_1", "gs://x/a.json", "s3://y"),
        ("train=/a/noend:/c", "train", "/a/noend", "/c"),
        ("train=/a/b.json:/odd:folder", "train", "/a/b.json", "/odd:folder"),
        ("train=/a=b/c.json:/c", "train", "/a=b/c.json", "/c"),
    ],
)
def test_a_split_is_cut_at_the_right_colon(
    text: str, name: str, annotations: str, images: str
) -> None:
    assert parse_source(text) == Source(name, annotations, images)


def test_local_paths_become_absolute() -> None:
    here = os.getcwd()  # noqa: PTH109
    assert parse_source("train=a.json:b") == Source("train", f"{here}/a.json", f"{here}/b")


@pytest.mark.parametrize(
    "text", ["train", "train=a.json", "=a.json:b", "a/b=a.json:b", "train=gs://a.json", "train=:b"]
)
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"expected NAME=ANNOTATIONS\.json:IMAGES"):
        parse_source(text)


def test_items_carry_their_own_captions_in_the_files_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = read_inputs([write(tmp_path / "train.json", COCO)])
    assert inputs.splits == {
        "train": [
            {
                "key": "COCO_train2014_000000000001.jpg",
                "source": "/images/COCO_train2014_000000000001.jpg",
                "image_id": 1,
                "captions": [(11, "first")],
            },
            {
                "key": "COCO_train2014_000000000002.jpg",
                "source": "/images/COCO_train2014_000000000002.jpg",
                "image_id": 2,
                "captions": [(10, "second"), (12, "second again")],
            },
        ]
    }
    assert (inputs.images, inputs.captions) == (2, 3)
    assert capsys.readouterr() == ("", "")


def test_any_caption_travels_to_its_shard(tmp_path: Path) -> None:
    odd = json.loads(json.dumps(COCO))
    odd["annotations"][0]["caption"] = {"not": "a string"}
    del odd["annotations"][2]["caption"]
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    odd["annotations"][1]["caption"] = nested
    items = read_inputs([write(tmp_path / "train.json", odd)]).splits["train"]
    assert items[1]["captions"] == [(10, {}), (12, None)]
    assert items[0]["captions"] == [(11, [])]


def test_orphans_are_rows_and_images_without_captions_are_skipped(tmp_path: Path) -> None:
    content = numbered(1, 2, 3)
    content["annotations"][1]["image_id"] = 99
    source = write(tmp_path / "train.json", content)
    inputs = read_inputs([source], stage="preprocess")
    assert ids(inputs) == {"train": [1, 3]}
    assert (inputs.images, inputs.skipped) == (3, 1)
    assert inputs.captions == 3
    assert inputs.orphans == (
        {
            "key": "annotation 2",
            "source": source.annotations,
            "stage": "preprocess",
            "reason": "unknown_image",
            "message": "image_id 99, expected one of the file's images",
        },
    )


def entry(name: str, position: int, **fields: Any) -> dict[str, Any]:
    """COCO with fields of one entry changed; None removes the field."""
    content = json.loads(json.dumps(COCO))
    for field, value in fields.items():
        content[name][position].pop(field)
        if value is not None:
            content[name][position][field] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "invalid JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        pytest.param(
            "[" * 100_000, "invalid JSON (maximum recursion depth exceeded", id="annotations nested"
        ),
        ("\xff\xfe", "no list 'images', expected COCO captions JSON"),
        ([], "no list 'images', expected COCO captions JSON such as captions_train2017.json"),
        ({"annotations": []}, "no list 'images', expected COCO captions JSON"),
        ({"images": []}, "no list 'annotations', expected COCO captions JSON"),
        ({"images": {}, "annotations": []}, "no list 'images', expected COCO captions JSON"),
        ({**COCO, "annotations": []}, "the list of annotations is empty, expected captions"),
        (entry("images", 1, id=None), "images[1]: id is None, expected an integer"),
        (entry("images", 0, id="1"), "images[0]: id is '1', expected an integer"),
        (entry("images", 0, id=True), "images[0]: id is True, expected an integer"),
        (entry("images", 0, id=2**63), f"images[0]: id is {2**63}, expected an integer"),
        (entry("images", 0, file_name=None), "images[0]: file_name is None, expected a file name"),
        (entry("images", 0, file_name=""), "images[0]: file_name is '', expected a file name"),
        (entry("annotations", 2, id=None), "annotations[2]: id is None, expected an integer"),
        (
            entry("annotations", 0, image_id=None),
            "annotations[0]: image_id is None, expected an integer",
        ),
        ({**COCO, "images": [3]}, "images[0]: id is None, expected an integer"),
        (entry("images", 1, id=1), "images: id 1 twice, expected each once"),
        (entry("annotations", 1, id=10), "annotations: id 10 twice, expected each once"),
        (
            entry("images", 1, file_name=COCO["images"][0]["file_name"]),
            "file_name 'COCO_train2014_000000000001.jpg' twice, expected each once",
        ),
        (
            {**COCO, "annotations": [{"id": 1, "image_id": 1, "bbox": []}]},
            "no annotation has a caption, expected COCO captions JSON; instances_*.json and",
        ),
    ],
)
def test_what_is_not_coco_captions_is_refused_in_one_line(
    tmp_path: Path, content: Any, message: str
) -> None:
    source = write(tmp_path / "train.json", content)
    if content == "\xff\xfe":
        Path(source.annotations).write_bytes(b"\xff\xfe[\x00]\x00")  # UTF-16, which JSON may be
    with pytest.raises(InvalidInput) as caught:
        read_inputs([source])
    assert str(caught.value).startswith(f"{source.annotations}: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.json: cannot be read .*, expected COCO capt"):
        read_inputs([Source("train", str(tmp_path / "none.json"), "/images")])


def test_an_image_in_two_splits_is_named(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", numbered(1, 2, 3))
    val = write(tmp_path / "val.json", numbered(3, 4))
    with pytest.raises(InvalidInput, match=r"1 image in splits train and val, .*: 3 \(3\.jpg\);"):
        read_inputs([train, val])


def test_a_copy_of_the_image_folder_does_not_hide_a_shared_image(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", numbered(1, 2, 3))
    val = Source("val", write(tmp_path / "val.json", numbered(3, 4)).annotations, "/copy")
    with pytest.raises(InvalidInput, match=r"1 image in splits train and val, .*: 3 \(3\.jpg\);"):
        read_inputs([train, val])


def test_equal_ids_of_different_images_are_no_shared_image(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", numbered(1, 2, prefix="a"))
    val = write(tmp_path / "val.json", numbered(1, 2, prefix="b"))
    assert ids(read_inputs([train, val])) == {"train": [1, 2], "val": [1, 2]}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_source_without_captioned_images_is_refused(tmp_path: Path, split: str) -> None:
    train = write(tmp_path / "train.json", numbered(2))
    empty = write(tmp_path / "empty.json", {**numbered(1), "images": []})
    with pytest.raises(InvalidInput) as caught:
        read_inputs([train, Source(split, empty.annotations, "/more")])
    assert str(caught.value) == (
        f"{empty.annotations}: no image has captions, expected at least one; leave this source out"
    )


def karpathy(path: Path, *images: dict[str, Any]) -> str:
    path.write_text(json.dumps({"dataset": "coco", "images": images}))
    return str(path)


def test_karpathy_replaces_the_splits_by_coco_id(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", numbered(1, 2, prefix="t"))
    val = write(tmp_path / "val.json", numbered(3, 4, 5, prefix="v"))
    path = karpathy(
        tmp_path / "dataset_coco.json",
        {"cocoid": 1, "filename": "t1.jpg", "split": "train"},
        {"cocoid": 3, "filename": "v3.jpg", "split": "restval"},
        {"cocoid": 4, "filename": "v4.jpg", "split": "test"},
        {"cocoid": 5, "filename": "v5.jpg", "split": "train"},
        {"cocoid": 6, "filename": "v6.jpg", "split": "train"},
    )
    inputs = read_inputs([train, val], Selection(path))
    assert ids(inputs) == {"restval": [3], "test": [4], "train": [1, 5]}
    assert (inputs.skipped, inputs.skipped_captions, inputs.images) == (1, 1, 5)


def test_karpathy_without_coco_ids_goes_by_file_name(tmp_path: Path) -> None:
    source = write(tmp_path / "all.json", numbered(1, 2, prefix="folder/"))
    path = karpathy(
        tmp_path / "dataset_flickr8k.json",
        {"filename": "2.jpg", "split": "train"},
        {"filename": "1.jpg", "split": "val"},
    )
    assert ids(read_inputs([source], Selection(path))) == {"train": [2], "val": [1]}


def test_a_file_with_all_images_as_train_needs_no_split_of_its_own_name(tmp_path: Path) -> None:
    source = write(tmp_path / "everything.json", numbered(1))
    path = karpathy(tmp_path / "k.json", {"cocoid": 1, "filename": "1.jpg", "split": "train"})
    assert ids(read_inputs([source], Selection(path))) == {"train": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "invalid JSON"),
        pytest.param("[" * 100_000, r"invalid JSON \(maximum recursion", id="karpathy nested"),
        ({"images": []}, "no list of images, expected Karpathy's dataset JSON"),
        ({"images": [{"filename": "a"}]}, r"images\[0\] without filename or split"),
        ({"images": [{"split": "train"}]}, r"images\[0\] without filename or split"),
        ({"images": [{"filename": "a", "split": "../x"}]}, r"images\[0\] without filename or"),
        (
            {"images": [{"filename": "a", "split": "x"}, {"filename": "a", "split": "y"}]},
            "a in two splits, expected each image in one",
        ),
    ],
)
def test_what_is_not_karpathys_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    source = write(tmp_path / "train.json", numbered(1))
    path = write(tmp_path / "k.json", content).annotations
    with pytest.raises(InvalidInput, match=f"k.json: {message}"):
        read_inputs([source], Selection(path))


def test_a_source_that_karpathys_file_does_not_name_is_refused(tmp_path: Path) -> None:
    coco = write(tmp_path / "coco.json", numbered(1))
    (tmp_path / "a.csv").write_text("image,caption\nx.jpg,a dog\n")
    table = Source("train", str(tmp_path / "a.csv"), "/a")
    path = karpathy(tmp_path / "k.json", {"cocoid": 1, "filename": "1.jpg", "split": "train"})
    assert ids(read_inputs([coco], Selection(path))) == {"train": [1]}
    for sources in ([coco, table], [table, coco], [table]):
        with pytest.raises(InvalidInput) as caught:
            read_inputs(sources, Selection(path))
        assert str(caught.value) == (
            f"{table.annotations}: no image has captions and a split in {path}, expected at least "
            "one; leave this source out, or run without --karpathy"
        )


@pytest.mark.parametrize("caption", ["", " ", ".", "-- !", None, 3, ["a"], "a \ud800 b"])
def test_a_caption_without_words_is_invalid(caption: object) -> None:
    with pytest.raises(ItemFailure) as caught:
        words_of(5, caption)
    assert caught.value.reason is Reason.INVALID_CAPTION
    assert caught.value.message.startswith("annotation 5: ")
    caught.value.message.encode()


def test_a_caption_has_the_vocabularys_words() -> None:
    assert words_of(1, "A man's hat.") == ["a", "man", "'s", "hat"]
