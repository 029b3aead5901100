"""Where the time of a training step goes, by TensorFlow's profiler; draws step_profile.png.

The share of each kind of operation in the time of all operations, of the step that
`benchmarks train` times.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib.figure
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks.captions import write_records
from benchmarks.ratio import report
from benchmarks.train import IMAGES, STEPS, make_trainer, step_of

FIGURE = "step_profile.png"
MATMULS = {"MatMul", "_FusedMatMul", "BatchMatMulV2", "_FusedBatchMatMulV2", "Einsum"}
# Waiting for what is inside of them.
_CALLS = {"While", "PartitionedCall", "StatefulPartitionedCall", "If", "StatelessWhile"}
_SHOWN = 12


def main() -> None:
    """Measure, report and draw."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(
            write_records(Path(scratch) / "records", IMAGES), Path(scratch) / "model"
        )
        step = step_of(trainer, next(iter(trainer._batches(0))))
        tf.profiler.experimental.start(scratch)
        for _ in range(STEPS):
            step()
        tf.profiler.experimental.stop()
        times = operation_times(Path(scratch))
    total = sum(times.values())
    shares = {kind: time / total for kind, time in times.most_common()}
    rest = ", ".join(
        f"{kind} {share:.3f}"
        for kind, share in list(shares.items())[:_SHOWN]
        if kind not in MATMULS
    )
    matmuls = sum(share for kind, share in shares.items() if kind in MATMULS)
    report("matmuls/step", matmuls, "as high as can be", rest)
    _draw(shares)


def operation_times(logs: Path) -> Counter[str]:
    """Time of each kind of operation in a profile, picoseconds, what it waits for left out."""
    times: Counter[str] = Counter()
    for file in logs.rglob("*.xplane.pb"):
        space = xplane_pb2.XSpace()
        space.ParseFromString(file.read_bytes())
        for plane in space.planes:
            names = {number: each.name for number, each in plane.event_metadata.items()}
            for line in plane.lines:
                for name, time in _own_times(line.events, names):
                    times[name] += time
    return times


def _own_times(
    events: Iterable[xplane_pb2.XEvent], names: dict[int, str]
) -> Iterator[tuple[str, int]]:
    """Kind and time of each operation of a thread, less that of the operations within it."""
    open_until: list[list] = []
    for event in sorted(events, key=lambda event: (event.offset_ps, -event.duration_ps)):
        kind = re.search(r"(?<!:):(\w+)(?:#|$)", names[event.metadata_id])
        if kind is None:
            continue
        while open_until and open_until[-1][0] <= event.offset_ps:
            yield from _closed(open_until.pop())
        if open_until:
            open_until[-1][2] -= event.duration_ps
        open_until.append([event.offset_ps + event.duration_ps, kind[1], event.duration_ps])
    for each in open_until:
        yield from _closed(each)


def _closed(operation: list) -> Iterator[tuple[str, int]]:
    _, kind, own = operation
    if kind not in _CALLS:
        yield kind, max(own, 0)


def _draw(shares: dict[str, float]) -> None:
    shown = dict(list(shares.items())[:_SHOWN])
    shown["others"] = 1 - sum(shown.values())
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:blue" if kind in MATMULS else "tab:grey" for kind in shown]
    axes.barh(list(shown), [100 * share for share in shown.values()], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("share of the operations' time, %")
    figure.suptitle("A training step: 512 units, 10,000 words, 160 captions")
    figure.savefig(FIGURE, dpi=120)
