"""Scores and comparisons of the demo."""

import json
from pathlib import Path

from demo.report import (
    differences,
    exact_matches,
    ledger_line,
    read_captions,
    stage_table,
)


def row(key: str, caption: str, *references: str) -> dict[str, object]:
    return {"key": key, "caption": caption, "references": list(references)}


def test_exact_is_one_whole_reference_after_tokenising() -> None:
    rows = [
        row("a", "a red square", "A red square.", "a square"),
        row("b", "a red square", "a square", "A red, square!"),
        row("c", "a red", "a red square"),
        row("d", "a red square square", "a red square"),
    ]
    assert exact_matches(rows, dict.fromkeys("abcd", False))["exact_match"] == 0.5


def test_seen_and_novel_are_shares_of_their_own() -> None:
    rows = [row("a", "x", "x"), row("b", "x", "y"), row("c", "x", "x"), row("d", "x", "x")]
    novel = {"a": False, "b": True, "c": True, "d": True}
    assert exact_matches(rows, novel) == {
        "exact_match": 3 / 4,
        "exact_match_seen": 1.0,
        "exact_match_novel": 2 / 3,
    }


def test_no_rows_score_nothing() -> None:
    assert set(exact_matches([], {}).values()) == {0.0}


def test_differences_find_what_is_changed_lost_or_added() -> None:
    expected = {"a": "x", "b": "y", "c": "z"}
    assert differences(expected, dict(expected)) == []
    assert differences(expected, {"a": "x", "b": "Y", "d": "w"}) == [
        "b: 'Y', expected 'y'",
        "c: None, expected 'z'",
        "d: 'w', expected None",
    ]


def test_captions_of_all_shards_are_read_by_file_name(tmp_path: Path) -> None:
    rows = [{"key": "http://127.0.0.1:1/a.png", "caption": "x"}, {"key": "b.png", "caption": "y"}]
    for number, content in enumerate(rows):
        (tmp_path / f"captions-{number}.jsonl").write_text(json.dumps(content) + "\n")
    (tmp_path / "failures-0.jsonl").write_text(json.dumps({"key": "c.png", "caption": "no"}))
    assert read_captions(tmp_path) == {"a.png": "x", "b.png": "y"}


def test_the_table_sums_up() -> None:
    lines = stage_table({"draw": {"seconds": 2.0, "images_per_s": 7.5}, "serve": {"seconds": 3.5}})
    assert [line.split() for line in lines] == [
        ["stage", "seconds", "images/s"],
        ["draw", "2.0", "7.5"],
        ["serve", "3.5"],
        ["total", "5.5"],
    ]


def test_a_ledger_is_a_sum() -> None:
    ledger = {"inputs": 5, "captioned": 2, "failed": {"empty": 1, "dns": 2}, "skipped": {}}
    assert ledger_line("urls", ledger) == (
        "urls: 5 inputs = 2 captioned + failed 3 (empty 1, dns 2) + skipped 0"
    )
