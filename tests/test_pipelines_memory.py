"""What the launcher of preprocessing holds of the annotations, and for how long."""

import contextlib
import gc
import io
import json
import random
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from pipelines import records_job
from pipelines.annotations import Columns
from pipelines.coco import read_inputs
from pipelines.coco_json import read_coco
from pipelines.records_job import preprocess
from pipelines.source_flags import Source
from tests.preprocess_fixtures import FakeEncoder, settings, write_split

DATA = Path(__file__).parents[1].parent / "shared" / "data"
COUNT = 4000
WORDS = ("a", "man", "dog", "riding", "street", "on", "the", "red", "bus", "sitting", "people")


def write_coco(path: Path) -> str:
    """Annotations as large as those of COCO 2017: all its fields, five captions of 52 letters."""
    generator = random.Random(0)
    images = [
        {
            "license": 4,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.staticflickr.com/8186/8119368305_{number:010x}_z.jpg",
            "id": number,
        }
        for number in range(1000, 1000 + COUNT)
    ]
    annotations = [
        {"image_id": image["id"], "id": 10 * int(image["id"]) + n, "caption": caption}  # type: ignore[call-overload]
        for n in range(5)
        for image in images
        for caption in [" ".join(generator.choices(WORDS, k=30))[:52]]
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return str(path)


def write_tokens(coco: str) -> str:
    """The same as a token file."""
    content = json.loads(Path(coco).read_text())
    path = Path(coco).with_suffix(".token")
    rows = [f"{a['image_id']:012d}.jpg#0\t{a['caption']}\n" for a in content["annotations"]]
    path.write_text("".join(rows))
    return str(path)


@pytest.mark.parametrize("as_tokens", [False, True])
def test_an_image_costs_little_more_than_its_captions(tmp_path: Path, as_tokens: bool) -> None:
    path = write_coco(tmp_path / "captions.json")
    path = write_tokens(path) if as_tokens else path
    source = Source("train", path, "/data/coco/train2017")
    tracemalloc.start()
    try:
        inputs = read_inputs([source])
        # What reading holds besides: a window of the file, twice while it grows.
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(inputs.splits["train"]) == COUNT
    # Five captions are 505 bytes of Python strings; 1,424 were measured, and 1,806 at the peak of
    # 20,000 images. Those of pycocotools' index were 2,970.
    assert held / COUNT < 1600
    assert (peak - 8 * 2**20) / COUNT < 2200


def test_the_items_are_gone_while_shards_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(tmp_path, "train", 20)
    make = partial(FakeEncoder, tmp_path / "log")
    fields = {"key", "source", "image_id", "captions"}
    run_job, seen = records_job.run_job, []

    def watch(*args: object) -> None:
        gc.collect()
        items = [o for o in gc.get_objects() if type(o) is dict and o.keys() == fields]
        # Other tests may have left some of theirs.
        seen.append(sum(str(item["source"]).startswith(str(tmp_path)) for item in items))
        run_job(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(records_job, "run_job", watch)
    outcome = preprocess(settings(tmp_path, "out"), (), make)
    assert outcome.manifest.num_images("train") == 20
    assert seen == [0]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no annotations in {DATA}")
def test_coco_is_read_as_pycocotools_reads_it() -> None:
    for path in sorted(DATA.glob("*/annotations/*.json")):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(path))
        found = read_coco(str(path), Columns())
        assert [(image.image_id, image.name) for image in found.images] == [
            (number, image["file_name"]) for number, image in coco.imgs.items()
        ]
        assert [image.captions for image in found.images] == [
            [(entry["id"], entry["caption"]) for entry in coco.imgToAnns[number]]
            for number in coco.imgs
        ]
        assert found.orphans == []
        assert found.images
