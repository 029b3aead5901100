"""Lines of progress, with a clock that is told what time it is."""

import io

import pytest

from model.progress import LIVE_INTERVAL_S, PLAIN_INTERVAL_S, Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_plain_line_comes_every_30_seconds_and_no_more() -> None:
    clock, stream = Clock(), io.StringIO()
    line = Progress("caption", 100, "images", stream, clock=clock)
    for _ in range(65):
        clock.now += 1
        line.advance()
    line.close()
    assert PLAIN_INTERVAL_S == 30
    assert stream.getvalue() == (
        "caption: 30 of 100 images, 1.0 images/s, 70 s left\n"
        "caption: 60 of 100 images, 1.0 images/s, 40 s left\n"
    )


def test_a_live_line_is_written_over_and_ends_with_what_was_reached() -> None:
    clock, stream = Clock(), Terminal()
    line = Progress("train", None, "steps", stream, clock=clock)
    for _ in range(4):
        clock.now += LIVE_INTERVAL_S / 2
        line.advance(5, "loss 2")
    clock.now += LIVE_INTERVAL_S / 2
    line.advance(5)
    line.close()
    assert stream.getvalue() == (
        "\r\x1b[2Ktrain: 10 steps, 20.0 steps/s, loss 2"
        "\r\x1b[2Ktrain: 20 steps, 20.0 steps/s, loss 2"
        "\r\x1b[2Ktrain: 25 steps, 20.0 steps/s\n"
    )


def test_what_never_showed_a_line_ends_without_one() -> None:
    stream = Terminal()
    line = Progress("train", 3, "steps", stream, clock=Clock())
    line.advance(3)
    line.close()
    assert stream.getvalue() == ""


def test_what_an_earlier_run_finished_counts_as_done_but_not_into_rate_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    line = Progress("preprocess", 1000, "images", stream, done=700, clock=clock)
    clock.now += 30
    line.show(700, "2 failed")
    clock.now += 30
    line.show(760, "2 failed")
    assert stream.getvalue() == (
        "preprocess: 700 of 1000 images, 0.0 images/s, 2 failed\n"
        "preprocess: 760 of 1000 images, 1.0 images/s, 4 min left, 2 failed\n"
    )


@pytest.mark.parametrize(
    ("total", "left"),
    [
        (149, "119 s"),
        (150, "2 min"),
        (30 + 7199, "120 min"),
        (30 + 7200, "2.0 h"),
        (36030, "10.0 h"),
    ],
)
def test_time_left_is_said_in_a_unit_that_suits_it(total: int, left: str) -> None:
    clock, stream = Clock(), io.StringIO()
    line = Progress("bulk", total, "images", stream, clock=clock)
    clock.now += 30
    line.show(30)
    assert stream.getvalue() == f"bulk: 30 of {total} images, 1.0 images/s, {left} left\n"
