"""Sixteen COCO photographs through every stage: memorised, exported, served, captioned.

Word for word right captions prove order, masking, vocabulary, attention, search and export
together; the very same strings from evaluate, server and in-process model prove that there is
one path from pixels to words.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import captionbeam
from model.vocabulary import tokenise

COCO80 = Path(__file__).parents[1].parent / "shared" / "data" / "coco80"
PHOTOGRAPHS = 16
STEPS = 500
SETTINGS = {
    "batch_size": PHOTOGRAPHS,
    "hidden_size": 128,
    "embedding_size": 128,
    "attention_size": 64,
    "dropout": 0.0,
    "learning_rate": 4e-3,
    "warmup_steps": 20,
    "max_length": 40,
    "validation_steps": STEPS,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COCO80.is_dir(), reason="shared/data/coco80 is not there"),
]


@dataclass(frozen=True)
class World:
    """What the stages left.

    Attributes:
      root: scratch directory.
      report: of evaluate.
    """

    root: Path
    report: dict[str, Any]

    @property
    def model(self) -> str:
        """MODELS/NAME."""
        return str(self.root / "models" / "captioner")

    @property
    def images(self) -> Path:
        """The photographs' folder."""
        return self.root / "images"

    @property
    def evaluated(self) -> dict[str, str]:
        """Captions of evaluate by key."""
        return {row["key"]: row["caption"] for row in self.report["captions"]}


def stage(*arguments: str) -> None:
    assert captionbeam.main(arguments) == 0


@pytest.fixture(scope="module", name="world")
def fixture_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("end_to_end")
    annotations = _lay_out(root)
    records, model_dir = str(root / "records"), str(root / "model")
    stage(
        *("preprocess", "--split", f"train={annotations}:{root / 'images'}"),
        *("--output", records, "--encoder_weights", "random:0"),
        *("--min_word_count", "1", "--max_words", "40"),
    )
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    train = ("train", "--records", records, "--model_dir", model_dir, *settings)
    stage(*train, "--steps", str(STEPS))
    report = root / "report.json"
    stage(
        *("evaluate", "--records", records, "--model_dir", model_dir),
        *("--split", "train", "--output", str(report)),
    )
    stage("export", "--model_dir", model_dir, "--output", str(root / "models" / "captioner"))
    return World(root, json.loads(report.read_text()))


def _lay_out(root: Path) -> Path:
    """Copy the photographs with the smallest ids, and write their annotations."""
    source = json.loads((COCO80 / "annotations" / "captions_train2017.json").read_text())
    images = sorted(source["images"], key=lambda image: image["id"])[:PHOTOGRAPHS]
    ids = {image["id"] for image in images}
    chosen = [a for a in source["annotations"] if a["image_id"] in ids]
    (root / "images").mkdir()
    for image in images:
        shutil.copy(COCO80 / "images" / image["file_name"], root / "images")
    annotations = root / "captions.json"
    annotations.write_text(json.dumps({"images": images, "annotations": chosen}))
    return annotations


@pytest.fixture(scope="module", name="server")
def fixture_server(world: World) -> Iterator[str]:
    command = [sys.executable, "-m", "captionbeam", "serve", "--model", world.model]
    command += ["--port", "0", "--rest_port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(captionbeam.__file__).parent
    ) as process:
        assert process.stdout is not None
        ready = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
        assert ready is not None
        yield ready[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def bulk_captions(output: Path) -> dict[str, str]:
    rows = [
        json.loads(line)
        for path in sorted(output.glob("captions-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    captions = {row["key"]: row["caption"] for row in rows}
    assert len(captions) == len(rows)
    return captions


def test_every_photograph_is_captioned_by_one_of_its_references(world: World) -> None:
    rows = world.report["captions"]
    assert len(rows) == PHOTOGRAPHS
    wrong = [
        (row["caption"], row["references"])
        for row in rows
        if tokenise(row["caption"]) not in [tokenise(text) for text in row["references"]]
    ]
    assert len(wrong) <= 0.05 * PHOTOGRAPHS, wrong
    assert len({row["caption"] for row in rows}) == PHOTOGRAPHS
    assert world.report["scores"]["exact_match"] == 1 - len(wrong) / PHOTOGRAPHS


def test_bulk_through_the_server_says_what_evaluate_said(world: World, server: str) -> None:
    output = world.root / "served"
    stage("bulk", "--input", str(world.images), "--output", str(output), "--server", server)
    assert bulk_captions(output) == world.evaluated


def test_bulk_in_process_says_the_same(world: World) -> None:
    output = world.root / "in-process"
    stage("bulk", "--input", str(world.images), "--output", str(output), "--model", world.model)
    assert bulk_captions(output) == world.evaluated
    ledger = json.loads((output / "summary.json").read_text())["ledger"]
    assert ledger == {
        "inputs": PHOTOGRAPHS,
        "captioned": PHOTOGRAPHS,
        "failed": {},
        "skipped": ledger["skipped"],
    }


def test_caption_explains_one_photograph(
    world: World, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = sorted(world.evaluated)[0]
    path, pictures = world.images / key, world.root / "explained"
    stage("caption", str(path), "--server", server, "--explain", str(pictures))
    assert capsys.readouterr().out.strip().endswith(f"{key}: {world.evaluated[key]}")
    (picture,) = pictures.iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")
