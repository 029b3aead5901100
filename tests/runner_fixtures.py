"""Runners whose workers are other processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distributed

# Of worker processes: they find our packages and these tests.
PATH = str(Path(__file__).parents[1])
_DASK = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"


@contextmanager
def dask_cluster() -> Iterator[distributed.LocalCluster]:
    """Dask on two processes of two threads."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs="CRITICAL",
    ) as cluster:
        yield cluster


def dask_flags(cluster: distributed.LocalCluster) -> tuple[str, ...]:
    address = f"--dask_client_address={cluster.scheduler_address}"
    return _DASK, address, "--dask_partition_size=1"


def local_flags(mode: str, workers: int) -> tuple[str, ...]:
    return f"--direct_running_mode={mode}", f"--direct_num_workers={workers}"
