"""A decoder that ends its process, as a broken native library does; imported by that process."""

import os
from pathlib import Path

from model.image_bytes import Canonical, canonicalise

CRASHING = b"crash"


def decode(data: bytes) -> Canonical:
    """As `canonicalise`; some bytes end the process."""
    if data.startswith(CRASHING):
        os.abort()
    return canonicalise(data)


class Flaky:
    """Ends its process the first time alone."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, data: bytes) -> Canonical:
        if not self.mark.exists():
            self.mark.touch()
            os.abort()
        return canonicalise(data)
