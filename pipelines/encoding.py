"""Pictures → grids as records store them, a batch at a time."""

import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from model.errors import ItemFailure, Reason
from model.preprocessing import CHANNELS, normalise_into
from model.records import GRID_DTYPE
from pipelines.jobs import Item

# float16's exponent of infinity and of what is no number; looking at bits takes a tenth of the time
# of np.isfinite.
_NOT_FINITE_BITS = np.uint16(0x7C00)


class GridEncoder(Protocol):
    """What this stage needs of model.encoder.Encoder."""

    digest: str
    grid_shape: tuple[int, int]

    @property
    def batch_size(self) -> int:
        """Images that a call does best with."""

    @property
    def concurrency(self) -> int:
        """Calls that do best at once."""

    def __call__(self, images: np.ndarray, extents: np.ndarray) -> tf.Tensor:
        """float32 [N, S, S, 3], int32 [N, 2] → float32 [N, P, F]."""


class View(NamedTuple):
    """An image of an item, as it is or mirrored, decoded or failed.

    Attributes:
      item: whose.
      picture: RGB, float32 [H, W, 3], as a Preparer gives it or mirrored; or why there is none.
      flipped: whether it is mirrored.
    """

    item: Item
    picture: np.ndarray | ItemFailure
    flipped: bool


class Encoding:
    """Views → grids float16 [P, F], in order; failures pass through.

    Each thread fills one array again and again: megabytes that come and go with every batch
    leave the heaps of as many threads at their largest.
    """

    def __init__(self, encoder: GridEncoder, image_size: int) -> None:
        self._encoder = encoder
        self._shape = (encoder.batch_size, image_size, image_size, CHANNELS)
        self._thread = threading.local()

    def __call__(self, batch: Sequence[View]) -> list[np.ndarray | ItemFailure]:
        """Encode a batch; the grids are the caller's."""
        pictures = [view.picture for view in batch if not isinstance(view.picture, ItemFailure)]
        grids = iter(self._encode(pictures)) if pictures else iter(())
        return [
            view.picture if isinstance(view.picture, ItemFailure) else next(grids) for view in batch
        ]

    def _encode(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray | ItemFailure]:
        if not hasattr(self._thread, "images"):
            self._thread.images = np.empty(self._shape, np.float32)
        images = self._thread.images[: len(pictures)]
        extents = [normalise_into(*each) for each in zip(pictures, images, strict=True)]
        exact = self._encoder(images, np.array(extents, np.int32))
        # TensorFlow rounds four times as fast as NumPy, and as the exported graph does.
        stored = tf.cast(exact, GRID_DTYPE).numpy()
        return [_checked(*grids) for grids in zip(np.asarray(exact), stored, strict=True)]


def _checked(exact: np.ndarray, stored: np.ndarray) -> np.ndarray | ItemFailure:
    """A grid as it is stored, float16 [P, F], unless some of it is infinite or no number."""
    if not (stored.view(np.uint16) & _NOT_FINITE_BITS == _NOT_FINITE_BITS).any():
        return stored
    largest = float(np.abs(exact).max())
    return ItemFailure(
        Reason.NOT_FINITE,
        f"grid values to {largest:g}, expected at most {np.finfo(GRID_DTYPE).max:g}",
    )
