"""Wherever preprocessing runs, and whoever is killed, the published files have the same bytes."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import distributed
import numpy as np
import pytest
import tensorflow as tf

from model.encoder import EncoderSettings
from pipelines.records_job import preprocess
from tests.preprocess_fixtures import (
    FakeEncoder,
    NotingEncoder,
    calls,
    processes,
    published,
    settings,
    write_split,
)
from tests.runner_fixtures import PATH, dask_cluster, dask_flags, local_flags
from tests.test_pipelines_preprocess import spoil

pytestmark = pytest.mark.slow

SHARD_SIZE = 3


class KillingEncoder(NotingEncoder):
    """Kills the first process that encodes, in the middle of its shard."""

    def __call__(self, images: np.ndarray, extents: np.ndarray | None = None) -> tf.Tensor:
        grids = super().__call__(images, extents)
        try:
            self.log.with_suffix(".killed").touch(exist_ok=False)
        except FileExistsError:
            return grids
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits, with one of everything that can be wrong."""
    root = tmp_path_factory.mktemp("world")
    write_split(root, "train", 20)
    write_split(root, "val", 6, first_id=101)
    spoil(root)
    return root


@pytest.fixture(scope="module")
def expected(world: Path) -> Mapping[str, bytes]:
    """What the in-memory runner publishes."""
    files = published(make(world, "in_memory"))
    assert len(files) == 7 + 2 + 3
    assert files["failures.jsonl"].count(b"\n") == 12
    assert processes(world / "in_memory.log") == {os.getpid()}
    return files


@pytest.fixture(autouse=True)
def path_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATH)


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    with dask_cluster() as found:
        yield found


def make(
    world: Path,
    output: str,
    beam_args: tuple[str, ...] = (),
    encoder: Callable[[Path], FakeEncoder] = NotingEncoder,
) -> Path:
    wanted = settings(world, output, shard_size=SHARD_SIZE)
    preprocess(wanted, beam_args, partial(encoder, world / f"{output}.log"))
    return world / output


@pytest.mark.parametrize(
    ("mode", "workers"),
    [
        ("multi_threading", 2),
        ("multi_processing", 1),
        ("multi_processing", 2),
        ("multi_processing", 4),
    ],
)
def test_threads_and_processes_publish_the_same_bytes(
    world: Path, expected: Mapping[str, bytes], mode: str, workers: int
) -> None:
    output = f"{mode}-{workers}"
    assert published(make(world, output, local_flags(mode, workers))) == expected
    assert calls(world / f"{output}.log") == calls(world / "in_memory.log")
    here = mode == "multi_threading"
    assert (processes(world / f"{output}.log") == {os.getpid()}) == here
    assert 1 <= len(processes(world / f"{output}.log")) <= workers


def test_dask_publishes_the_same_bytes(
    world: Path, expected: Mapping[str, bytes], cluster: distributed.LocalCluster
) -> None:
    workers = {worker.pid for worker in cluster.workers.values()}
    assert published(make(world, "dask", dask_flags(cluster))) == expected
    assert calls(world / "dask.log") == calls(world / "in_memory.log")
    assert processes(world / "dask.log") <= workers
    # The connections of both pipelines, and what they hold on the cluster, are gone.
    with pytest.raises(ValueError, match="No clients found"):
        distributed.default_client()


def test_a_worker_that_dask_loses_changes_no_byte(
    world: Path, expected: Mapping[str, bytes], cluster: distributed.LocalCluster
) -> None:
    output = make(world, "killed", dask_flags(cluster), KillingEncoder)
    assert (world / "killed.killed").exists()
    # What the killed process was writing is gone, too.
    assert not list(output.rglob("*.tmp-*"))
    assert published(output) == expected
    assert len(processes(world / "killed.log")) >= 2


def test_real_grids_are_the_same_bytes_from_two_processes(world: Path) -> None:
    flags = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    encoder = EncoderSettings("random:0", 64, 1)
    for output, beam_args in (("real-1", ()), ("real-2", flags)):
        preprocess(settings(world, output, encoder=encoder, shard_size=SHARD_SIZE), beam_args)
    assert published(world / "real-2") == published(world / "real-1")
