"""What a bulk shard does with its items, against a fake model and a list as sink."""

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines.begun import Earlier
from pipelines.caption_rows import Asked, Told
from pipelines.captioning import CaptionSettings, CaptionShard
from pipelines.clients import Clients, Target
from pipelines.jobs import Job, ShardSpec
from pipelines.same_bytes import Remembered
from serving.errors import ServerUnavailable
from tests.bulk_fixtures import (
    HYPOTHESES,
    NAME,
    SIZES,
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

    def __init__(self, output: Path) -> None:
        self.job = Job("bulk", str(output), "captions-{name}", "failures-{name}")
        self.spec, self.earlier = ShardSpec("shard", "", 0, ""), Earlier()
        self.rows: list[dict[str, Any]] = []
        self.failures: list[tuple[str, Reason]] = []
        self.lines: list[bytes] = []
        self.marked: list[int] = []

    def write(self, payload: bytes, below_min_log_prob: int = 0) -> None:
        self.marked.append(below_min_log_prob)
        self.lines.append(payload)
        self.rows.append(json.loads(payload))

    def frame(self, payload: bytes) -> None:
        assert payload == b""

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


def caption(
    items: list[dict[str, str]], output: Path, target: Target = IN_PROCESS, **settings: Any
) -> ListSink:
    asked = CaptionSettings(NAME, VERSION, BATCH, **settings)
    work = CaptionShard(Clients(target, connect_fake), asked)
    work.setup()
    sink = ListSink(output / "_out")
    work.process(items, sink)  # type: ignore[arg-type]
    return sink


def items_of(directory: Path) -> list[dict[str, str]]:
    return [{"key": path.stem, "source": str(path)} for path in sorted(directory.iterdir())]


def test_a_row_says_everything_of_its_image(tmp_path: Path) -> None:
    data = photo(7)
    path = tmp_path / "é.png"
    path.write_bytes(data)
    sink = caption([{"key": "é", "source": str(path)}], tmp_path)
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
    sink = caption(items, tmp_path)
    assert sink.keys == [item["key"] for item in items]
    assert [row["caption"] for row in sink.rows] == [
        fake_caption(Path(item["source"]).read_bytes()) for item in items
    ]
    assert World.batches == [4, 4, 2]


@pytest.mark.parametrize("position", range(6))
def test_a_poison_image_fails_alone_wherever_it_stands(position: int, tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path, 6, poison=[position]))
    sink = caption(items, tmp_path)
    poison = f"{position:03d}"
    assert sink.failures == [(poison, Reason.MODEL_ERROR)]
    assert sink.keys == [item["key"] for item in items if item["key"] != poison]
    assert all(
        row["caption"] == fake_caption(Path(row["source"]).read_bytes()) for row in sink.rows
    )


def test_a_batch_of_poison_alone_has_no_caption(tmp_path: Path) -> None:
    sink = caption(items_of(write_photos(tmp_path, BATCH, poison=range(BATCH))), tmp_path)
    assert sink.rows == []
    assert [reason for _, reason in sink.failures] == [Reason.MODEL_ERROR] * BATCH


@pytest.mark.parametrize("position", range(BATCH))
def test_an_unreadable_image_fails_before_it_meets_its_neighbours(
    position: int, tmp_path: Path
) -> None:
    items = items_of(write_photos(tmp_path, BATCH))
    Path(items[position]["source"]).write_bytes(b"no image")
    sink = caption(items, tmp_path)
    assert sink.failures == [(items[position]["key"], Reason.NOT_AN_IMAGE)]
    assert sink.keys == [item["key"] for item in items if item is not items[position]]
    assert World.batches == [BATCH - 1]


def test_failures_stand_in_the_order_of_the_items(tmp_path: Path) -> None:
    """Also those that only the model finds, among those that reading finds."""
    items = items_of(write_photos(tmp_path, 8, poison=[1, 5]))
    for index in (0, 2, 6):
        Path(items[index]["source"]).write_bytes(b"")
    sink = caption(items, tmp_path)
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
    sink = caption([{"key": source, "source": source} for source in sources], tmp_path)
    assert dict(sink.failures) == sources


def test_a_score_that_is_no_number_is_no_caption(tmp_path: Path) -> None:
    World.not_finite = True
    sink = caption(items_of(write_photos(tmp_path, 2)), tmp_path)
    assert sink.rows == []
    assert [reason for _, reason in sink.failures] == [Reason.MODEL_ERROR] * 2


def test_a_server_that_goes_away_ends_the_shard(tmp_path: Path) -> None:
    World.unavailable_after = 1
    with pytest.raises(ServerUnavailable):
        caption(items_of(write_photos(tmp_path, 10)), tmp_path)


def test_images_that_wait_for_room_do_not_keep_a_process_whose_server_went_away(
    tmp_path: Path,
) -> None:
    """In a process of its own, which would not end while a thread waits."""
    photos = write_photos(tmp_path / "in", 60)
    script = """
import sys
from pathlib import Path
from pipelines import captioning
from serving.errors import ServerUnavailable
from tests.bulk_fixtures import World
from tests.test_pipelines_captioning import caption, items_of

captioning.AHEAD_BYTES = 1
World.unavailable_after = 1
try:
    caption(items_of(Path(sys.argv[1])), Path(sys.argv[2]))
except ServerUnavailable:
    # As a command ends, without a look at what is left.
    raise SystemExit(7)
"""
    command = [sys.executable, "-c", script, str(photos), str(tmp_path)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    assert ended.returncode == 7, ended.stderr


@pytest.mark.parametrize(
    "versions", [(VERSION + 1,), (VERSION, VERSION + 1)], ids=["before", "while"]
)
def test_another_version_of_the_model_is_refused(versions: tuple[int, ...], tmp_path: Path) -> None:
    World.versions = versions
    with pytest.raises(InvalidInput, match="version 4 answers, expected fake version 3"):
        caption(items_of(write_photos(tmp_path, 2)), tmp_path, SERVER)


def test_an_answer_of_another_version_is_refused_though_the_server_says_the_first(
    tmp_path: Path,
) -> None:
    """One of several replicas, or a server that changed its model and changed it back."""
    World.answers_tell = VERSION + 1
    with pytest.raises(InvalidInput, match="version 4 answers, expected fake version 3"):
        caption(items_of(write_photos(tmp_path, 2)), tmp_path, SERVER)


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


# What a row says besides the caption.


def test_images_of_the_same_bytes_are_sent_once_and_each_has_its_row(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 6, poison=[2])
    for name, original in (("a", "000"), ("b", "000"), ("z", "002"), ("zz", "005")):
        (photos / f"{name}.png").write_bytes((photos / f"{original}.png").read_bytes())
    items = items_of(photos)
    apart = caption(items, tmp_path)
    once = caption(items, tmp_path, dedupe=True)
    assert once.rows == apart.rows
    assert once.failures == apart.failures
    assert [key for key, _ in once.failures] == ["002", "z"]
    World.reset()
    good = [item for item in items if item["key"] not in ("002", "z")]
    assert caption(good, tmp_path, dedupe=True).keys == [item["key"] for item in good]
    # 000 three times, 005 twice.
    assert (len(good), sum(World.batches)) == (8, 5)


def test_large_images_go_in_batches_of_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = items_of(write_photos(tmp_path / "in", 7))
    apart = caption(items, tmp_path)
    assert World.batches == [BATCH] * (7 // BATCH) + [7 % BATCH] * (7 % BATCH > 0)
    World.reset()
    size = max(len(Path(item["source"]).read_bytes()) for item in items)
    monkeypatch.setattr("pipelines.reading.BATCH_BYTES", size + 1)
    few = caption(items, tmp_path)
    assert World.batches == [2, 2, 2, 1]
    assert few.rows == apart.rows


def test_a_later_shard_of_the_process_asks_about_known_bytes_no_more(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 5, poison=[2])
    items = items_of(photos)
    settings = CaptionSettings(NAME, VERSION, BATCH, dedupe=True)
    work = CaptionShard(Clients(IN_PROCESS, connect_fake), settings)
    sinks = []
    # As runners do: other threads have copies of their own.
    for copy in (work, work, pickle.loads(pickle.dumps(work))):
        World.reset()
        copy.setup()
        sinks.append(ListSink(tmp_path / "_out"))
        copy.process(items, sinks[-1])  # type: ignore[arg-type]
        asked = sum(World.batches)
        # A refusal is asked about again, and halved down to the image.
        assert asked >= 5 if len(sinks) == 1 else asked == 1
    assert len(sinks[0].rows) == 4
    assert [key for key, _ in sinks[0].failures] == ["002"]
    assert all((sink.rows, sink.failures) == (sinks[0].rows, sinks[0].failures) for sink in sinks)
    # Another job's process remembers nothing of it.
    World.reset()
    caption(items_of(photos)[:2], tmp_path, dedupe=True)
    assert sum(World.batches) == 2


def test_what_is_remembered_is_bounded() -> None:
    def told(number: int) -> Told:
        return Told("a cat", -1.0, (3,), strip=bytes(100_000 + number))

    remembered = Remembered(most_bytes=450_000)
    for number in range(4):
        remembered.note(str(number), told(number))
    assert remembered.get("0") == told(0)
    remembered.note("4", told(4))
    # The one that was not used for longest is forgotten.
    assert [remembered.get(str(number)) for number in range(5)] == [
        *(told(0), None),
        *map(told, (2, 3, 4)),
    ]
    remembered.note("2", told(9))
    assert remembered.get("2") == told(2)


def test_nbest_rows_have_the_captions_that_the_search_found_best_first(tmp_path: Path) -> None:
    items = items_of(write_photos(tmp_path / "in", 2))
    plain = caption(items, tmp_path)
    for count, found in ((1, 1), (2, 2), (4, 3)):
        sink = caption(items, tmp_path, asked=Asked(nbest=count))
        for row, alone in zip(sink.rows, plain.rows, strict=True):
            ranked = row.pop("nbest")
            assert row == alone
            assert ranked[0] == {"caption": row["caption"], "log_prob": row["log_prob"]}
            assert len(ranked) == found
            assert [each["caption"].removeprefix(row["caption"]) for each in ranked] == [
                "",
                " 1",
                " 2",
            ][:found]


def test_rows_below_the_least_log_probability_are_marked_and_none_is_dropped(
    tmp_path: Path,
) -> None:
    items = items_of(write_photos(tmp_path / "in", 8))
    scores = [row["log_prob"] for row in caption(items, tmp_path).rows]
    # The limit itself is not below it.
    limit = sorted(scores)[3]
    sink = caption(items, tmp_path, asked=Asked(min_log_prob=limit))
    assert [row["below_min_log_prob"] for row in sink.rows] == [score < limit for score in scores]
    assert sum(sink.marked) == sum(score < limit for score in scores) > 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"nbest": -1}, "--nbest -1: expected 1 or more"),
        ({"min_log_prob": 0.5}, "--min_log_prob 0.5: expected a natural logarithm"),
        ({"min_log_prob": math.nan}, "--min_log_prob nan: expected a natural logarithm"),
    ],
)
def test_what_cannot_be_asked_is_one_line(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Asked(**asked)


def test_more_captions_than_the_model_has_are_refused_before_anything_is_sent() -> None:
    model = connect_fake(IN_PROCESS).check()
    Asked(nbest=HYPOTHESES).check(model)
    with pytest.raises(InvalidInput, match="--nbest 5: fake has 4 captions of an image"):
        Asked(nbest=HYPOTHESES + 1).check(model)


def test_attention_that_cannot_be_drawn_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cells, fits in ((49, True), (6, False)):
        monkeypatch.setitem(SIZES, "P", cells)
        model = connect_fake(IN_PROCESS).check()
        Asked().check(model)
        with nullcontext() if fits else pytest.raises(InvalidInput, match="looks at 6 cells"):
            Asked(explain=True).check(model)
