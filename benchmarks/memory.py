"""Peak memory of preprocessing at ten times the images ÷ at one time, with a stub encoder.

A stub, since an encoder's buffers of gigabytes would hide what grows.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.photographs import lay_out
from benchmarks.ratio import report

COUNT, FACTOR = 2_000, 10
TARGET = 1.05


def main() -> None:
    """Measure and report."""
    small, large = (peak_mib(count) for count in (COUNT, FACTOR * COUNT))
    report(
        "preprocess_peak_memory",
        large / small,
        f"<={TARGET}",
        f"peak MiB at {FACTOR * COUNT} images / at {COUNT}, stub encoder: {large:.0f}/{small:.0f}",
    )


def peak_mib(count: int) -> float:
    """Peak resident memory of one run over `count` photographs."""
    with tempfile.TemporaryDirectory() as scratch:
        photographs = lay_out(Path(scratch) / "photographs", count)
        output = Path(scratch) / "records"
        command = [
            *(sys.executable, "-m", "benchmarks.stub"),
            *(str(photographs.annotations), str(photographs.images), str(output)),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # wait4 alone tells the peak of this one child.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        shutil.rmtree(output)
    return usage.ru_maxrss / 1024
