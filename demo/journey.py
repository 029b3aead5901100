"""The stages of the demo, in order, over one output directory."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from demo.report import differences, exact_matches, read_captions
from demo.stages import Stages
from demo.toy_coco import TRAIN, VAL, World
from demo.web import NETWORK, serve_directory

MODEL_NAME = "captioner"
BULK_SUMMARY_FILE = "summary.json"
_ENCODER_WEIGHTS = "random:0"
# Held-out pictures, of which a seventh are novel. Fewer than 30 would let the three bad files
# among them exceed the share of failures that bulk accepts.
_SCENES_A_NOVEL_ONE = 75
_SEEN_A_NOVEL_ONE = 6
_LEAST_NOVEL = 5
_NUM_URLS = 30
_NUM_EXPLAINED = 3
_DEAD = "no-such-picture.png"
_READY = re.compile(r"^serving \S+ version \S+ on (\S+)$", re.MULTILINE)

# Smaller and faster to fit than what COCO needs.
_RECIPE = "tiny"


class Journey:
    """From a drawn world to captions.

    Args:
      output: an empty directory.
      stages: runs the processes.
      scenes: to train on.
      steps: of training.
      seed: of the world.
    """

    def __init__(self, output: Path, stages: Stages, *, scenes: int, steps: int, seed: int) -> None:
        self._output, self._stages = output, stages
        self._scenes, self._steps, self._seed = scenes, steps, seed
        self._images: dict[str, int] = {}

    def run(self) -> dict[str, Any]:
        """Run all stages; returns the summary."""
        world = self._draw()
        novel = _novelty(world)
        report = self._fit(world)
        rows = report["captions"]
        exact = exact_matches(rows, novel)
        expected = {row["key"]: row["caption"] for row in rows}
        with self._stages.background("serve", self._serve(), _READY) as ready:
            ledger = {
                "directory": self._bulk_directory(world, ready[1]),
                "urls": self._bulk_urls(world, ready[1]),
            }
            self._explain(world, ready[1])
        asked = {"directory": list(expected), "urls": sorted(expected)[:_NUM_URLS]}
        differ = {
            name: differences({key: expected[key] for key in keys}, read_captions(self._at(name)))
            for name, keys in asked.items()
        }
        return {
            "scenes": self._scenes,
            "seed": self._seed,
            "stages": self._measured(),
            "scores": exact | report["scores"] | exact,
            "ledger": ledger,
            "differs_from_evaluate": differ,
            "paths": {
                "captions": {name: str(self._at(name)) for name in ledger},
                "attention": str(self._at("attention")),
                "report": str(self._at("report.json")),
                "model": str(self._at("models", MODEL_NAME)),
                "logs": str(self._at("logs")),
            },
        }

    def _draw(self) -> World:
        scenes = self._scenes
        novel = max(scenes // _SCENES_A_NOVEL_ONE, _LEAST_NOVEL)
        seen = _SEEN_A_NOVEL_ONE * novel
        flags = ["--output", self._at("world"), "--seed", self._seed]
        flags += ["--train", scenes, "--val", seen, "--novel", novel]
        self._stage("draw", "demo.toy_coco", *flags, images=scenes + seen + novel)
        return World(self._at("world"))

    def _fit(self, world: World) -> dict[str, Any]:
        """World → exported model; returns evaluate's report."""
        records, model_dir = self._at("records"), self._at("model")
        report = self._at("report.json")
        splits: list[object] = []
        for split in (TRAIN, VAL):
            splits += ["--split", f"{split}={world.annotations(split)}:{world.images(split)}"]
        flags = ["--output", records, "--encoder_weights", _ENCODER_WEIGHTS]
        flags += ["--min_word_count", 1, "--max_words", 16]
        drawn = self._images["draw"]
        self._captionbeam("preprocess", *splits, *flags, images=drawn)
        flags = ["--records", records, "--model_dir", model_dir]
        self._captionbeam("train", *flags, "--config", _RECIPE, "--steps", self._steps)
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        self._images["train"] = self._steps * config["training"]["batch_size"]
        flags += ["--split", VAL, "--boxes", world.instances(VAL), "--output", report]
        self._captionbeam("evaluate", *flags, images=drawn - self._scenes)
        self._captionbeam(
            "export", "--model_dir", model_dir, "--output", self._at("models", MODEL_NAME)
        )
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found

    def _serve(self) -> list[str]:
        model = str(self._at("models", MODEL_NAME))
        return _command("captionbeam", "serve", "--model", model, "--port", 0, "--rest_port", 0)

    def _bulk_directory(self, world: World, server: str) -> dict[str, Any]:
        """All held-out pictures, and three files that are none."""
        pictures = self._at("pictures")
        shutil.copytree(world.images(VAL), pictures)
        whole = next(iter(sorted(pictures.iterdir()))).read_bytes()
        (pictures / "bad-empty.jpg").write_bytes(b"")
        (pictures / "bad-page.jpg").write_text("<!doctype html><p>Not found", encoding="utf-8")
        (pictures / "bad-truncated.png").write_bytes(whole[: len(whole) // 2])
        return self._bulk("directory", pictures, server)

    def _bulk_urls(self, world: World, server: str) -> dict[str, Any]:
        """Some held-out pictures by their URLs, and one URL that leads nowhere."""
        names = sorted(path.name for path in world.images(VAL).iterdir())[:_NUM_URLS]
        with serve_directory(world.images(VAL)) as url:
            manifest = self._at("urls.csv")
            lines = [f"{number},{url}/{name}" for number, name in enumerate([*names, _DEAD])]
            manifest.write_text("\n".join(["number,url", *lines]) + "\n", encoding="utf-8")
            more = ["--url_column", "url", "--allow_private", NETWORK]
            return self._bulk("urls", manifest, server, *more)

    def _bulk(self, name: str, source: Path, server: str, *more: str) -> dict[str, Any]:
        flags = ["--input", source, "--output", self._at(name), "--server", server]
        self._captionbeam("bulk", *flags, *more, name=f"bulk_{name}")
        summary = json.loads((self._at(name) / BULK_SUMMARY_FILE).read_text(encoding="utf-8"))
        ledger: dict[str, Any] = summary["ledger"]
        self._images[f"bulk_{name}"] = ledger["inputs"]
        return ledger

    def _explain(self, world: World, server: str) -> None:
        """Draw where the model looked: the first held-out pictures, and the last, a novel one."""
        pictures = sorted(world.images(VAL).iterdir())
        chosen = [*pictures[: _NUM_EXPLAINED - 1], pictures[-1]]
        flags = ["--server", server, "--explain", self._at("attention")]
        self._captionbeam("caption", *chosen, *flags, name="explain", images=len(chosen))

    def _at(self, *parts: str) -> Path:
        return self._output.joinpath(*parts)

    def _captionbeam(
        self, stage: str, *flags: object, name: str = "", images: int | None = None
    ) -> None:
        self._stage(name or stage, "captionbeam", stage, *flags, images=images)

    def _stage(self, name: str, module: str, *flags: object, images: int | None = None) -> None:
        self._stages.run(name, _command(module, *flags))
        if images is not None:
            self._images[name] = images

    def _measured(self) -> dict[str, dict[str, float]]:
        """Seconds of every stage, and images a second of those that handle images."""
        measured = {}
        for name, seconds in self._stages.seconds.items():
            measured[name] = {"seconds": round(seconds, 2)}
            if name in self._images:
                measured[name]["images_per_s"] = round(self._images[name] / seconds, 2)
        return measured


def _command(module: str, *flags: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, flags)]


def _novelty(world: World) -> dict[str, bool]:
    """Which held-out pictures show an object that training never did, by file name."""
    document = json.loads(world.annotations(VAL).read_text(encoding="utf-8"))
    return {image["file_name"]: image["novel"] for image in document["images"]}
