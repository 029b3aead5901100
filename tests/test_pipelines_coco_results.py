"""captions.json: what pycocotools loads, and which keys tell an image's id."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from model.errors import InvalidInput
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.clients import Clients, Target
from pipelines.coco_results import check_ids, coco_results, image_id
from pipelines.columns import Columns
from pipelines.jobs import Job
from pipelines.ledger import Ledger
from pipelines.output_settings import OutputSettings
from tests.bulk_fixtures import (
    NAME,
    POISON_COLOUR,
    World,
    connect_fake,
    fake_caption,
    photo,
    png,
    write_photos,
)

CONFIG = BulkConfig("", batch_size=4, shard_size=4, outputs=OutputSettings(coco_results=True))
BIG = 10**18 - 1


@pytest.fixture(autouse=True)
def _world() -> None:
    World.reset()


def caption(where: Path, output: Path, config: BulkConfig = CONFIG) -> Ledger:
    clients = Clients(Target("models/fake", None, NAME), connect_fake)
    return caption_all(str(where), Columns(), clients, replace(config, output=str(output)))


def annotations(root: Path, ids: list[int]) -> Path:
    """A ground truth in COCO's format, over pictures that lie beside it."""
    for number in ids:
        (root / f"{number:012d}.jpg").write_bytes(photo(number))
    truth = {
        "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in ids],
        "annotations": [{"id": n, "image_id": n, "caption": "a photo"} for n in ids],
        "info": {},
    }
    (root / "truth.json").write_text(json.dumps(truth))
    return root / "truth.json"


def loaded(truth: Path, results: Path) -> dict[int, str]:
    found = COCO(str(truth)).loadRes(str(results))
    return {one["image_id"]: one["caption"] for one in found.anns.values()}


def test_pycocotools_loads_the_results(tmp_path: Path) -> None:
    ids = [9, 139, 285, 632, 724, 581929]
    truth = annotations(tmp_path, ids)
    (tmp_path / f"{724:012d}.jpg").write_bytes(png(POISON_COLOUR))
    output = tmp_path.parent / f"{tmp_path.name}-out"
    ledger = caption(tmp_path, output)
    assert (ledger.captioned, ledger.failed) == (5, {"model_error": 1})
    expected = {number: fake_caption(photo(number)) for number in ids if number != 724}
    assert loaded(truth, output / "captions.json") == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("139", 139),
        ("0", 0),
        (str(BIG), BIG),
        ("val/139", 139),
        ("000000000139.jpg", 139),
        ("val2017/000000000139.JPEG", 139),
        ("COCO_val2014_000000000139.jpg", 139),
        ("http://images.cocodataset.org/val2017/000000000139.jpg", 139),
        ("139.jpg", None),
        ("0139", None),
        ("-1", None),
        (str(BIG + 1), None),
        ("000000000139.jpg#2", None),
        ("000000000139", None),
        ("1000268201_693b08cb0e.jpg", None),
        ("VizWiz_val_000000000139.jpg", None),
        ("١٣٩", None),
        ("", None),
    ],
)
def test_which_keys_tell_an_id(key: str, expected: int | None) -> None:
    assert image_id(key) == expected


def test_keys_that_are_no_images_of_coco_are_refused_before_the_model_is_asked(
    tmp_path: Path,
) -> None:
    with pytest.raises(InvalidInput, match=r"--coco_results: the key '000.png' tells no image id"):
        caption(write_photos(tmp_path / "in", 1), tmp_path / "out")
    assert World.connects == 0
    with pytest.raises(InvalidInput, match="two keys tell the image id 139"):
        check_ids(["7", "139", "8", "000000000139.jpg"])


def test_results_come_to_a_complete_output_and_are_never_old(tmp_path: Path) -> None:
    truth = annotations(tmp_path, [1, 2, 3, 4, 5])
    output = tmp_path / "out"
    plain = replace(CONFIG, outputs=OutputSettings())
    output.mkdir()
    (output / "captions.json").write_text("somebody's")
    caption(truth, output, plain)
    assert (output / "captions.json").read_text() == "somebody's"
    World.batches = []
    caption(truth, output)
    assert World.batches == []
    results = (output / "captions.json").read_bytes()
    files = {file["file"]: file for file in summary(output)["files"]}
    assert files["captions.json"]["bytes"] == len(results)
    # It stays with what it was made from, and goes with it.
    (output / "captions.json").write_bytes(results[:-9])
    caption(truth, output)
    assert (output / "captions.json").read_bytes() == results
    annotations(tmp_path, [1, 2, 3])
    caption(truth, output, plain)
    assert not (output / "captions.json").exists()


def summary(output: Path) -> Any:
    return json.loads((output / "summary.json").read_text())


def test_a_list_without_results_is_one_and_what_was_not_published_is_gone(tmp_path: Path) -> None:
    job = Job("bulk", str(tmp_path / "out"), "captions-{name}", "failures-{name}")
    with coco_results(job) as results:
        results.publish()
    path = tmp_path / "out" / "captions.json"
    assert json.loads(path.read_text()) == []
    with coco_results(job) as results:
        results.add([{"key": "7", "caption": "a dog"}])
    assert list(path.parent.iterdir()) == [path]
