"""Fetching and validating URLs ÷ img2dataset with its dummy writer, from one loopback server.

Both in a process of their own with as many threads, one after the other. img2dataset is in an
environment of its own, whose interpreter IMG2DATASET_PYTHON names:

    python3.11 -m venv .img2dataset && .img2dataset/bin/pip install img2dataset==1.47.0
    IMG2DATASET_PYTHON=.img2dataset/bin/python python -m benchmarks bulk_fetch
"""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import img2dataset_alone
from benchmarks.photographs import lay_out
from benchmarks.ratio import compare, report
from benchmarks.slow_web import LATENCY_S, serving, urls

COUNT, THREADS = 2_000, 64
TARGET = 1.0
_PHOTOGRAPHS = 80
_PYTHON = "IMG2DATASET_PYTHON"


def main() -> None:
    """Measure and report; says why where the other side is not there."""
    rival = os.environ.get(_PYTHON)
    if rival is None:
        print(f"bulk_fetch: skipped, {_PYTHON} names no interpreter with img2dataset", flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photographs = lay_out(root / "photographs", _PHOTOGRAPHS)
        with serving(photographs.images) as base:
            listed = root / "urls.txt"
            listed.write_text("\n".join(itertools.islice(urls(base), COUNT)))
            number = itertools.count()

            def ours() -> float:
                return _run(
                    [sys.executable, "-m", "benchmarks.fetch_alone", str(listed), str(THREADS)]
                )

            def theirs() -> float:
                output = root / f"img2dataset-{next(number)}"
                script = str(img2dataset_alone.__file__)
                return _run([rival, script, str(listed), str(output), str(THREADS)])

            value, sides = compare(ours, theirs)
    report(
        "fetch_and_validate_to_img2dataset",
        value,
        f">={TARGET}",
        f"images/s of ours / of img2dataset's dummy writer, {COUNT} URLs, 1 process of {THREADS} "
        f"threads, latency {1000 * LATENCY_S:.0f} ms: {sides}",
    )


def _run(command: Sequence[str]) -> float:
    """The last word that a command prints, as a number."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(ended.stdout.split()[-1])
