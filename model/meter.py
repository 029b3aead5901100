"""How fast training goes, and how much of its time it waits for records."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf


class Meter:
    """Captions and seconds since it was started."""

    def __init__(self) -> None:
        self.restart()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is time without a batch."""
        started = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - started

    def add(self, captions: tf.Tensor) -> None:
        """Count a step's captions, float32 []; looked at when the meter is read."""
        self._captions.append(captions)

    def read(self) -> dict[str, float]:
        """captions_per_s, and input_wait: the share of the time without a batch."""
        captions = sum(map(float, self._captions))
        elapsed_s = time.perf_counter() - self._started
        return {
            "captions_per_s": captions / elapsed_s,
            "input_wait": self._waited_s / elapsed_s,
        }

    def restart(self) -> None:
        """Count from now on."""
        self._captions: list[tf.Tensor] = []
        self._waited_s, self._started = 0.0, time.perf_counter()
