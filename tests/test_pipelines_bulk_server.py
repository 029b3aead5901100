"""Bulk captioning while its server restarts, or changes the version that it serves."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput
from pipelines import sink
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from pipelines.ledger import Ledger
from serving.server import Server
from serving.server_settings import ServerSettings
from tests.bulk_fixtures import write_photos
from tests.preprocess_fixtures import published
from tests.serving_fixtures import save_tiny_model

pytestmark = pytest.mark.slow

PHOTOS, SHARDS = 40, 5


@contextmanager
def listening(model_dir: Path, port: int = 0) -> Iterator[Server]:
    server = Server(model_dir, ServerSettings(port=port), log=lambda _: None)
    server.start()
    try:
        yield server
    finally:
        server.stop(grace_s=0)


def caption(root: Path, output: str, address: str) -> Ledger:
    config = BulkConfig(str(root / output), batch_size=4, shard_size=PHOTOS // SHARDS)
    clients = Clients(Target(None, address, "tiny"))
    return caption_all(str(root / "in"), Columns(), clients, config)


def versions_by_shard(output: Path) -> list[set[int]]:
    return [
        {json.loads(line)["model_version"] for line in path.read_text().splitlines()}
        for path in sorted(output.glob("captions-*.jsonl"))
    ]


def after_shards(count: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `act` once, when so many shards are finished."""
    commit, finished = sink.Sink.commit, []

    def noted(self: sink.Sink) -> Any:
        result = commit(self)
        finished.append(result.name)
        if len(finished) == count:
            act()
        return result

    monkeypatch.setattr(sink.Sink, "commit", noted)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_photos(tmp_path / "in", PHOTOS)
    save_tiny_model(tmp_path / "tiny")
    return tmp_path


def test_a_server_that_restarts_costs_no_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(root / "tiny") as server:
        whole = caption(root, "whole", server.address)
    with listening(root / "tiny") as first:
        port = int(first.address.rpartition(":")[2])
        restarted: list[Any] = []

        def restart() -> None:
            first.stop(grace_s=0)
            restarted.append(listening(root / "tiny", port))
            restarted[0].__enter__()

        after_shards(2, restart, monkeypatch)
        ledger = caption(root, "restarted", first.address)
        restarted[0].__exit__(None, None, None)
    assert ledger == whole
    assert ledger.captioned == PHOTOS
    assert published(root / "restarted") == published(root / "whole")


def test_a_server_that_changes_its_version_is_named_and_no_shard_has_two(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(root / "tiny") as server:

        def publish() -> None:
            new = save_tiny_model(root / "new", 2, " of 2")
            (new / "2").rename(root / "tiny" / "2")
            server.versions.poll()

        after_shards(2, publish, monkeypatch)
        with pytest.raises(InvalidInput, match=r"tiny version 2 answers, expected tiny version 1"):
            caption(root, "out", server.address)
        assert versions_by_shard(root / "out") == [{1}] * 2
        monkeypatch.undo()
        ledger = caption(root, "out", server.address)
        assert ledger.captioned == PHOTOS
        assert versions_by_shard(root / "out") == [{2}] * SHARDS
        undisturbed = caption(root, "whole", server.address)
    assert ledger == undisturbed
    assert published(root / "out") == published(root / "whole")
