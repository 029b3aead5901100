"""A small COCO world on disk, and an encoder that costs nothing; imported by tests and workers."""

import io
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from model.encoder import EncoderSettings
from pipelines.records_job import PreprocessSettings
from pipelines.source_flags import Source

IMAGE_SIZE = 32
SENTENCES = ("a red dog", "a small red dog runs", "the dog sees a red ball", "one ball", "red red")


class FakeEncoder:
    """Mean colour of the image and of its quadrants; notes every call in a file.

    `stop_at` ends the process's work at that call: by an exception, or by SIGKILL.
    """

    digest = "fake"
    grid_shape = (4, 8)
    batch_size, concurrency = 32, 1

    def __init__(self, log: Path, stop_at: int = 0, kill: bool = False, scale: float = 1) -> None:
        self.log, self.stop_at, self.kill, self.scale = log, stop_at, kill, scale

    def __call__(self, images: np.ndarray, extents: np.ndarray | None = None) -> tf.Tensor:
        del extents
        with self.log.open("a") as file:
            file.write(f"{len(images)}\n")
        if len(self.log.read_text().splitlines()) == self.stop_at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the machine went away")
        half = IMAGE_SIZE // 2
        quadrants = images.reshape(-1, 2, half, 2, half, 3).mean((2, 4)).reshape(-1, 4, 3)
        grid = np.concatenate([quadrants, np.ones((len(images), 4, 5), np.float32)], axis=-1)
        return tf.constant(grid * self.scale, tf.float32)


class NotingEncoder(FakeEncoder):
    """Notes also which process calls it, in LOG.pids."""

    def __call__(self, images: np.ndarray, extents: np.ndarray | None = None) -> tf.Tensor:
        with Path(f"{self.log}.pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().__call__(images, extents)


def processes(log: Path) -> set[int]:
    """Those in which a NotingEncoder has encoded."""
    return set(map(int, Path(f"{log}.pids").read_text().split()))


def calls(log: Path) -> int:
    """How many batches a FakeEncoder has encoded."""
    return len(log.read_text().splitlines()) if log.exists() else 0


def jpeg(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A smooth coloured picture of its own for every seed."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (3, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def write_split(root: Path, name: str, count: int, first_id: int = 1) -> tuple[Path, Path]:
    """Images and captions of a split; returns (annotation file, image directory)."""
    directory = root / name
    directory.mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(first_id, first_id + count):
        file_name = f"{image_id:012d}.jpg"
        (directory / file_name).write_bytes(jpeg(image_id))
        images.append({"id": image_id, "file_name": file_name})
        for number in range(2):
            caption = SENTENCES[(image_id + number) % len(SENTENCES)]
            annotations.append(
                {"id": image_id * 10 + number, "image_id": image_id, "caption": caption}
            )
    path = root / f"captions_{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path, directory


def settings(root: Path, output: str, **changes: Any) -> PreprocessSettings:
    """Settings over the splits that `write_split` made in `root`."""
    sources = tuple(
        Source(path.stem.removeprefix("captions_"), str(path), str(root / path.stem[9:]))
        for path in sorted(root.glob("captions_*.json"))
    )
    fields: dict[str, Any] = {
        "encoder": EncoderSettings("random:0", IMAGE_SIZE, 1),
        "shard_size": 8,
        "min_word_count": 1,
        **changes,
    }
    return PreprocessSettings(sources, str(root / output), **fields)


def published(output: Path) -> Mapping[str, bytes]:
    """All files of a records directory but those of its job."""
    return {path.name: path.read_bytes() for path in sorted(output.iterdir()) if path.is_file()}
