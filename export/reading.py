"""Image bytes as any client sends them → what the encoder takes, in the graph.

Our own clients send canonical bytes; others send a phone's photograph, a palette PNG or half a
file. Each row is read for itself, so that one which cannot be read fails no other.
"""

from functools import partial

import tensorflow as tf

from export.file_bytes import first_bytes, number
from export.orientation import exif_orientation, turn_upright
from model.image_bytes import MIN_SIDE, Limits
from model.preprocessing import CHANNELS, Prepared, fit, prepare
from serving.contract import Status

_PNG_START = b"\x89PNG\r\n\x1a\n"
_GIF_START = b"GIF8"
_BMP_START = b"BM"
# Holds the size in every header but a JPEG's.
_HEAD = 32
# Colour types of a PNG that hold an alpha for each pixel, and where the type stands.
_WITH_ALPHA = (4, 6)
_COLOUR_TYPE = 25
# A PNG's palette and its transparency come before the pixels; a profile may come first.
_SEARCHED_BYTES = 2**20
# Threads that decode one request's images.
_DECODERS = 4


def read_batch(image_bytes: tf.Tensor, image_size: int, aspect: str) -> tuple[Prepared, tf.Tensor]:
    """Decode, turn upright and normalise a batch.

    Args:
      image_bytes: JPEG, PNG, GIF or BMP files, string [N].
      image_size: S, the side in pixels of the square that the encoder takes.
      aspect: of model.preprocessing.ASPECTS.

    Returns:
      image [N, S, S, 3] and extent [N, 2] as `prepare` makes them of the canonical bytes of the
      same picture, up to a grey level, and bit for bit where the bytes are canonical already;
      zeros and S where there is no picture. Status of each, int32 [N], of contract.Status.
    """
    count = tf.shape(image_bytes)[0]
    rows = tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
    read = partial(_read_row, image_size=image_size, aspect=aspect)
    # TensorFlow's decoders fail, and no operation but this one catches that.
    rows = rows.map(read, num_parallel_calls=_DECODERS).ignore_errors()
    # One row too many, lest there be none.
    nothing = _nothing(image_size)
    rows = rows.concatenate(tf.data.Dataset.from_tensors((count, Status.OK, nothing)))
    rows = rows.batch(tf.cast(count, tf.int64) + 1).with_options(_options())
    places, verdicts, found = rows.get_single_element()

    places = places[:-1, tf.newaxis]
    status = tf.tensor_scatter_nd_update(
        tf.fill([count], int(Status.DECODE)), places, verdicts[:-1]
    )
    blank = Prepared(*(tf.repeat(part[tf.newaxis], count, axis=0) for part in nothing))
    prepared = Prepared(
        *(
            tf.tensor_scatter_nd_update(rest, places, part[:-1])
            for rest, part in zip(blank, found, strict=True)
        )
    )
    return prepared, status


def _options() -> tf.data.Options:
    """Nothing is tuned or rewritten for a few elements: that would take longer than they do."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_warm_start = False
    return options


def _nothing(image_size: int) -> Prepared:
    return Prepared(
        tf.zeros([image_size, image_size, CHANNELS]), tf.constant([image_size, image_size])
    )


def _read_row(
    place: tf.Tensor, data: tf.Tensor, image_size: int, aspect: str
) -> tuple[tf.Tensor, tf.Tensor, Prepared]:
    """Place, status and what was read; fails where the decoder does."""
    status = _judge(data)
    prepared = tf.cond(
        status == Status.OK,
        lambda: _read(data, image_size, aspect),
        lambda: _nothing(image_size),
    )
    return place, status, prepared


def _judge(data: tf.Tensor) -> tf.Tensor:
    """What the header says, before any pixel is decoded: a status, int32 []."""
    head = first_bytes(tf.strings.join([data, bytes(_HEAD)]), _HEAD)

    def read(start: int, size: int, *, is_little: bool = True) -> tf.Tensor:
        return number(head[start : start + size], size, is_little)

    def read_signed(start: int) -> tf.Tensor:
        value = read(start, 4)
        return tf.where(value < 2**31, value, value - 2**32)

    def size_of_png() -> tf.Tensor:
        return tf.stack([read(place, 4, is_little=False) for place in (20, 16)])

    def size_of_gif() -> tf.Tensor:
        return tf.stack([read(place, 2) for place in (8, 6)])

    def size_of_bmp() -> tf.Tensor:
        # TensorFlow takes a palette's indices for grey; 0 is what no picture has.
        is_colour = read(28, 2) >= 8 * CHANNELS
        # A height below 0 says that the rows are stored from the top.
        size = tf.stack([tf.abs(read_signed(place)) for place in (22, 18)])
        return tf.where(is_colour, size, 0)

    size = tf.case(
        [
            (tf.io.is_jpeg(data), lambda: tf.io.extract_jpeg_shape(data, tf.int64)[:2]),
            (_starts(data, _PNG_START), size_of_png),
            (_starts(data, _GIF_START), size_of_gif),
            (_starts(data, _BMP_START), size_of_bmp),
        ],
        default=lambda: tf.constant([-1, -1], tf.int64),
    )
    least = tf.reduce_min(size)
    faults = [
        (least < 0, Status.NOT_AN_IMAGE),
        (least == 0, Status.DECODE),
        (least < MIN_SIDE, Status.TOO_SMALL),
        (size[0] * size[1] > Limits().max_pixels, Status.TOO_MANY_PIXELS),
    ]
    status = tf.constant(int(Status.OK))
    for is_so, fault in reversed(faults):
        status = tf.where(is_so, int(fault), status)
    return status


def _read(data: tf.Tensor, image_size: int, aspect: str) -> Prepared:
    return tf.case(
        [
            (tf.io.is_jpeg(data), lambda: _read_jpeg(data, image_size, aspect)),
            (
                _starts(data, _PNG_START) & _is_transparent(data),
                lambda: fit(_on_white(tf.io.decode_png(data, 4)), image_size, aspect),
            ),
        ],
        default=lambda: prepare(data, image_size, aspect),
    )


def _is_transparent(png: tf.Tensor) -> tf.Tensor:
    """Whether a PNG says how opaque its pixels are, bool []; TensorFlow makes up what it does not.

    By its colour type, or by a chunk tRNS before the pixels (PNG, third edition, section 5).
    """
    searched = first_bytes(png, _SEARCHED_BYTES)
    size = tf.size(searched, tf.int64)
    pixels, transparency = (tf.constant(list(name), tf.int64) for name in (b"IDAT", b"tRNS"))
    # A length and a name lie before a chunk's data, a checksum behind it.
    frame = 12

    def more(place: tf.Tensor, is_found: tf.Tensor) -> tf.Tensor:
        return ~is_found & (place + 8 <= size)

    def step(place: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        head = tf.ensure_shape(searched[place : place + 8], [8])
        following = place + frame + number(head[:4], 4, is_little=False)
        is_over = tf.reduce_all(head[4:] == pixels)
        return tf.where(is_over, size, following), tf.reduce_all(head[4:] == transparency)

    begin = (tf.constant(len(_PNG_START), tf.int64), tf.constant(False))
    has_chunk = tf.while_loop(more, step, begin, parallel_iterations=1)[1]
    is_alpha = tf.reduce_any(searched[_COLOUR_TYPE] == tf.constant(_WITH_ALPHA, tf.int64))
    return has_chunk | is_alpha


def _read_jpeg(data: tf.Tensor, image_size: int, aspect: str) -> Prepared:
    """As canonical bytes where it is one; what `canonicalise` re-encodes is decoded in full."""
    orientation = exif_orientation(data)
    is_canonical = (orientation == 1) & (tf.io.extract_jpeg_shape(data)[2] == CHANNELS)
    return tf.cond(
        is_canonical,
        lambda: prepare(data, image_size, aspect),
        lambda: fit(turn_upright(_decode_as_pillow(data), orientation), image_size, aspect),
    )


def _decode_as_pillow(jpeg: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_jpeg(jpeg, CHANNELS, dct_method="INTEGER_ACCURATE")


def _on_white(pixels: tf.Tensor) -> tf.Tensor:
    """RGBA uint8 [H, W, 4] → RGB uint8 [H, W, 3], laid on white."""

    def blend() -> tf.Tensor:
        colour, alpha = (tf.cast(part, tf.int32) for part in (pixels[..., :3], pixels[..., 3:]))
        mixed = colour * alpha + 255 * (255 - alpha)
        return tf.cast((mixed + 127) // 255, tf.uint8)

    is_opaque = tf.reduce_all(pixels[..., 3] == 255)
    return tf.cond(is_opaque, lambda: pixels[..., :3], blend)


def _starts(data: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(data, 0, len(magic)) == magic
