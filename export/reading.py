"""Image bytes as any client sends them → what the encoder takes, in the graph.

Our own clients send canonical bytes; others send a phone's photograph, a palette PNG or half a
file. Each row is read for itself, so that one which cannot be read fails no other.
"""

from functools import partial

import tensorflow as tf

from export.file_bytes import MAX_STEPS, first_bytes, number
from export.orientation import exif_orientation, tiff_orientation, turn_upright
from model.image_bytes import MIN_SIDE, UPRIGHT, Limits
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
    places, statuses, found = rows.get_single_element()

    places = places[:-1, tf.newaxis]
    status = tf.tensor_scatter_nd_update(
        tf.fill([count], int(Status.DECODE)), places, statuses[:-1]
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
    return options


def _nothing(image_size: int) -> Prepared:
    return Prepared(
        tf.zeros([image_size, image_size, CHANNELS]), tf.constant([image_size, image_size])
    )


def _read_row(
    place: tf.Tensor, data: tf.Tensor, image_size: int, aspect: str
) -> tuple[tf.Tensor, tf.Tensor, Prepared]:
    """Place, status and what was read; fails where the decoder does."""
    status = _check_header(data)
    prepared = tf.cond(
        status == Status.OK,
        lambda: _read(data, image_size, aspect),
        lambda: _nothing(image_size),
    )
    return place, status, prepared


def _check_header(data: tf.Tensor) -> tf.Tensor:
    """What the header says, before any pixel is decoded: a status, int32 []."""
    head = first_bytes(tf.strings.join([tf.strings.substr(data, 0, _HEAD), bytes(_HEAD)]), _HEAD)

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
        # Divided, since a product may be too large for an integer.
        (size[0] > Limits().max_pixels // tf.maximum(size[1], 1), Status.TOO_MANY_PIXELS),
        (tf.strings.length(data) > Limits().max_bytes, Status.TOO_MANY_BYTES),
    ]
    status = tf.constant(int(Status.OK))
    for is_so, fault in reversed(faults):
        status = tf.where(is_so, int(fault), status)
    return status


def _read(data: tf.Tensor, image_size: int, aspect: str) -> Prepared:
    return tf.case(
        [
            (tf.io.is_jpeg(data), lambda: _read_jpeg(data, image_size, aspect)),
            (_starts(data, _PNG_START), lambda: _read_png(data, image_size, aspect)),
        ],
        default=lambda: prepare(data, image_size, aspect),
    )


def _read_png(data: tf.Tensor, image_size: int, aspect: str) -> Prepared:
    is_transparent, orientation = _png_chunks(data)
    pixels = tf.cond(
        is_transparent,
        lambda: _on_white(tf.io.decode_png(data, CHANNELS + 1)),
        # TensorFlow makes up an alpha that is not there.
        lambda: tf.io.decode_png(data, CHANNELS),
    )
    return fit(turn_upright(pixels, orientation), image_size, aspect)


def _png_chunks(png: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What a PNG says before its pixels (third edition, sections 5 and 11).

    Returns:
      Whether it says how opaque its pixels are, by colour type or chunk tRNS, bool []; the
      orientation of its chunk eXIf, int32 [].
    """
    searched = first_bytes(png, _SEARCHED_BYTES)
    size = tf.size(searched, tf.int64)
    pixels, transparency, exif = (
        tf.constant(list(name), tf.int64) for name in (b"IDAT", b"tRNS", b"eXIf")
    )
    # A length and a name lie before a chunk's data, a checksum behind it.
    head_size, frame = 8, 12

    def more(place: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return place + head_size <= size

    def step(
        place: tf.Tensor, has_chunk: tf.Tensor, found: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        head = tf.ensure_shape(searched[place : place + head_size], [head_size])
        following = place + frame + number(head[:4], 4, is_little=False)
        is_over, is_transparency, is_exif = (
            tf.reduce_all(head[4:] == name) for name in (pixels, transparency, exif)
        )
        return (
            tf.where(is_over, size, following),
            has_chunk | is_transparency,
            tf.where(is_exif, place + head_size, found),
        )

    begin = (tf.constant(len(_PNG_START), tf.int64), tf.constant(False), tf.constant(-1, tf.int64))
    _, has_chunk, found = tf.while_loop(more, step, begin, maximum_iterations=MAX_STEPS)
    is_alpha = tf.reduce_any(searched[_COLOUR_TYPE] == tf.constant(_WITH_ALPHA, tf.int64))
    orientation = tf.cond(
        found < 0, lambda: tf.constant(UPRIGHT), lambda: tiff_orientation(searched[found:])
    )
    return has_chunk | is_alpha, orientation


def _read_jpeg(data: tf.Tensor, image_size: int, aspect: str) -> Prepared:
    """As canonical bytes where it is one; what `canonicalise` re-encodes is decoded in full."""
    orientation = exif_orientation(data)
    is_canonical = (orientation == UPRIGHT) & (tf.io.extract_jpeg_shape(data)[2] == CHANNELS)
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
        # 16 bits hold 255 · 255 + 127.
        colour, alpha = (tf.cast(part, tf.uint16) for part in (pixels[..., :3], pixels[..., 3:]))
        mixed = colour * alpha + 255 * (255 - alpha)
        return tf.cast((mixed + 127) // 255, tf.uint8)

    is_opaque = tf.reduce_all(pixels[..., 3] == 255)
    return tf.cond(is_opaque, lambda: pixels[..., :3], blend)


def _starts(data: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(data, 0, len(magic)) == magic
