"""Two sides measured in turn; the median of their ratios counts, since machines are noisy."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

ROUNDS = 3


def rate(work: Callable[[], object], images: int) -> float:
    """Images a second of one call."""
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def compare(
    numerator: Callable[[], float], denominator: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, str]:
    """Measure both sides in turn; the median ratio, and what the sides gave.

    Each numerator stands between two denominators and is divided by their mean, so that a
    machine that grows slower from minute to minute favours neither.
    """
    tops, bottoms = [], [denominator()]
    for _ in range(rounds):
        tops.append(numerator())
        bottoms.append(denominator())
    means = [statistics.harmonic_mean(around) for around in pairwise(bottoms)]
    pairs = list(zip(tops, means, strict=True))
    ratio = statistics.median(top / bottom for top, bottom in pairs)
    sides = ", ".join(f"{top:.1f}/{bottom:.1f}" for top, bottom in pairs)
    return ratio, sides


def report(name: str, value: float, target: str, detail: str) -> None:
    """Print one result."""
    print(f"RATIO {name} {value:.3f} {target}    {detail}", flush=True)
