"""Peak memory of `captionbeam preprocess` at four times the images ÷ at one time."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.photographs import lay_out
from benchmarks.ratio import report

COUNT, FACTOR = 512, 4
SHARD_SIZE = 128
TARGET = 1.15


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        small, large = (
            _peak_mib(Path(scratch) / str(count), count) for count in (COUNT, FACTOR * COUNT)
        )
    report(
        "preprocess_peak_memory",
        large / small,
        f"<={TARGET}",
        f"peak MiB at {FACTOR * COUNT} images / at {COUNT}: {large:.0f}/{small:.0f}",
    )


def _peak_mib(scratch: Path, count: int) -> float:
    photographs = lay_out(scratch / "photographs", count)
    command = [
        *(sys.executable, "-m", "captionbeam", "preprocess"),
        *("--split", f"train={photographs.annotations}:{photographs.images}"),
        *("--output", str(scratch / "records"), "--encoder_weights", "random:0"),
        *("--min_word_count", "1", "--shard_size", str(SHARD_SIZE)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # wait4 alone tells the peak of this one child.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024
