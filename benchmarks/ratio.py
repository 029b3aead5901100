"""Two sides measured in turn; the median of the pairs' ratios counts, since machines are noisy."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 3


def rate(work: Callable[[], object], images: int) -> float:
    """Images a second of one call."""
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def compare(
    numerator: Callable[[], float], denominator: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, str]:
    """Measure both sides in turn; the median ratio, and what the sides gave."""
    pairs = [(numerator(), denominator()) for _ in range(rounds)]
    ratio = statistics.median(top / bottom for top, bottom in pairs)
    sides = ", ".join(f"{top:.1f}/{bottom:.1f}" for top, bottom in pairs)
    return ratio, sides


def report(name: str, value: float, target: str, detail: str) -> None:
    """Print one result."""
    print(f"RATIO {name} {value:.3f} {target}    {detail}", flush=True)
