"""Sidecars and strips of attention: one a row, whole, before the row is, and gone with it."""

import errno
import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.errors import InvalidInput
from model.strips import draw_strip
from pipelines import attention_strips, storage
from pipelines.caption_rows import Asked
from pipelines.file_names import copy_of, file_of
from tests.bulk_fixtures import World, fake_caption, photo, png, write_photos
from tests.fault_fixtures import Events, fail, noted
from tests.output_fixtures import caption_shard, items_of, tree


@pytest.fixture(autouse=True)
def _world() -> Iterator[None]:
    World.reset()
    yield
    World.reset()


def rows(root: Path, output: str) -> dict[str, dict[str, object]]:
    [path] = (root / output).glob("captions-*.parquet")
    return {row["key"]: row for row in pq.read_table(path).to_pylist()}


def files(root: Path, output: str) -> dict[str, bytes]:
    return tree(root / output, root / f"{output}-txt")


def test_every_row_has_its_sidecar_and_its_strip(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 5, poison=[2])
    items = items_of(photos)
    items[0]["key"], items[1]["key"] = "http://host/a.png", "deep/er/../b"
    caption_shard(tmp_path, "out", items)
    found = rows(tmp_path, "out")
    assert set(found) == {"http://host/a.png", "deep/er/../b", "003.png", "004.png"}
    expected = {"0/captions-0.parquet", "0/failures-0.jsonl"}
    for key, row in found.items():
        text = tmp_path / "out-txt" / file_of(key, ".txt")
        assert text.read_text() == f"{row['caption']}\n"
        assert row["attention"] == f"attention/{file_of(key, '.png')}"
        expected |= {f"1/{file_of(key, '.txt')}", f"0/{row['attention']}"}
        with Image.open(tmp_path / "out" / str(row["attention"])) as strip:
            assert strip.format == "PNG"
    assert set(files(tmp_path, "out")) == expected
    # As nobody asked for pictures, but for them.
    assert [each["caption"] for each in found["003.png"]["nbest"]] == [  # type: ignore[attr-defined]
        fake_caption(photo(3)),
        f"{fake_caption(photo(3))} 1",
    ]


def test_a_strip_shows_the_photograph_and_the_words_of_its_own_caption(tmp_path: Path) -> None:
    """Green photographs; the fake model looks at one quarter for each of two words."""
    (tmp_path / "in").mkdir()
    for index in range(20):
        (tmp_path / "in" / f"{index:03d}.png").write_bytes(photo(10 * index))
    caption_shard(tmp_path, "out", items_of(tmp_path / "in"))
    for index in (0, 9, 19):
        path = tmp_path / "out" / "attention" / f"{index:03d}.png.png"
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert pixels.shape[1] == 3 * 150 + 2 * 10 + 2 * 24
        # The photograph of this image, then two maps.
        assert abs(pixels[-100, 24 + 75] - (0, 10 * index, 0)).max() <= 8
        first = int(fake_caption(photo(10 * index))[-1], 16)
        for word in range(2):
            left = 24 + (word + 1) * 160
            panel = pixels[-24 - 10 - 112 : -24 - 10, left : left + 150].sum(axis=2)
            quarters = [panel[:56, :75], panel[:56, 75:], panel[56:, :75], panel[56:, 75:]]
            brightest = int(np.argmax([quarter.mean() for quarter in quarters]))
            assert brightest == (first + word) % 4


@pytest.mark.parametrize("dedupe", [False, True])
def test_the_same_bytes_twice_have_a_strip_and_a_copy_each(dedupe: bool, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 3)
    (photos / "twin.png").write_bytes(photo(1))
    caption_shard(tmp_path, "out", items_of(photos), dedupe=dedupe, copies=True)
    for name in ("001.png", "twin.png"):
        assert (tmp_path / "out-txt" / name).read_bytes() == photo(1)
    strips = {path.name: path.read_bytes() for path in (tmp_path / "out/attention").iterdir()}
    assert strips["twin.png.png"] == strips["001.png.png"]
    assert Counter(strips.values())[strips["001.png.png"]] == 2
    assert (tmp_path / "out-txt" / "twin.png.txt").read_text() == f"{fake_caption(photo(1))}\n"


def test_what_is_kept_keeps_its_files_and_what_goes_takes_them_along(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 6)
    caption_shard(tmp_path, "out", items_of(photos))
    (tmp_path / "out-txt" / "000.png.txt").unlink()
    (tmp_path / "out" / "attention" / "001.png.png").unlink()
    (photos / "002.png").unlink()
    (photos / "003.png").write_bytes(b"no image")
    (photos / "004.png").write_bytes(photo(90))
    (photos / "new.png").write_bytes(photo(91))
    World.batches = []
    caption_shard(tmp_path, "out", items_of(photos))
    # The strip that was lost, what changed, and what came; ranked and explained.
    assert sorted(World.batches) == [1, 1, 2, 2]
    caption_shard(tmp_path, "whole", items_of(photos))
    assert files(tmp_path, "out") == files(tmp_path, "whole")
    assert "1/003.png.txt" not in files(tmp_path, "out")


def test_an_image_lies_as_it_was_beside_its_caption(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 6, poison=[5])
    # Not canonical: the copy is what was read.
    with Image.open(photos / "004.png") as image:
        image.save(photos / "004.png", "GIF")
    items = items_of(photos)
    items[0]["key"], items[1]["key"] = "https://host/a.png?b=c", "7"
    plain = {"format": "jsonl", "asked": Asked(), "copies": True}
    caption_shard(tmp_path, "out", items, **plain)
    texts = tmp_path / "out-txt"
    expected = set()
    for item in items[:5]:
        place = copy_of(item["key"], ".txt")
        assert (texts / place).read_bytes() == Path(item["source"]).read_bytes()
        assert (texts / f"{place}.txt").read_text().startswith("photo ")
        expected |= {f"1/{place}", f"1/{place}.txt"}
    assert {name for name in files(tmp_path, "out") if name.startswith("1/")} == expected
    # What was lost is made again, and what is no more takes its files along.
    (texts / "002.png").unlink()
    World.batches = []
    left = items[1:3] + items[4:5]
    caption_shard(tmp_path, "out", left, **plain)
    assert World.batches == [1]
    caption_shard(tmp_path, "whole", left, **plain)
    assert files(tmp_path, "out") == files(tmp_path, "whole")


@pytest.mark.parametrize("world", [{"explains_as": 4}, {"answers_tell": 4, "explains_as": 3}])
def test_two_answers_of_two_versions_are_refused(world: dict[str, int], tmp_path: Path) -> None:
    for name, version in world.items():
        setattr(World, name, version)
    with pytest.raises(InvalidInput, match="version 4 answers, expected fake version 3"):
        caption_shard(tmp_path, "out", items_of(write_photos(tmp_path / "in", 2)))
    assert not list((tmp_path / "out").glob("captions-*"))


def test_what_the_model_refuses_has_a_failure_and_no_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png((255, 0, 0)))
    assert caption_shard(tmp_path, "out", items_of(tmp_path / "in")).failed == {"model_error": 1}
    assert set(files(tmp_path, "out")) == {"0/captions-0.parquet", "0/failures-0.jsonl"}


class FailsAt(Events):
    """The first step of a kind fails, whichever thread comes to it."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def note(self, step: str, path: str) -> None:
        super().note(step, path)
        if self.labels[-1] == self.label and self.labels.count(self.label) == 1:
            fail(errno.ENOSPC)


@pytest.mark.parametrize("steps", ["rename", pytest.param("", marks=pytest.mark.slow)])
def test_a_disk_that_fails_at_any_step_spoils_nothing(steps: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 3, poison=[1])
    items = items_of(photos)
    events = Events()
    with noted(events):
        caption_shard(tmp_path, "whole", items)
    expected = files(tmp_path, "whole")
    counted = Counter(events.labels)
    assert counted["rename strip"] == counted["rename sidecar"] == 2
    for label in filter(lambda label: label.startswith(steps), counted):
        output = f"broken {label}"
        with pytest.raises((OSError, InvalidInput)) as caught, noted(FailsAt(label)):
            caption_shard(tmp_path, output, items)
        text = str(caught.value)
        assert os.strerror(errno.ENOSPC) in text
        for kind, end in (("strip", ""), ("sidecar", "-txt")):
            if label.endswith(kind):
                assert text.startswith(f"{tmp_path / output}{end}: cannot be written")
        there = files(tmp_path, output)
        assert there.items() <= expected.items()
        # Whatever row is there has its files.
        if "0/captions-0.parquet" in there:
            assert len(there) >= len(expected) - 1
        assert not list(tmp_path.rglob("*.tmp-*"))
        caption_shard(tmp_path, output, items)
        assert files(tmp_path, output) == expected


def test_what_is_not_whole_lies_where_the_next_run_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[str] = set()
    open_write = storage.open_write

    def noted_open(path: str) -> object:
        opened.add(str(Path(path).relative_to(tmp_path).parent))
        return open_write(path)

    monkeypatch.setattr(storage, "open_write", noted_open)
    caption_shard(tmp_path, "out", items_of(write_photos(tmp_path / "in", 1)))
    work = {f"out/_work/{part}" for part in ("attention", "done", "specs")}
    assert opened == {"out", "out/_work", "out-txt/.captionbeam", *work}


def test_strips_are_drawn_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bool] = []

    def draw(*args: Any) -> np.ndarray:
        drawn.append(attention_strips._DRAWING.locked())
        return draw_strip(*args)

    monkeypatch.setattr(attention_strips, "draw_strip", draw)
    caption_shard(tmp_path, "out", items_of(write_photos(tmp_path / "in", 3)))
    assert drawn == [True] * 3


def test_the_bytes_of_a_strip_are_those_of_its_image_alone(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "in", 6)
    items = items_of(photos)
    caption_shard(tmp_path, "one", items)
    caption_shard(tmp_path, "two", items[2:3])
    name = "attention/002.png.png"
    one, two = ((tmp_path / output / name).read_bytes() for output in ("one", "two"))
    assert one == two
    assert Image.open(io.BytesIO(one)).info == {}
