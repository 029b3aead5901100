"""Memory that nobody uses goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

import pipelines.heaps

PROGRAM = """
import threading
from pipelines.heaps import return_free_memory

def resident_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

def work():
    # Small enough for a heap; the last one keeps the heap from shrinking by itself.
    kept = [bytearray(100_000) for _ in range(600)]
    del kept[:-1]
    last.append(kept)

last = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
before = resident_mib()
return_free_memory()
print(before - resident_mib())
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is no glibc"
)
def test_what_a_thread_no_longer_uses_is_returned() -> None:
    command = [sys.executable, "-c", PROGRAM]
    answer = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert float(answer.stdout) > 40


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """Without malloc_trim."""

    asked: list[object] = []

    def load(name: object) -> Other:
        asked.append(name)
        return Other()

    monkeypatch.setattr(pipelines.heaps.ctypes, "CDLL", load)
    pipelines.heaps.return_free_memory()
    assert asked == [None]


def test_what_is_loaded_is_left_out_of_garbage_collection_once_a_process() -> None:
    program = """
import gc, weakref
from pipelines.heaps import freeze_loaded

class Node:
    pass

def cycle():
    node = Node()
    node.itself = node
    return weakref.ref(node)

garbage = cycle()
kept = [object() for _ in range(10)]
freeze_loaded()
frozen = gc.get_freeze_count()
later = [[] for _ in range(1000)]
freeze_loaded()
print(garbage() is None, frozen > 1000, gc.get_freeze_count() == frozen)
after = cycle()
gc.collect()
print(after() is None)
"""
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert answer.stdout.split() == ["True"] * 4
