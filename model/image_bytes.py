"""Bytes → canonical bytes, with Pillow alone.

The only place that decides what an image is. Canonical bytes are an upright RGB JPEG or
PNG that TensorFlow decodes to the same pixels everywhere; JPEG and PNG bytes that need
nothing pass through untouched, everything else is re-encoded without loss.
"""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from model.errors import ItemFailure, Reason

# MPO, a JPEG with more frames behind it, comes through the JPEG opener.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
# Below this a picture is a tracking pixel or a spacer, not a photograph.
MIN_SIDE = 8
EXIF_ORIENTATION = 0x0112
UPRIGHT = 1
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_BIT_DEPTH_OFFSET = 24
# Text has none of these bytes (https://mimesniff.spec.whatwg.org/#binary-data-byte); the header of
# each format has some.
_BINARY_BYTES = bytes(sorted({*range(0x20)} - {*b"\t\n\f\r\x1b"}))
_SNIFFED_BYTES = 512
# Pillow remarks on odd metadata on stderr, where a million images would drown our one line; only
# a gigapixel header matters, and that is a failure.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("error", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Limits:
    """What is refused before any pixel is decoded.

    Attributes:
      max_bytes: largest file, in bytes.
      max_pixels: largest width × height; the default is the size at which Pillow warns.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 89_478_485


@dataclass(frozen=True)
class Canonical:
    """An image as the rest of the system sees it.

    Attributes:
      data: JPEG or PNG bytes, RGB, 8 bits, upright.
      width: upright width in pixels.
      height: upright height in pixels.
    """

    data: bytes
    width: int
    height: int


def canonicalise(
    data: bytes, limits: Limits | None = None, *, read_pixels: bool = True
) -> Canonical:
    """Validate image bytes and bring them into canonical form.

    Args:
      data: a JPEG (MPO), PNG, GIF, BMP, WebP or TIFF file; of several frames the first.
      limits: caps; `Limits()` when omitted.
      read_pixels: False leaves the pixels of a JPEG that needs no conversion unread, for callers
        that decode it themselves and, when that fails, ask again with True for the reason.

    Returns:
      Upright RGB image bytes and their size.

    Raises:
      ItemFailure: EMPTY, TOO_MANY_BYTES, NOT_AN_IMAGE, TOO_MANY_PIXELS, TOO_SMALL,
        TRUNCATED or DECODE.
    """
    limits = limits or Limits()
    if not data:
        raise ItemFailure(Reason.EMPTY, "0 bytes, expected an image")
    if len(data) > limits.max_bytes:
        # The caller may have stopped reading there, so the size itself is unknown.
        raise ItemFailure(
            Reason.TOO_MANY_BYTES, f"expected at most {limits.max_bytes} bytes, got more"
        )
    if _is_text(data):
        # A page may begin as an image does: "BMW", "GIF89a is …".
        raise _no_image(data)
    with _open(data) as image:
        _check_size(image, limits)
        return _convert(image, data, read_pixels)


def format_of(data: bytes) -> str:
    """Which of `FORMATS` an image file has (or "MPO"), by its leading bytes.

    Raises:
      ItemFailure: NOT_AN_IMAGE, TOO_MANY_PIXELS or DECODE.
    """
    with _open(data) as image:
        return str(image.format)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _no_image(data) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ItemFailure(Reason.TOO_MANY_PIXELS, str(error)) from error
    # Pillow's parsers raise whatever a corrupt header makes them raise.
    except Exception as error:
        raise ItemFailure(Reason.DECODE, f"unreadable header: {error}") from error


def _is_text(data: bytes) -> bool:
    head = data[:_SNIFFED_BYTES]
    return len(head.translate(None, _BINARY_BYTES)) == len(head)


def _no_image(data: bytes) -> ItemFailure:
    expected = ", ".join(FORMATS)
    return ItemFailure(
        Reason.NOT_AN_IMAGE, f"starts with {data[:12]!r}, expected one of {expected}"
    )


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ItemFailure(
            Reason.TOO_MANY_PIXELS,
            f"{width}×{height} pixels, expected at most {limits.max_pixels} in all",
        )
    if min(width, height) < MIN_SIDE:
        raise ItemFailure(
            Reason.TOO_SMALL, f"{width}×{height} pixels, expected at least {MIN_SIDE} a side"
        )


def _convert(image: Image.Image, data: bytes, read_pixels: bool) -> Canonical:
    try:
        if image.format != "JPEG":
            # PNG may hold EXIF behind its pixels; looking for it must not hide that they are cut.
            image.load()
        if _is_canonical(image, data):
            width, height = image.size
            if read_pixels:
                # An eighth of the size reads every coefficient, so truncation still shows, and
                # skips most of the arithmetic (JPEG only; PNG is loaded by now).
                image.draft(None, (width // 8, height // 8))
                image.load()
            return Canonical(data, width, height)
        image.load()
        # After load: a TIFF is turned by Pillow itself, which then drops the tag.
        turn = _TO_UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image if turn is None else image.transpose(turn))
    # Pillow reports corrupt pixels as OSError, ValueError, SyntaxError, EOFError, struct.error …
    except Exception as error:
        truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
        reason = Reason.TRUNCATED if truncated else Reason.DECODE
        raise ItemFailure(reason, f"{image.format}: {error}") from error
    return Canonical(_encode_png(rgb), rgb.width, rgb.height)


def _is_canonical(image: Image.Image, data: bytes) -> bool:
    if image.mode != "RGB" or _orientation(image) in _TO_UPRIGHT:
        return False
    if image.format == "JPEG":
        return True
    return (
        image.format == "PNG"
        and data[_PNG_BIT_DEPTH_OFFSET] == 8
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
    )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, UPRIGHT))
    # Cameras and editors write broken EXIF, for which Pillow raises anything; the pixels are fine.
    except Exception:
        return UPRIGHT


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _sixteen_bit_to_rgb(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    """Keep the high byte, as Pillow does for 16-bit colour; its conversion of grey clips at 255."""
    wide = image.convert("F")
    return wide.point(lambda value: value * (1 / 256.0) + 0).convert("L").convert("RGB")


def _encode_png(rgb: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # Level 1: these bytes live for one step, so time counts more than size.
    rgb.save(buffer, "PNG", compress_level=1, icc_profile=None)
    return buffer.getvalue()
