"""Runs a stage again and again, each time in a process of its own that may be killed.

    python -m tests.killed_runs preprocess WORLD '[["out", 7, 0], ["out", 0, 0.5], ["out", 0, 0]]'

Each run is (OUTPUT, the step before which it kills itself or 0, seconds after which it is killed
or 0). Prints how each ended, the signal negative, and how long it ran. Forked, because importing
TensorFlow and Beam takes longer than a run.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from tests.fault_fixtures import STAGES, Events, kill


def run(stage: str, world: Path, output: str, at: int, delay_s: float) -> tuple[int, float]:
    """One run; returns (exit status, seconds)."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            STAGES[stage](world, output, Events(at, kill))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if delay_s:
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


if __name__ == "__main__":
    ends = [run(sys.argv[1], Path(sys.argv[2]), *one) for one in json.loads(sys.argv[3])]
    print(json.dumps(ends))
