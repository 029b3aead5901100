"""What the demo shows in the end: how many captions are exactly right, and where they lie."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model.vocabulary import tokenise


def exact_matches(rows: Iterable[Mapping[str, Any]], novel: Mapping[str, bool]) -> dict[str, float]:
    """Shares of captions that equal one of their references, word for word.

    Args:
      rows: "key", "caption" and "references" of every held-out picture.
      novel: for each key, whether it shows an object that training never did.

    Returns:
      exact_match of all, exact_match_seen and exact_match_novel, 0–1; 0 of none.
    """
    right = {
        row["key"]: tokenise(row["caption"]) in [tokenise(text) for text in row["references"]]
        for row in rows
    }
    return {
        "exact_match": _share(right.values()),
        "exact_match_seen": _share(value for key, value in right.items() if not novel[key]),
        "exact_match_novel": _share(value for key, value in right.items() if novel[key]),
    }


def differences(expected: Mapping[str, str], got: Mapping[str, str]) -> list[str]:
    """Where two ways to ask the same model disagree: a caption lost, added or changed.

    Args:
      expected: captions by key.
      got: captions of the other way.

    Returns:
      One line for each key that differs; none when all is well.
    """
    return [
        f"{key}: {got.get(key)!r}, expected {expected.get(key)!r}"
        for key in sorted({*expected, *got})
        if got.get(key) != expected.get(key)
    ]


def read_captions(directory: Path) -> dict[str, str]:
    """Captions that bulk wrote, by the last part of their key."""
    rows = [
        json.loads(line)
        for path in sorted(directory.glob("captions-*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return {row["key"].rpartition("/")[2]: row["caption"] for row in rows}


def stage_table(stages: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines: stage, seconds, images a second where a stage handles images."""
    lines = [f"{'stage':16} {'seconds':>9} {'images/s':>9}"]
    for name, measured in stages.items():
        rate = measured.get("images_per_s")
        shown = "" if rate is None else f"{rate:9.1f}"
        lines.append(f"{name:16} {measured['seconds']:9.1f} {shown}".rstrip())
    total = sum(measured["seconds"] for measured in stages.values())
    return [*lines, f"{'total':16} {total:9.1f}"]


def ledger_line(name: str, ledger: Mapping[str, Any]) -> str:
    """`directory: 203 inputs = 200 captioned + failed 3 (empty 1, …) + skipped 0`."""
    failed, skipped = _total(ledger["failed"]), _total(ledger["skipped"])
    captioned = f"{ledger['inputs']} inputs = {ledger['captioned']} captioned"
    return f"{name}: {captioned} + failed {failed} + skipped {skipped}"


def _total(counts: Mapping[str, int]) -> str:
    named = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{sum(counts.values())}{f' ({named})' if named else ''}"


def _share(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
