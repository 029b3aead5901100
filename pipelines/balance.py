"""What became of all inputs, in the words of every stage, and how many of them may fail.

Free of Beam, so that a command may import it for its last lines.
"""

from collections.abc import Mapping

from model.errors import CheckFailed
from pipelines.advice import advise

_TOP_REASONS = 3


def equation(
    inputs: int, verb: str, done: int, failed: Mapping[str, int], skipped: int | Mapping[str, int]
) -> str:
    """`26 inputs = 23 written + 2 failed (empty 2) + 1 skipped`.

    Args:
      inputs: all there were.
      verb: what was done with those that passed: "written", "captioned".
      done: how many those are.
      failed: the others, by reason.
      skipped: those passed over by intention; by kind, where there are kinds.
    """
    kinds: Mapping[str, int] = {} if isinstance(skipped, int) else skipped
    passed_over = skipped if isinstance(skipped, int) else sum(kinds.values())
    return (
        f"{inputs} inputs = {done} {verb} + {sum(failed.values())} failed{_named(failed)} "
        f"+ {passed_over} skipped{_named(kinds)}"
    )


def top_reasons(failed: Mapping[str, int]) -> str:
    """The commonest reasons: `missing_file 3, empty 1`."""
    return _listed(failed, _TOP_REASONS)


def listed_counts(counts: Mapping[str, int]) -> str:
    """All counts, the largest first: `JPEG 30, PNG 1`."""
    return _listed(counts, len(counts))


def check_failure_rate(
    done: int, failed: Mapping[str, int], max_failure_rate: float, rows: str, remedy: str
) -> None:
    """Compare failed ÷ (done + failed) with the share that may fail.

    Args:
      done: images that passed.
      failed: those that did not, by reason.
      max_failure_rate: 0 to 1.
      rows: where the failures are listed one by one.
      remedy: what to do when what they name is mended, such as "repeat the command".

    Raises:
      CheckFailed: too many failed; names the commonest reasons and what to do about each.
    """
    count = sum(failed.values())
    tried = done + count
    rate = count / max(tried, 1)
    if rate > max_failure_rate:
        raise CheckFailed(
            f"{count} of {tried} images failed ({rate:.1%}), expected at most "
            f"{max_failure_rate:.1%}: {top_reasons(failed)} "
            f"({'; '.join(map(advise, _commonest(failed, _TOP_REASONS)))}); see {rows}, mend what "
            f"it names and {remedy}, or raise --max_failure_rate"
        )


def _named(counts: Mapping[str, int]) -> str:
    return f" ({listed_counts(counts)})" if counts else ""


def _listed(counts: Mapping[str, int], most: int) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in _commonest(counts, most))


def _commonest(counts: Mapping[str, int], most: int) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]
