"""The EXIF orientation of a JPEG, found and undone by TensorFlow's operations alone.

Exif 2.32, section 4.5 (segments) and 4.6 (tags); TIFF 6.0, section 2 (directories).
"""

import tensorflow as tf

from export.file_bytes import MAX_STEPS, first_bytes, number
from model.image_bytes import EXIF_ORIENTATION, UPRIGHT

# A photograph's EXIF segment is one of its first, and a segment has no more than 64 KiB.
_SEARCHED_BYTES = 256 * 2**10
_EXIF_SEGMENT, _SCAN, _END = 0xE1, 0xDA, 0xD9
_EXIF_START = b"Exif\0\0"
# Bytes of an integer of each TIFF type that a writer may have chosen: BYTE, SHORT, LONG.
_WIDTHS = {1: 1, 3: 2, 4: 4}
_ENTRY = 12
_LAST = 8


def exif_orientation(jpeg: tf.Tensor) -> tf.Tensor:
    """How a photograph's pixels are stored: 1 (upright) to 8, int32 [].

    Args:
      jpeg: a JPEG file, scalar string.

    Returns:
      1 where the file does not say, or says it wrongly.
    """
    data = first_bytes(jpeg, _SEARCHED_BYTES)
    found = _find_exif(data)
    return tf.cond(found < 0, lambda: tf.constant(UPRIGHT), lambda: tiff_orientation(data[found:]))


def turn_upright(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo an orientation.

    Args:
      pixels: as stored, [H, W, C].
      orientation: 1 to 8, int32 [].

    Returns:
      Upright pixels, [H, W, C] or [W, H, C].
    """

    def is_one_of(*values: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(values))

    def turned(values: tuple[int, ...], axes: list[int], pixels: tf.Tensor) -> tf.Tensor:
        return tf.cond(is_one_of(*values), lambda: tf.reverse(pixels, axes), lambda: pixels)

    pixels = tf.cond(
        orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: tf.identity(pixels)
    )
    pixels.set_shape([None, None, pixels.shape[2]])
    pixels = turned((2, 3, 6, 7), [1], pixels)
    return turned((3, 4, 7, 8), [0], pixels)


def _find_exif(data: tf.Tensor) -> tf.Tensor:
    """Where the TIFF header lies in a JPEG's first bytes, int64 [size] → int64 []; −1: nowhere."""
    size = tf.size(data, tf.int64)
    magic = tf.constant(list(_EXIF_START), tf.int64)
    start = 4 + len(_EXIF_START)

    def more(place: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return (found < 0) & (place + start <= size)

    def step(place: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = tf.ensure_shape(data[place : place + start], [start])
        marker = head[1]
        is_exif = (marker == _EXIF_SEGMENT) & tf.reduce_all(head[4:] == magic)
        is_over = (head[0] != 0xFF) | (marker == _SCAN) | (marker == _END)
        following = tf.where(is_over, size, place + 2 + head[2] * 256 + head[3])
        # A marker may be preceded by any number of 0xFF.
        following = tf.where((head[0] == 0xFF) & (marker == 0xFF), place + 1, following)
        return following, tf.where(is_exif & ~is_over, place + start, found)

    begin = (tf.constant(2, tf.int64), tf.constant(-1, tf.int64))
    return tf.while_loop(more, step, begin, maximum_iterations=MAX_STEPS)[1]


def tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """That of a TIFF header and its first directory, int64 [size] → int32 []; 1 if it has none."""
    tiff = tf.concat([tiff, tf.zeros([_ENTRY], tf.int64)], axis=0)
    size = tf.size(tiff, tf.int64)
    is_little = (tiff[0] == ord("I")) & (tiff[1] == ord("I"))
    directory = tf.minimum(number(tiff[4:8], 4, is_little), size - 2)
    count = number(tiff[directory : directory + 2], 2, is_little)
    held = (size - directory - 2) // _ENTRY
    first, count = directory + 2, tf.minimum(count, held)
    entries = tf.reshape(tiff[first : first + count * _ENTRY], [-1, _ENTRY])

    kinds = number(entries[:, 2:4], 2, is_little)
    value = tf.zeros_like(kinds)
    for kind, width in _WIDTHS.items():
        value = tf.where(kinds == kind, number(entries[:, 8 : 8 + width], width, is_little), value)
    is_told = (number(entries[:, :2], 2, is_little) == EXIF_ORIENTATION) & (value <= _LAST)
    # 0 says nothing; a tag that comes twice counts as it was said last.
    told = tf.boolean_mask(value, is_told)
    told = tf.concat([tf.constant([0], tf.int64), told], axis=0)[-1]
    return tf.cast(tf.maximum(told, UPRIGHT), tf.int32)
