"""Brings each known trap of the field back, and shows that the test which owns it then fails.

    python -m tests.mutations                  # all of tests/mutation_table.py
    python -m tests.mutations --only beam      # those whose line in the table has that text

The tests of the table run unchanged first: one that fails, or is skipped, shows nothing. Then
each mutation is applied to a temporary copy of the packages, its test run in a process of its
own, and the file put back. Caught means that the test ran and that an assertion of it failed; an
error on the way (an import, a fixture, a process that does not end) is none. Prints the table
trap → mutation → test → caught; exit code 0 when all are caught, 1 when one is not, 2 when --only
finds none.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from tests.mutation_table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
# What the tests of the table need.
COPIED = (
    *("model", "pipelines", "export", "serving", "demo", "tests"),
    *("captionbeam.py", "setup.py", "pyproject.toml"),
)
TIMEOUT_S = 300.0
# How pytest reports what a test itself says of the code; the last is pytest.raises.
_ASSERTIONS = ("assert ", "AssertionError", "Failed: ")


class MutationError(Exception):
    """A mutation that cannot be applied."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation.

    Attributes:
      mutation: that was tried.
      caught: whether its test failed by an assertion.
      reason: what the test said, or why it is not caught; one line.
    """

    mutation: Mutation
    caught: bool
    reason: str


@dataclass(frozen=True)
class Case:
    """One test that ran, with its parameters.

    Attributes:
      test: FILE::NAME or FILE::NAME[PARAMETERS]; empty where a file could not be read.
      outcome: "passed", "skipped", "failure" or "error" (outside of the test itself).
      message: of what is not passed, one line.
    """

    test: str
    outcome: str
    message: str

    def belongs_to(self, test: str) -> bool:
        """Whether it is this test, or this test with some parameters."""
        return self.test == test or self.test.startswith(f"{test}[")


def judge(
    mutations: Sequence[Mutation],
    root: Path,
    names: Sequence[str] = COPIED,
    *,
    jobs: int = 1,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Verdict]:
    """Try every mutation.

    Args:
      mutations: what to try.
      root: of the project.
      names: files and folders of it that are copied.
      jobs: mutations tried at once, each in a copy of its own.
      timeout_s: longest time for a mutation's test.

    Yields:
      A verdict for each mutation, in their order.
    """
    with tempfile.TemporaryDirectory(prefix="captionbeam-mutations-") as scratch:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copy = Path(scratch, str(number), "project")
            _copy(root, copy, names)
            free.put(copy)
        owners = dict.fromkeys(mutation.test for mutation in mutations)
        unchanged = run_tests(copy, list(owners), timeout_s * len(owners), jobs)
        with ThreadPoolExecutor(jobs) as pool:
            try_one = partial(_verdict, unchanged=unchanged, free=free, timeout_s=timeout_s)
            yield from pool.map(try_one, mutations)


def _copy(root: Path, target: Path, names: Sequence[str]) -> None:
    target.mkdir(parents=True)
    for name in names:
        if (root / name).is_dir():
            # A cache of compiled files would outlive a change within the same second.
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / name, target / name, ignore=ignore)
        else:
            shutil.copyfile(root / name, target / name)


def _verdict(
    mutation: Mutation,
    *,
    unchanged: list[Case] | str,
    free: SimpleQueue[Path],
    timeout_s: float,
) -> Verdict:
    no = partial(Verdict, mutation, False)
    if problem := _unchanged_problem(mutation.test, unchanged):
        return no(problem)
    copy = free.get()
    try:
        file = copy / mutation.file
        original = file.read_text(encoding="utf-8")
        file.write_text(apply(mutation, original), encoding="utf-8")
        try:
            cases = run_tests(copy, [mutation.test], timeout_s)
        finally:
            file.write_text(original, encoding="utf-8")
    except MutationError as error:
        return no(str(error))
    finally:
        free.put(copy)
    return _changed_verdict(mutation, cases)


def apply(mutation: Mutation, text: str) -> str:
    """A file's text with the mutation; raises MutationError where it cannot be applied."""
    count = text.count(mutation.before)
    if count != 1:
        raise MutationError(
            f"{mutation.file} has {mutation.before!r} {count} times, expected it once"
        )
    changed = text.replace(mutation.before, mutation.after)
    try:
        compile(changed, mutation.file, "exec")
    except SyntaxError as error:
        raise MutationError(
            f"{mutation.file}: {mutation.after!r} is no Python ({error})"
        ) from error
    return changed


def _unchanged_problem(test: str, unchanged: list[Case] | str) -> str:
    """Why a test shows nothing: it does not pass where nothing is changed."""
    if isinstance(unchanged, str):
        return f"the unchanged tests: {unchanged}"
    cases = [case for case in unchanged if case.belongs_to(test)]
    bad = next((case for case in cases if case.outcome not in ("passed", "skipped")), None)
    if bad is not None:
        return f"unchanged, its test does not pass: {bad.message}"
    if not any(case.outcome == "passed" for case in cases):
        said = cases[0].message if cases else "it was not found"
        return f"unchanged, its test does not run: {said}"
    return ""


def _changed_verdict(mutation: Mutation, cases: list[Case] | str) -> Verdict:
    no = partial(Verdict, mutation, False)
    if isinstance(cases, str):
        return no(cases)
    failures = [case for case in cases if case.outcome == "failure"]
    for case in failures:
        if case.message.startswith(_ASSERTIONS):
            return Verdict(mutation, True, case.message)
    if failures:
        return no(f"no assertion fails, the code does: {failures[0].message}")
    errors = [case.message for case in cases if case.outcome == "error"]
    return no(f"an error outside of the test: {errors[0]}" if errors else "the test passes")


def run_tests(
    copy: Path, tests: Sequence[str], timeout_s: float, workers: int = 1
) -> list[Case] | str:
    """Run tests with pytest.

    Args:
      copy: of the project.
      tests: as Mutation.test.
      timeout_s: longest time for all.
      workers: processes.

    Returns:
      What ran, or in one line why nobody knows.
    """
    results = copy.with_name("results.xml")
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={results}"]
    command += [f"--basetemp={copy.with_name('tmp')}", "--override-ini=addopts="]
    command += [f"--numprocesses={workers}", "--dist=loadfile"] if workers > 1 else []
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [*command, *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # With the processes that its tests start, so that all of them can be ended.
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"no end within {timeout_s:g} s"
    # 0: all passed; 1: some did not. Anything else is no answer of the tests.
    if process.returncode not in (0, 1) or not results.exists():
        lines = [line for line in said.splitlines() if line.strip()] or ["no output"]
        told = next((line for line in lines if line.startswith("E ")), lines[-1])
        return f"pytest ended with {process.returncode}: {told.removeprefix('E').strip()}"
    return [_case(element) for element in ET.parse(results).iter("testcase")]


def _case(element: ET.Element) -> Case:
    classname = element.get("classname", "").replace(".", "/")
    test = f"{classname}.py::{element.get('name')}" if classname else ""
    for outcome in ("failure", "error", "skipped"):
        if (found := element.find(outcome)) is not None:
            return Case(test, outcome, _one_line(found.get("message", "")))
    return Case(test, "passed", "")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]


def select(mutations: Sequence[Mutation], text: str) -> list[Mutation]:
    """The mutations with a text in one of their fields."""
    return [
        mutation
        for mutation in mutations
        if any(text.lower() in field.lower() for field in astuple(mutation))
    ]


def report(verdicts: Iterable[Verdict]) -> bool:
    """Print each verdict when it is there, as a table in Markdown; whether all are caught."""
    print("| trap | brought back as | test | caught |\n|---|---|---|---|", flush=True)
    caught: list[bool] = []
    for verdict in verdicts:
        mutation = verdict.mutation
        end = f"yes: {verdict.reason}" if verdict.caught else f"**no**: {verdict.reason}"
        cells = (mutation.trap, f"{mutation.how} ({mutation.file})", mutation.test, end)
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)
        caught.append(verdict.caught)
    print(f"\n{sum(caught)} of {len(caught)} caught")
    return all(caught)


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", metavar="TEXT", help="in any field of the table")
    parser.add_argument("--jobs", type=int, default=2, help="mutations at once (2)")
    args = parser.parse_args(argv)
    chosen = select(MUTATIONS, args.only)
    if not chosen:
        parser.exit(2, f"--only {args.only!r}: no mutation has that text; see mutation_table.py\n")
    return 0 if report(judge(chosen, ROOT, jobs=max(1, args.jobs))) else 1


if __name__ == "__main__":
    sys.exit(main())
