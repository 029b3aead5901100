"""The most memory that a process of its own held."""

import subprocess
import sys
from collections.abc import Sequence

from export.session_check import peak_mib

_SAID = "peak MiB "


def say_peak() -> None:
    """Print this process' peak, for `run_alone`; called at its end."""
    print(f"{_SAID}{peak_mib()}")


def run_alone(module: str, arguments: Sequence[str]) -> float:
    """Run a module that calls `say_peak` in a process of its own.

    The kernel's `ru_maxrss` would not do: it begins at the peak of the process that starts another.

    Returns:
      Its peak resident memory, MiB.

    Raises:
      RuntimeError: it failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr}")
    *_, last = ended.stdout.splitlines()
    return float(last.removeprefix(_SAID))
