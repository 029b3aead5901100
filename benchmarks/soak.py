"""Overload: more requests than a server can answer, for a while.

    python -m benchmarks.soak --seconds 600

Requests of one image arrive at three times the rate that the server answers, whether or not
earlier ones have been. Every one must be answered or refused with a code, the memory must not
grow, and those that were taken must have waited no longer than a full queue takes.
"""

import argparse
import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.bare import BATCH
from benchmarks.bulk import MEAN_LENGTH, export_untrained
from benchmarks.photographs import lay_out
from benchmarks.ratio import report
from benchmarks.served import Served, predicting, serve
from serving import batching_parameters
from serving.batching_parameters import BATCHING_FILE

OVERLOAD = 3.0
_GROWTH = 1.05
# Of what the queue's length says; a batch under way and the noise of the machine come on top.
_WAIT = 1.25
_ANSWER_S = 300.0


@dataclass
class Soaked:
    """What became of the requests.

    Attributes:
      sent: how many there were.
      codes: how many ended with each status.
      latencies_s: of those that were answered.
      rate: images a second that were answered.
      early_mib: most memory held in the second quarter of the time.
      late_mib: and in the last one.
    """

    sent: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    rate: float = 0.0
    early_mib: float = 0.0
    late_mib: float = 0.0


def soak(
    served: Served,
    images: Sequence[bytes],
    seconds: float,
    capacity: int,
    calibration_s: float = 15.0,
) -> Soaked:
    """Overloads a server.

    Args:
      served: the server.
      images: asked for in turn.
      seconds: for how long.
      capacity: images that it takes at a time.
      calibration_s: seconds in which to find out how fast it is.
    """
    with predicting(served) as stub:
        pace = OVERLOAD * _rate(served, stub, images, capacity, calibration_s)
        return _overload(served, stub, images, seconds, pace)


def _rate(
    served: Served, stub: Any, images: Sequence[bytes], capacity: int, seconds: float
) -> float:
    """Images a second that it answers when half its queue is always full."""
    turns = itertools.cycle(images)

    def ask() -> int:
        calls = [
            stub.Predict.future(served.request(next(turns)), timeout=_ANSWER_S)
            for _ in range(max(1, capacity // 2))
        ]
        return len([call.result() for call in calls])

    # The first calls optimise the graph.
    ask()
    done, started_s = 0, time.monotonic()
    while time.monotonic() - started_s < seconds:
        done += ask()
    return done / (time.monotonic() - started_s)


def _overload(
    served: Served, stub: Any, images: Sequence[bytes], seconds: float, pace: float
) -> Soaked:
    found, ended, lock = Soaked(), threading.Semaphore(0), threading.Lock()
    started_s = time.monotonic()

    def note(call: Any, sent_s: float) -> None:
        now_s = time.monotonic()
        with lock:
            found.codes[call.code().name] += 1
            if call.code() is grpc.StatusCode.OK:
                found.latencies_s.append(now_s - sent_s)
        ended.release()

    for number, image in enumerate(itertools.cycle(images)):
        due_s = number / pace
        if due_s > seconds:
            break
        time.sleep(max(0.0, started_s + due_s - time.monotonic()))
        sent_s = time.monotonic()
        call = stub.Predict.future(served.request(image), timeout=_ANSWER_S)
        call.add_done_callback(lambda call, sent_s=sent_s: note(call, sent_s))
        found.sent += 1
        if number % max(1, round(pace)) == 0:
            _weigh(served, found, due_s / seconds)
    for _ in range(found.sent):
        if not ended.acquire(timeout=2 * _ANSWER_S):
            break
    found.rate = found.codes["OK"] / (time.monotonic() - started_s)
    return found


def _weigh(served: Served, found: Soaked, share: float) -> None:
    if 0.25 <= share < 0.5:
        found.early_mib = max(found.early_mib, served.resident_mib())
    if share >= 0.75:
        found.late_mib = max(found.late_mib, served.resident_mib())


def main() -> int:
    """Measures and reports; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photographs = lay_out(root / "photographs", BATCH)
        images = [path.read_bytes() for path in sorted(photographs.images.iterdir())]
        model_dir = export_untrained(root, MEAN_LENGTH)
        capacity = batching_parameters.load(model_dir.parent / BATCHING_FILE).capacity
        with serve(model_dir, root / "serve.log") as served:
            found = soak(served, images, seconds, capacity)
    codes = ", ".join(f"{count} {code}" for code, count in sorted(found.codes.items()))
    ended = sum(found.codes.values())
    p99_s = float(np.percentile(found.latencies_s, 99))
    full_s = capacity / found.rate
    growth = found.late_mib / found.early_mib
    report("requests ended / sent", ended / found.sent, "=1", f"{found.sent} sent: {codes}")
    report(
        "p99 of those answered / a full queue",
        p99_s / full_s,
        f"<={_WAIT}",
        f"{p99_s:.1f} s / {full_s:.1f} s, {found.rate:.1f} images/s, {capacity} may wait",
    )
    report(
        "memory late / early",
        growth,
        f"<={_GROWTH}",
        f"{found.late_mib:.0f}/{found.early_mib:.0f} MiB over {seconds:.0f} s",
    )
    allowed = {"OK", "RESOURCE_EXHAUSTED"}
    kept = (
        ended == found.sent,
        set(found.codes) <= allowed,
        p99_s / full_s <= _WAIT,
        growth <= _GROWTH,
    )
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
