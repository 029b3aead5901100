"""How a long list of images becomes requests, bounded by count and by bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.errors import InvalidInput


@dataclass(frozen=True)
class RequestLimits:
    """How much goes into one request; a larger image goes alone.

    Attributes:
      images: images at most, at least 1.
      image_bytes: their bytes in all, below the server's message limit.
    """

    images: int = 32
    image_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.images < 1 or self.image_bytes < 1:
            raise InvalidInput(f"{self}: expected 1 or more of each")


def split(images: Sequence[bytes], limits: RequestLimits) -> Iterator[list[bytes]]:
    """Cuts a list, in order, into batches within the limits; none is empty."""
    batch: list[bytes] = []
    size = 0
    for image in images:
        full = len(batch) == limits.images or size + len(image) > limits.image_bytes
        if batch and full:
            yield batch
            batch, size = [], 0
        batch.append(image)
        size += len(image)
    if batch:
        yield batch
