"""The table of mutations is true of the code, and its runner tells caught from everything else."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.mutation_table import MUTATIONS, TRAPS, Mutation
from tests.mutations import apply, judge, main, report, run_tests, select

ROOT = Path(__file__).parents[1]
DESIGN = ROOT.parent / "shared" / "DESIGN.md"


@cache
def names_of_tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def name_of(mutation: Mutation) -> str:
    return f"{mutation.file}: {mutation.how}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_a_mutation_changes_code_that_is_there_and_has_a_test(mutation: Mutation) -> None:
    original = (ROOT / mutation.file).read_text(encoding="utf-8")
    changed = apply(mutation, original)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(original))
    file, name = mutation.test.split("::")
    assert name.partition("[")[0] in names_of_tests(file)


def test_each_trap_is_in_the_table() -> None:
    assert len(set(TRAPS)) == len(TRAPS)
    assert {mutation.trap for mutation in MUTATIONS} == set(TRAPS)
    assert len(set(MUTATIONS)) == len({name_of(mutation) for mutation in MUTATIONS})


def test_the_traps_are_those_of_the_design() -> None:
    if not DESIGN.exists():
        pytest.skip(f"no {DESIGN}")
    text = DESIGN.read_text(encoding="utf-8")
    section = re.search(r"\n## Known traps[^\n]*\n(.+?)(\n## |\Z)", text, re.DOTALL)
    assert section is not None
    listed = " ".join(section[1].split()).removesuffix(".")
    assert tuple(listed.split(" · ")) == TRAPS


# A tiny project, and all that can become of a mutation.

FAKE = """
def double(x):
    return x + x

def at_least(x, least):
    return max(x, least)
"""
FAKE_TESTS = """
import pytest
from fake import at_least, double

@pytest.fixture
def four():
    return double(2) + 0 * 1 // at_least(1, 1)

@pytest.mark.parametrize("x", [0, 3])
def test_double(x):
    assert double(x) == 2 * x

def test_that_looks_at_nothing():
    double(1)

def test_with_a_fixture(four):
    assert four == 4

def test_that_fails_anyway():
    assert double(1) == 3

def test_that_is_skipped():
    pytest.skip("no data")
"""


def fake(before: str, after: str, test: str) -> Mutation:
    return Mutation(
        "trap", f"{before} to {after}", "fake.py", before, after, f"test_fake.py::{test}"
    )


def write_fake(root: Path) -> tuple[str, ...]:
    """The files of the tiny project."""
    files = {"fake.py": FAKE, "test_fake.py": FAKE_TESTS}
    for name, text in files.items():
        (root / name).write_text(text)
    return tuple(files)


# What becomes of it → the mutation.
FATES = {
    "yes: assert 9 == (2 * 3)": fake("x + x", "x * x", "test_double"),
    "the test passes": fake("x + x", "x * x", "test_that_looks_at_nothing"),
    "fake.py has 'x - x' 0 times, expected it once": fake("x - x", "x", "test_double"),
    "fake.py has 'return ' 2 times, expected it once": fake("return ", "pass", "test_double"),
    "fake.py: 'x +' is no Python": fake("x + x", "x +", "test_double"),
    "pytest ended with 4: ImportError: cannot import name 'at_least'": fake(
        "def at_least", "def at_most", "test_double"
    ),
    "no assertion fails, the code does: ZeroDivisionError": fake("x + x", "x // 0", "test_double"),
    "an error outside of the test: failed on setup": fake(
        "max(x, least)", "0", "test_with_a_fixture"
    ),
    "unchanged, its test does not pass: assert 2 == 3": fake(
        "x + x", "x * x", "test_that_fails_anyway"
    ),
    "unchanged, its test does not run: ": fake("x + x", "x * x", "test_that_is_skipped"),
}


def test_only_an_assertion_that_fails_is_a_catch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write_fake(tmp_path)
    verdicts = list(judge(list(FATES.values()), tmp_path, names, jobs=2))
    for expected, verdict in zip(FATES, verdicts, strict=True):
        assert verdict.caught is expected.startswith("yes: ")
        assert verdict.reason.startswith(expected.removeprefix("yes: "))
    assert (tmp_path / "fake.py").read_text() == FAKE
    assert not report(verdicts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(
        "| trap | x + x to x * x (fake.py) | test_fake.py::test_double | yes: assert 9 == (2 * 3)"
    )
    assert lines[3].endswith("| **no**: the test passes |")
    assert lines[-1] == f"1 of {len(FATES)} caught"
    assert report([verdict for verdict in verdicts if verdict.caught])


def test_a_test_that_is_not_there_shows_nothing(tmp_path: Path) -> None:
    (verdict,) = judge([fake("x + x", "x * x", "test_gone")], tmp_path, write_fake(tmp_path))
    assert not verdict.caught
    assert verdict.reason.startswith("the unchanged tests: pytest ended with 4: ")


def test_a_test_without_end_is_ended(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_endless.py").write_text("def test_endless():\n    while True:\n        pass\n")
    assert run_tests(project, ["test_endless.py"], timeout_s=2.0) == "no end within 2 s"


def test_a_mutation_is_found_by_any_field() -> None:
    one, other = fake("x + x", "x * x", "test_double"), fake("max", "min", "test_with_a_fixture")
    assert select([one, other], "FIXTURE") == [other]
    assert select([one, other], "trap") == select([one, other], "") == [one, other]
    with pytest.raises(SystemExit) as ended:
        main(["--only", "no such text"])
    assert ended.value.code == 2
