"""The drawn world: what its files promise, checked against the pixels."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from demo import toy_coco
from demo.toy_coco import COLOURS, NOVEL, PLACES, SIDE, TRAIN, VAL, World, draw_world
from model.boxes import read_boxes

NUM_TRAIN, NUM_VAL, NUM_NOVEL = 400, 40, 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    return draw_world(root, seed=3, num_train=NUM_TRAIN, num_val=NUM_VAL, num_novel=NUM_NOVEL)


def document(world: World, split: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(world.annotations(split).read_text())
    return loaded


def captions_by_image(world: World, split: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for annotation in document(world, split)["annotations"]:
        found.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return found


def triple(item: dict[str, Any]) -> tuple[str, str, str]:
    """Size, colour and place of an object."""
    left, top, width, height = item["bbox"]
    spot = (int(left + width / 2 > SIDE / 2), int(top + height / 2 > SIDE / 2))
    place = next(name for name, position in PLACES.items() if position == spot)
    return item["words"][0], item["words"][1], place


def files(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    counts = {"num_train": 5, "num_val": 3, "num_novel": 2}
    first = draw_world(tmp_path / "a", seed=7, **counts)
    second = draw_world(tmp_path / "b", seed=7, **counts)
    other = draw_world(tmp_path / "c", seed=8, **counts)
    assert files(first.root) == files(second.root)
    assert len(files(first.root)) == 4 + 10
    assert files(first.root) != files(other.root)


def test_pycocotools_reads_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in ((TRAIN, NUM_TRAIN), (VAL, NUM_VAL + NUM_NOVEL)):
        coco = COCO(str(world.annotations(split)))
        assert len(coco.getImgIds()) == count
        assert set(coco.imgToAnns) == set(coco.getImgIds())
        names = {image["file_name"] for image in coco.loadImgs(coco.getImgIds())}
        assert names == {path.name for path in world.images(split).iterdir()}
    capsys.readouterr()


def test_instances_are_the_objects(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for split in (TRAIN, VAL):
        coco = COCO(str(world.instances(split)))
        names = {number: category["name"] for number, category in coco.cats.items()}
        assert len(set(names.values())) == 2 * len(COLOURS) * 2
        images = document(world, split)["images"]
        assert coco.getImgIds() == [image["id"] for image in images]
        for image in images:
            found = coco.imgs[image["id"]]
            for field in ("file_name", "width", "height"):
                assert found[field] == image[field]
            boxes = {
                names[item["category_id"]]: item["bbox"] for item in coco.imgToAnns[found["id"]]
            }
            assert boxes == {" ".join(item["words"]): item["bbox"] for item in image["objects"]}
    capsys.readouterr()


def test_the_scores_read_the_instances(world: World) -> None:
    boxes = read_boxes(world.instances(VAL))
    for image in document(world, VAL)["images"]:
        found = boxes.of(image["file_name"])
        assert found is not None
        for item in image["objects"]:
            left, top, width, height = item["bbox"]
            (box,) = found[" ".join(item["words"])]
            sides = (left, top, left + width, top + height)
            assert [share * SIDE for share in box] == pytest.approx(sides)


def test_splits_share_no_id_and_no_picture(world: World) -> None:
    ids = [{image["id"] for image in document(world, split)["images"]} for split in (TRAIN, VAL)]
    assert not ids[0] & ids[1]
    pictures = [path.read_bytes() for path in world.root.rglob("*.png")]
    assert len(set(pictures)) == len(pictures)


def test_a_box_holds_its_object_and_nothing_else_is_drawn(world: World) -> None:
    for image in document(world, VAL)["images"]:
        pixels = np.asarray(Image.open(world.images(VAL) / image["file_name"]), int)
        assert pixels.shape == (image["height"], image["width"], 3)
        drawn = (pixels != pixels[0, 0]).any(axis=-1)
        for item in image["objects"]:
            left, top, width, height = item["bbox"]
            box = drawn[top : top + height, left : left + width]
            rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
            # The apex of a triangle may be fainter than a pixel.
            assert rows[0] <= 1
            assert (rows[-1], columns[0], columns[-1]) == (height - 1, 0, width - 1)
            centre = pixels[top + height * 2 // 3, left + width // 2]
            distances = {name: np.abs(centre - colour).sum() for name, colour in COLOURS.items()}
            assert min(distances, key=lambda name: distances[name]) == item["words"][1]
            # A triangle fills half of its box.
            assert (box.mean() < 0.75) == (item["words"][2] == item["name"] == "triangle")
            drawn[top : top + height, left : left + width] = False
        assert not drawn.any()


def test_a_caption_follows_from_the_boxes(world: World) -> None:
    captions = captions_by_image(world, VAL)
    seen = set()
    for image in document(world, VAL)["images"]:
        first, *rest = image["objects"]
        name = f"a {' '.join(first['words'])}"
        if not rest:
            expected = f"{name} at the {triple(first)[2]}"
        else:
            second = rest[0]
            across = second["bbox"][0] - first["bbox"][0]
            down = second["bbox"][1] - first["bbox"][1]
            relation = "left of" if across > abs(down) else "above"
            assert max(across, down) > 0
            expected = f"{name} {relation} a {' '.join(second['words'])}"
            seen.add(relation)
        assert captions[image["id"]] == [expected]
    assert seen == {"left of", "above"}


def test_a_caption_is_never_ambiguous_by_two_equal_objects(world: World) -> None:
    for image in document(world, TRAIN)["images"]:
        for one, other in combinations(image["objects"], 2):
            assert one["words"] != other["words"]


def test_novel_combinations_are_held_out_and_marked(world: World) -> None:
    for split in (TRAIN, VAL):
        for image in document(world, split)["images"]:
            novel = any(triple(item) in NOVEL for item in image["objects"])
            assert image["novel"] == novel
            assert not (novel and split == TRAIN)
    marks = [image["novel"] for image in document(world, VAL)["images"]]
    assert marks == [False] * NUM_VAL + [True] * NUM_NOVEL


def test_every_pair_of_a_novel_combination_occurs_in_training(world: World) -> None:
    trained = {
        pair
        for image in document(world, TRAIN)["images"]
        for item in image["objects"]
        for pair in combinations(triple(item), 2)
    }
    assert {pair for novel in NOVEL for pair in combinations(novel, 2)} <= trained


def test_runs_as_a_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--train", "3", "--val", "2", "--novel", "1", "--seed", "5"]
    toy_coco.main(["--output", str(tmp_path / "a"), *flags])
    assert capsys.readouterr().out == f"{tmp_path / 'a'}\n"
    drawn = draw_world(tmp_path / "b", seed=5, num_train=3, num_val=2, num_novel=1)
    assert files(tmp_path / "a") == files(drawn.root)
