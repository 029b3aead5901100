"""Two worker processes ÷ one, on a job whose limit is reading and decoding.

Each worker reads with one thread, so that one is bound by one core; the encoder is a stub.
Rates are taken between the first and the last finished shard: starting a process takes
seconds, which a job of hours does not see.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.photographs import lay_out
from benchmarks.ratio import compare, report

SHARD_SIZE = 256
COUNT = 12 * SHARD_SIZE
TARGET = 1.7
ROUNDS = 3


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photographs = lay_out(root / "photographs", COUNT)

        def images_per_second(workers: int) -> float:
            with tempfile.TemporaryDirectory(dir=root) as output:
                command = [
                    *(sys.executable, "-m", "benchmarks.stub"),
                    *(str(photographs.annotations), str(photographs.images), output),
                    *(f"--shard_size={SHARD_SIZE}", "--read_threads=1"),
                    "--direct_running_mode=multi_processing",
                    f"--direct_num_workers={workers}",
                ]
                # Arithmetic in one thread a worker, too.
                environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1"}
                subprocess.run(command, check=True, capture_output=True, env=environment)
                return _rate(Path(output), workers)

        value, sides = compare(
            lambda: images_per_second(2), lambda: images_per_second(1), rounds=ROUNDS
        )
    report(
        "preprocess_two_workers_to_one",
        value,
        f">={TARGET}",
        f"images/s of two multi_processing workers / of one, a reading thread each, stub "
        f"encoder, {COUNT} images: {sides}",
    )


def _rate(output: Path, workers: int) -> float:
    """Images a second after every worker's first finished shard."""
    finished = sorted((path.stat().st_mtime, path.name) for path in output.glob("train-*.tfrecord"))
    if len(finished) * SHARD_SIZE < COUNT:
        raise RuntimeError(f"{len(finished)} shards, expected {COUNT // SHARD_SIZE}")
    rest = len(finished) - workers
    return rest * COUNT / len(finished) / (finished[-1][0] - finished[workers - 1][0])
