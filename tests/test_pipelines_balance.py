"""The words and the threshold that preprocessing and bulk captioning share."""

import pytest

from model.errors import CheckFailed, Reason
from pipelines.advice import ADVICE
from pipelines.balance import check_failure_rate, equation


def test_the_equation_names_reasons_and_kinds_by_their_number() -> None:
    failed = {"decode": 1, "empty": 1, "missing_file": 3}
    assert equation(9, "written", 3, failed, 1) == (
        "9 inputs = 3 written + 5 failed (missing_file 3, decode 1, empty 1) + 1 skipped"
    )
    assert equation(5, "captioned", 2, {}, {"hidden": 1, "directory": 2}) == (
        "5 inputs = 2 captioned + 0 failed + 3 skipped (directory 2, hidden 1)"
    )


def test_too_many_failures_do_not_pass() -> None:
    failed = {"empty": 1, "decode": 4, "too_small": 2, "unreadable": 3}
    # 10 of 100: the limit itself passes.
    check_failure_rate(90, failed, 0.1, "rows.jsonl", "begin anew")
    with pytest.raises(CheckFailed) as caught:
        check_failure_rate(90, failed, 0.099, "rows.jsonl", "begin anew")
    said = "; ".join(
        f"{reason}: {ADVICE[reason]}"
        for reason in (Reason.DECODE, Reason.UNREADABLE, Reason.TOO_SMALL)
    )
    assert str(caught.value) == (
        "10 of 100 images failed (10.0%), expected at most 9.9%: decode 4, unreadable 3, "
        f"too_small 2 ({said}); see rows.jsonl, mend what it names and begin anew, or raise "
        "--max_failure_rate"
    )


def test_nothing_tried_is_nothing_failed() -> None:
    check_failure_rate(0, {}, 0.0, "rows.jsonl", "begin anew")


def test_there_is_advice_for_every_reason() -> None:
    assert set(ADVICE) == set(Reason)
