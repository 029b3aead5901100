"""Peak memory of preprocessing at ten times the images ÷ at one time, with a stub encoder.

A stub, since an encoder's buffers of gigabytes would hide what grows.
"""

import shutil
import tempfile
from pathlib import Path

from benchmarks.peak import run_alone
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
        arguments = (str(photographs.annotations), str(photographs.images), str(output))
        peak = run_alone("benchmarks.stub", arguments)
        shutil.rmtree(output)
    return peak
