"""The speed of training: the clock is a list of times."""

import pytest
import tensorflow as tf

from model import meter
from model.meter import Meter


def test_captions_and_waiting_since_the_last_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Start; a wait of 2 s, one of 1 s; read; restart; a wait of 0.5 s; read.
    times = iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0, 100.0, 100.0, 100.5, 102.0])
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(times))
    counted = Meter()
    for captions in (30.0, 20.0):
        with counted.waiting():
            pass
        counted.add(tf.constant(captions))
    assert counted.read() == {"captions_per_s": 5.0, "input_wait": pytest.approx(0.3)}
    counted.restart()
    with counted.waiting():
        pass
    counted.add(tf.constant(8.0))
    assert counted.read() == {"captions_per_s": 4.0, "input_wait": 0.25}
