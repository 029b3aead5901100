"""Images of every kind, and a model of fake but content-dependent captions."""

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from pipelines.clients import Clients, Target
from serving import contract
from serving.answers import Answer
from serving.client import FILLER, Client
from serving.errors import INVALID_ARGUMENT, CallFailed
from serving.metadata import ModelMetadata, Signature, TensorSpec
from serving.retry import Retries

NAME, VERSION = "fake", 3
POISON_COLOUR = (255, 0, 0)
TOKENS, HYPOTHESES = 2, 4
SIZES = {"K": HYPOTHESES}


class World:
    """What the fake model does next; one for the process, as tests and runner share it."""

    versions: Sequence[int] = (VERSION,)
    unavailable_after: int | None = None
    not_finite: bool = False
    # The version that answers tell, where it is not that of the metadata.
    answers_tell: int | None = None
    # The version that answers to `explain` tell, where it is another one.
    explains_as: int | None = None
    batches: ClassVar[list[int]] = []
    connects = 0

    @classmethod
    def reset(cls) -> None:
        cls.versions, cls.unavailable_after, cls.not_finite = (VERSION,), None, False
        cls.batches, cls.connects, cls.answers_tell = [], 0, None
        cls.explains_as = None


def connect_fake(target: Target) -> Client:
    """Picklable by reference; each connection sees the next of `World.versions`."""
    del target
    version = World.versions[min(World.connects, len(World.versions) - 1)]
    World.connects += 1
    return Client(FakeTransport(version), retries=Retries(attempts=1))


def answer_by_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands ask the fake model.

    A class in the place of Clients would reach later tests: pickling then takes Clients by value,
    and whoever unpickles it in this process changes the class itself.
    """
    monkeypatch.setattr(Clients.__init__, "__defaults__", (connect_fake,))


def fake_caption(canonical: bytes) -> str:
    return f"photo {hashlib.sha256(canonical).hexdigest()[:8]}"


def fake_log_prob(canonical: bytes) -> float:
    return -float(hashlib.sha256(canonical).digest()[0]) / 8


class FakeTransport:
    """Refuses a whole request with a red first pixel in it, as TensorFlow does."""

    def __init__(self, version: int) -> None:
        self._version = version

    def predict(self, signature: str, image_bytes: Sequence[bytes], timeout_s: float) -> Answer:
        assert timeout_s > 0
        World.batches.append(sum(data != FILLER for data in image_bytes))
        if World.unavailable_after is not None and len(World.batches) > World.unavailable_after:
            raise CallFailed("UNAVAILABLE", "the server went away")
        if any(is_poison(data) for data in image_bytes):
            raise CallFailed(INVALID_ARGUMENT, "an image that the model refuses")
        count = len(image_bytes)
        scores = [float("nan") if World.not_finite else fake_log_prob(x) for x in image_bytes]
        captions = [fake_caption(x) for x in image_bytes]
        status = {contract.STATUS: np.zeros(count, np.int32)}
        if signature == contract.NBEST:
            return Answer(status | _ranked(captions, scores), World.answers_tell or self._version)
        outputs = status | {
            contract.CAPTION: np.array([caption.encode() for caption in captions], object),
            contract.LOG_PROB: np.array(scores, np.float32),
            contract.TOKEN_IDS: np.ones((count, TOKENS), np.int32),
            contract.LENGTH: np.full(count, TOKENS, np.int32),
        }
        if signature == contract.EXPLAIN:
            explained = outputs | _explained(captions)
            return Answer(explained, World.explains_as or World.answers_tell or self._version)
        assert signature == contract.SERVING_DEFAULT
        return Answer(outputs, World.answers_tell or self._version)

    def metadata(self, timeout_s: float) -> ModelMetadata:
        assert timeout_s > 0
        return ModelMetadata(
            NAME,
            self._version,
            {
                name: Signature(_specs(contract.INPUTS), _specs(outputs))
                for name, outputs in contract.OUTPUTS.items()
            },
        )

    def close(self) -> None:
        pass


def _explained(captions: Sequence[str]) -> dict[str, np.ndarray]:
    """The words of each, and a grid of 2 × 2 cells that the caption decides."""
    attention = [
        [np.roll([0.7, 0.1, 0.1, 0.1], int(caption[-1], 16) + word) for word in range(TOKENS)]
        for caption in captions
    ]
    return {
        contract.WORDS: np.array([caption.encode().split() for caption in captions], object),
        contract.ATTENTION: np.array(attention, np.float32).reshape(-1, TOKENS, 4),
        contract.PLACES: np.full((len(captions), 2, 2), [0.1, 0.6], np.float32),
    }


def _ranked(captions: Sequence[str], scores: Sequence[float]) -> dict[str, np.ndarray]:
    """`HYPOTHESES` of each; of a search that found one less than it is wide."""
    ranks = range(1, HYPOTHESES)
    texts = [[caption, *(f"{caption} {rank}" for rank in ranks)] for caption in captions]
    log_probs = [[score, *(score - rank for rank in ranks)] for score in scores]
    for row in log_probs:
        row[-1] = -np.inf
    encoded = [[text.encode() for text in row] for row in texts]
    return {
        contract.CAPTIONS: np.array(encoded, object).reshape(-1, HYPOTHESES),
        contract.LOG_PROBS: np.array(log_probs, np.float32).reshape(-1, HYPOTHESES),
    }


def _specs(tensors: object) -> dict[str, TensorSpec]:
    assert hasattr(tensors, "items")
    return {
        name: TensorSpec(tensor.dtype, tuple(SIZES.get(letter) for letter in tensor.dims))
        for name, tensor in tensors.items()
    }


def is_poison(canonical: bytes) -> bool:
    with Image.open(io.BytesIO(canonical)) as image:
        return image.getpixel((0, 0)) == POISON_COLOUR


def png(colour: tuple[int, int, int], size: tuple[int, int] = (16, 12)) -> bytes:
    return encode(Image.new("RGB", size, colour), "PNG")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(index: int) -> bytes:
    """A picture that no other index has."""
    return png((0, index % 256, index // 256))


def png_bomb(side: int = 50_000) -> bytes:
    """A PNG header that promises side × side pixels, and a few bytes of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animated_gif() -> bytes:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("blue", "green")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated_jpeg() -> bytes:
    """20 × 10, navy left of yellow, as stored; 10 × 20, navy above yellow, upright."""
    stored = Image.new("RGB", (20, 10), "navy")
    stored.paste("yellow", (10, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(stored, "JPEG", exif=exif)


def good_images() -> dict[str, bytes]:
    """One of every kind that needs care, and is captioned."""
    return {
        "plain.png": photo(1),
        "sub/rotated.jpg": rotated_jpeg(),
        "cmyk.jpg": encode(Image.new("CMYK", (16, 16), (0, 200, 200, 0)), "JPEG"),
        "moving.gif": animated_gif(),
    }


def bad_images() -> dict[str, tuple[bytes, str]]:
    """One of every kind that is no image to us, and the reason of its failure row."""
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    return {
        "empty.jpg": (b"", "empty"),
        "cut.png": (encode(noise, "PNG")[:-2000], "truncated"),
        "text.jpg": (b"<html>not found</html>", "not_an_image"),
        "dot.png": (png((9, 9, 9), (1, 1)), "too_small"),
        "bomb.png": (png_bomb(), "too_many_pixels"),
    }


def write_photos(directory: Path, count: int, poison: Sequence[int] = ()) -> Path:
    """`count` pictures 000.png …; those in `poison` are refused by the fake model."""
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        data = png(POISON_COLOUR, (16, 12 + index)) if index in poison else photo(index)
        (directory / f"{index:03d}.png").write_bytes(data)
    return directory
