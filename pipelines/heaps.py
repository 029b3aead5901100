"""Keeps the memory of a process level over a job of hours."""

import ctypes
from contextlib import suppress


def return_free_memory() -> None:
    """Give the system back what the C library's heaps hold and nobody uses.

    glibc makes heaps for its threads, up to eight a core, and each keeps what it needed at most:
    left alone, a process grows for as long as images are decoded in more and more of them.
    Nothing happens where the C library is another.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
