"""PNG files of where the model looked at each word of a caption."""

import io
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image

from model.photographs import photograph
from model.sheet import fitted
from model.strips import PANEL, draw_strip

_DRAWING = threading.Lock()


def draw(data: bytes, words: Sequence[str], attention: np.ndarray, places: np.ndarray) -> bytes:
    """A PNG of `model.strips.draw_strip` in 256 colours; safe to call from many threads.

    Args:
      data: canonical image bytes.
      words: as `draw_strip`.
      attention: likewise.
      places: likewise.

    Raises:
      InvalidInput: attention that does not fit the words.
    """
    photo = fitted(photograph(data, PANEL), PANEL)
    with _DRAWING:
        pixels = draw_strip(photo, words, attention, places)
    # A palette makes the file a fifth as large, and the whole faster.
    small = Image.fromarray(pixels).quantize(
        method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()
