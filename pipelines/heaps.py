"""Keeps the memory of a process level over a job of hours."""

import ctypes
import gc
from contextlib import suppress
from functools import cache


def return_free_memory() -> None:
    """Give the system back what the C library's heaps hold and nobody uses.

    glibc makes heaps for its threads, up to eight a core, and each keeps what it needed at most:
    left alone, a process grows for as long as images are decoded in more and more of them.
    Nothing happens where the C library is another.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@cache
def freeze_loaded() -> None:
    """Once a process: what is loaded by now is no longer looked through for garbage.

    TensorFlow and Beam are a million objects, and each full collection looked at all of them: it
    was over half of the work where items fail fast. To be called when what is heavy is loaded.
    """
    gc.collect()
    gc.freeze()
