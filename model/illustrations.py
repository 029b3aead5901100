"""A handful of captions and where each word looked, for TensorBoard, at each validation.

The same images every time, so that TensorBoard's slider shows how attention learns. Drawn with
Pillow: a validation must not wait for a figure.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from model.decoding import Prediction
from model.errors import InvalidInput, ItemFailure
from model.photographs import photograph
from model.places import places
from model.records import FLIP_MARK, Manifest
from model.sheet import fitted, wrap
from model.strips import PANEL, SMALL_FONT, WIDTH, Line, compose, room_of, word_panels
from model.vocabulary import Vocabulary

PICTURES = 4
"""Images that are drawn, the first ones of the split."""
TAG = "captions"
"""What their names begin with in TensorBoard, the key of the image behind a slash."""

_MOST_REFERENCES = 5
# Stands for a photograph that is not there.
_GREY = 128
_BLACK, _PALE = (0, 0, 0), (110, 110, 110)
_CAPTION_FONT, _FONT = 11.0, 8.5


class Illustrator:
    """Writes pictures of predictions to the default summary writer.

    Args:
      vocabulary: of the captioner.
      manifest: of the records.
      images: where the photographs lie by the keys of their records; None draws maps alone.

    Raises:
      InvalidInput: no such directory.
    """

    def __init__(
        self, vocabulary: Vocabulary, manifest: Manifest, images: Path | None = None
    ) -> None:
        if images is not None and not images.is_dir():
            raise InvalidInput(f"--images {images}: no such directory, expected the photographs")
        self._vocabulary, self._manifest, self._images = vocabulary, manifest, images

    def write(self, predictions: Sequence[Prediction], step: int) -> None:
        """Draw the first `PICTURES` of a split's predictions for a step."""
        for prediction in predictions[:PICTURES]:
            picture = self.draw(prediction)
            tf.summary.image(f"{TAG}/{prediction.key}", picture[np.newaxis], step=step)

    def draw(self, prediction: Prediction) -> np.ndarray:
        """Caption, references, and for each word its attention; uint8 [H, W, 3]."""
        photo, note = self._photograph(prediction.key)
        words = [self._vocabulary.words[token] for token in prediction.tokens]
        canvas = np.full((PANEL, PANEL, 3), _GREY, np.uint8) if photo is None else photo
        panels = word_panels(
            canvas, words, prediction.attention, places(canvas.shape[:2], self._manifest)
        )
        if photo is not None:
            panels.insert(0, ("", photo))
        return compose(panels, room_of(canvas), _lines(prediction, note), WIDTH)

    def _photograph(self, key: str) -> tuple[np.ndarray | None, str]:
        """The photograph in a panel's size, or None and why it is not there."""
        if self._images is None:
            return None, ""
        path = self._images / key.removesuffix(FLIP_MARK)
        try:
            pixels = photograph(path.read_bytes(), PANEL, mirrored=key.endswith(FLIP_MARK))
        except OSError as error:
            return None, f"no photograph: {error.strerror}"
        except ItemFailure as failure:
            return None, f"no photograph: {failure.message}"
        return fitted(pixels, PANEL), ""


def _lines(prediction: Prediction, note: str) -> list[Line]:
    """What stands above the panels, no line wider than they are together."""
    head = [prediction.key, f"log P {prediction.log_prob:.2f}", note]
    said = [
        (", ".join(filter(None, head)), SMALL_FONT, _PALE),
        (prediction.caption or "(no word)", _CAPTION_FONT, _BLACK),
        *((f"– {text}", _FONT, _PALE) for text in prediction.references[:_MOST_REFERENCES]),
    ]
    return [
        Line(line, points, colour)
        for text, points, colour in said
        for line in wrap(text, WIDTH, points)
    ]
