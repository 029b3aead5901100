"""Bulk captioning by a real exported model has the same bytes wherever it runs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.caption_rows import Asked
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from tests.bulk_fixtures import bad_images, good_images
from tests.export_fixtures import NAME, export_unverified, photographs
from tests.preprocess_fixtures import published
from tests.runner_fixtures import PATH, dask_cluster, dask_flags, local_flags
from tests.serving_fixtures import running_server

pytestmark = pytest.mark.slow
LISTED = "a large input: the workers list what is left of it"


@pytest.fixture(autouse=True)
def path_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATH)
    # The workers list what is below the first directory.
    monkeypatch.setattr("pipelines.tree_walk.HERE", 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`in` with photographs, some of which come again, and files that are none; `models`."""
    root = tmp_path_factory.mktemp("runners")
    files = {name: data for name, (data, _) in bad_images().items()} | good_images()
    for copy in range(4):
        files |= {f"{copy}/{index}.jpg": data for index, data in enumerate(photographs())}
    for name, data in files.items():
        path = root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    export_unverified(root)
    return root


def caption(
    root: Path,
    output: str,
    beam_args: tuple[str, ...] = (),
    server: str | None = None,
    *,
    dedupe: bool = False,
) -> Mapping[str, bytes]:
    model = None if server else str(root / "models" / NAME)
    asked = Asked(nbest=2)
    config = BulkConfig(str(root / output), batch_size=32, shard_size=8, asked=asked, dedupe=dedupe)
    clients = Clients(Target(model, server, NAME))
    ledger = caption_all(str(root / "in"), Columns(), clients, config, beam_args)
    assert (ledger.captioned, sum(ledger.failed.values())) == (32, 5)
    return published(root / output)


@pytest.fixture(scope="module")
def expected(root: Path) -> Mapping[str, bytes]:
    """What the in-memory runner writes with the model in this process."""
    files = caption(root, "in_memory")
    assert len(files) == 2 * 5 + 1
    return files


@pytest.mark.parametrize(
    ("mode", "workers"),
    [("multi_threading", 4), ("multi_processing", 1), ("multi_processing", 4)],
)
def test_threads_and_processes_write_the_same_bytes(
    root: Path,
    expected: Mapping[str, bytes],
    mode: str,
    workers: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert caption(root, f"{mode}-{workers}", local_flags(mode, workers)) == expected
    # Threads of the launcher list nothing that it could not.
    assert (LISTED in capfd.readouterr().err) is (mode == "multi_processing")


def test_dask_writes_the_same_bytes(
    root: Path, expected: Mapping[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    with dask_cluster() as cluster:
        assert caption(root, "dask", dask_flags(cluster)) == expected
    assert LISTED in capfd.readouterr().err


def test_images_of_the_same_bytes_have_the_same_rows_anywhere(
    root: Path, expected: Mapping[str, bytes]
) -> None:
    for name, flags in (("once", ()), ("once-2", local_flags("multi_processing", 2))):
        assert caption(root, name, flags, dedupe=True) == expected


def test_the_server_gives_the_same_bytes(root: Path, expected: Mapping[str, bytes]) -> None:
    with running_server(root / "models" / NAME) as server:
        assert caption(root, "served", server=server.address) == expected
        flags = local_flags("multi_processing", 2)
        assert caption(root, "served-2", flags, server.address) == expected
