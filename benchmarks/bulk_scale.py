"""What grows with a bulk job, with a model that costs nothing: its time, and not its memory.

Four times the images ÷ one time, each in a process of its own; and a manifest of a million URLs
that all lead to a refused address.
"""

import tempfile
from pathlib import Path

from benchmarks.bulk_stub import measure
from benchmarks.photographs import lay_out
from benchmarks.ratio import report

COUNT, FACTOR = 4_000, 4
MEMORY_TARGET, TIME_TARGET = 1.1, 4.2
ROWS = 1_000_000
ROWS_TARGET_S = 300.0
# Nobody is asked: the address is refused before.
_REFUSED = "http://127.0.0.1:9"


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        _report_images(Path(scratch))
        _report_rows(Path(scratch))


def _report_images(root: Path) -> None:
    small, large = (
        measure(str(lay_out(root / str(count), count).images), f"{root}/captions-{count}")
        for count in (COUNT, FACTOR * COUNT)
    )
    sizes = f"{FACTOR * COUNT} images / {COUNT}, stub model"
    report(
        "bulk_peak_memory",
        large.peak_mib / small.peak_mib,
        f"<={MEMORY_TARGET}",
        f"peak MiB at {sizes}: {large.peak_mib:.0f}/{small.peak_mib:.0f}",
    )
    report(
        "bulk_time",
        large.seconds / small.seconds,
        f"<={TIME_TARGET}",
        f"s at {sizes}, with the start of the process: {large.seconds:.1f}/{small.seconds:.1f}",
    )


def _report_rows(root: Path) -> None:
    rows = root / "rows.txt"
    with rows.open("w", encoding="utf-8") as file:
        file.writelines(f"{_REFUSED}/{number}.jpg\n" for number in range(ROWS))
    cost = measure(str(rows), f"{root}/failures")
    report(
        "bulk_failing_manifest",
        cost.seconds / ROWS_TARGET_S,
        "<=1",
        f"{cost.seconds:.0f} s of {ROWS_TARGET_S:.0f} s for {ROWS} refused URLs, "
        f"peak {cost.peak_mib:.0f} MiB",
    )
