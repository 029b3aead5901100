"""What a bulk shard does with its items, against a fake model and a list as sink."""

import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines.captioning import CaptionSettings, CaptionShard, Clients, Target
from serving.errors import ServerUnavailable
from tests.bulk_fixtures import (
    NAME,
    VERSION,
    World,
    connect_fake,
    fake_caption,
    fake_log_prob,
    photo,
    png,
    write_photos,
)

IN_PROCESS = Target(model="models/fake", server=None, model_name=NAME)
SERVER = Target(model=None, server="localhost:1", model_name=NAME)
BATCH = 4


class ListSink:
    """Remembers in which order what came."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.failures: list[tuple[str, Reason]] = []
        self.lines: list[bytes] = []

    def write(self, payload: bytes) -> None:
        self.lines.append(payload)
        self.rows.append(json.loads(payload))

    def fail(self, item: dict[str, str], failure: ItemFailure) -> None:
        self.failures.append((item["key"], failure.reason))

    @property
    def keys(self) -> list[str]:
        return [row["key"] for row in self.rows]


@pytest.fixture(autouse=True)
def _world() -> Iterator[None]:
    World.reset()
    yield
    World.reset()


def caption(items: list[dict[str, str]], target: Target = IN_PROCESS) -> ListSink:
    work = CaptionShard(Clients(target, connect_fake), CaptionSettings(NAME, VERSION, BATCH))
    work.setup()
    sink = ListSink()
    work.process(items, sink)  # type: ignore[arg-type]
    return sink


def items_of(directory: Path) -> list[dict[str, str]]:
    return [{"key": path.stem, "source": str(path)} for path in sorted(directory.iterdir())]


def test_a_row_says_everything_of_its_image(tmp_path: Path) -> None:
    data = photo(7)
    path = tmp_path / "é.png"
    path.write_bytes(data)
    sink = caption([{"key": "é", "source": str(path)}])
    assert sink.lines == [
        json.dumps(
            {
                "key": "é",
                "source": str(path),
                "caption": fake_caption(data),
                "log_prob": fake_log_prob(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "width": 16,
                "height": 12,
                "model": NAME,
                "model_version": VERSION,
            },
            ensure_ascii=False,
        ).encode()
        + b"\n"
    ]


def test_every_image_gets_its_own_caption_in_the_order_of_the_items(tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path, 10))[::-1]
    sink = caption(items)
    assert sink.keys == [item["key"] for item in items]
    assert [row["caption"] for row in sink.rows] == [
        fake_caption(Path(item["source"]).read_bytes()) for item in items
    ]
    assert World.batches == [4, 4, 2]


@pytest.mark.parametrize("position", range(6))
def test_a_poison_image_fails_alone_wherever_it_stands(position: int, tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path, 6, poison=[position]))
    sink = caption(items)
    poison = f"{position:03d}"
    assert sink.failures == [(poison, Reason.MODEL_ERROR)]
    assert sink.keys == [item["key"] for item in items if item["key"] != poison]
    assert all(
        row["caption"] == fake_caption(Path(row["source"]).read_bytes()) for row in sink.rows
    )


def test_a_batch_of_poison_alone_has_no_caption(tmp_path: Path) -> None:
    sink = caption(items_of(write_photos(tmp_path, BATCH, poison=range(BATCH))))
    assert sink.rows == []
    assert [reason for _, reason in sink.failures] == [Reason.MODEL_ERROR] * BATCH


@pytest.mark.parametrize("position", range(BATCH))
def test_an_unreadable_image_fails_before_it_meets_its_neighbours(
    position: int, tmp_path: Path
) -> None:
    items = items_of(write_photos(tmp_path, BATCH))
    Path(items[position]["source"]).write_bytes(b"no image")
    sink = caption(items)
    assert sink.failures == [(items[position]["key"], Reason.NOT_AN_IMAGE)]
    assert sink.keys == [item["key"] for item in items if item is not items[position]]
    assert World.batches == [BATCH - 1]


def test_failures_stand_in_the_order_of_the_items(tmp_path: Path) -> None:
    """Also those that only the model finds, among those that reading finds."""
    items = items_of(write_photos(tmp_path, 8, poison=[1, 5]))
    for index in (0, 2, 6):
        Path(items[index]["source"]).write_bytes(b"")
    sink = caption(items)
    assert [key for key, _ in sink.failures] == ["000", "001", "002", "005", "006"]
    assert sink.keys == ["003", "004", "007"]


def test_what_cannot_be_read_has_its_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "directory.png").mkdir()
    (tmp_path / "huge.png").write_bytes(png((1, 2, 3)) + bytes(32 * 2**20))
    sources = {
        "": Reason.INVALID_URL,
        str(tmp_path / "none.png"): Reason.MISSING_FILE,
        str(tmp_path / "pipe.png"): Reason.UNREADABLE,
        str(tmp_path / "directory.png"): Reason.UNREADABLE,
        "unknown://bucket/a.png": Reason.UNREADABLE,
        str(tmp_path / "huge.png"): Reason.TOO_MANY_BYTES,
        "http://127.0.0.1:9/a.png": Reason.REFUSED_ADDRESS,
        "HTTP://user:pw@host/a.png": Reason.INVALID_URL,
    }
    sink = caption([{"key": source, "source": source} for source in sources])
    assert dict(sink.failures) == sources


def test_a_score_that_is_no_number_is_no_caption(tmp_path: Path) -> None:
    World.not_finite = True
    sink = caption(items_of(write_photos(tmp_path, 2)))
    assert sink.rows == []
    assert [reason for _, reason in sink.failures] == [Reason.MODEL_ERROR] * 2


def test_a_server_that_goes_away_ends_the_shard(tmp_path: Path) -> None:
    World.unavailable_after = 1
    with pytest.raises(ServerUnavailable):
        caption(items_of(write_photos(tmp_path, 10)))


@pytest.mark.parametrize(
    "versions", [(VERSION + 1,), (VERSION, VERSION + 1)], ids=["before", "while"]
)
def test_another_version_of_the_model_is_refused(versions: tuple[int, ...], tmp_path: Path) -> None:
    World.versions = versions
    with pytest.raises(InvalidInput, match="version 4 answers, expected fake version 3"):
        caption(items_of(write_photos(tmp_path, 2)), SERVER)


def test_an_answer_of_another_version_is_refused_though_the_server_says_the_first(
    tmp_path: Path,
) -> None:
    """One of several replicas, or a server that changed its model and changed it back."""
    World.answers_tell = VERSION + 1
    with pytest.raises(InvalidInput, match="version 4 answers, expected fake version 3"):
        caption(items_of(write_photos(tmp_path, 2)), SERVER)


def test_the_model_is_loaded_once_a_process() -> None:
    clients = Clients(IN_PROCESS, connect_fake)
    held = clients.load()
    copies = [pickle.loads(pickle.dumps(clients)) for _ in range(3)]
    assert all(copy.load() is held for copy in [*copies, clients.pinned(VERSION)])
    assert World.connects == 1


@pytest.mark.parametrize(
    ("model", "pinned"), [("models/fake", "models/fake/3"), ("models/fake/3", "models/fake/3")]
)
def test_a_newer_version_published_meanwhile_is_not_loaded(model: str, pinned: str) -> None:
    clients = Clients(Target(model, None, NAME), connect_fake).pinned(VERSION)
    assert clients._target.model == pinned
