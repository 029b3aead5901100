"""Several inputs at once: their keys stay apart, and each says what is wrong with it."""

import os
from pathlib import Path

import pytest

from model.errors import InvalidInput
from pipelines.columns import Columns
from pipelines.input_names import name_inputs
from pipelines.sources import Sources
from tests.source_fixtures import list_sources


def make(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return directory


def keys(*inputs: object, columns: Columns | None = None) -> list[str]:
    return [item["key"] for item in list_sources([str(where) for where in inputs], columns).items]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["/a/photos", "/b/urls.csv"], ["photos", "urls.csv"]),
        (["/a/photos", "/b/photos/"], ["a/photos", "b/photos"]),
        (["/a/1/x", "/a/2/x", "/b/1/x"], ["a/1/x", "a/2/x", "b/1/x"]),
        (["gs://b/x", "s3://b/x"], ["gs:/b/x", "s3:/b/x"]),
        (["gs://b/x", "/data/x"], ["b/x", "data/x"]),
        # `x/x` and a key in `x` that begins with `x/` would be one.
        (["/p/x", "/q/x/y"], ["x", "y"]),
        (["/x", "/x/x/x"], None),
    ],
)
def test_names_tell_inputs_apart(inputs: list[str], names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(InvalidInput, match="one lies in another"):
            name_inputs(inputs)
    else:
        assert name_inputs(inputs) == names


def test_the_same_input_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "photos", "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        Sources(["photos", "../" + tmp_path.name + "/photos/"])
    assert str(caught.value) == (
        f"--input photos ../{tmp_path.name}/photos/: the same input twice; give it once"
    )


def test_keys_have_the_inputs_name_in_front_where_there_are_several(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", "a.png", "b/c.png"), make(tmp_path / "two", "a.png")
    urls = tmp_path / "urls.csv"
    urls.write_text("url,id\nhttps://x.test/1.jpg,7\nhttps://x.test/1.jpg,8\n")
    assert keys(one) == ["a.png", "b/c.png"]
    assert keys(one, two, urls) == [
        "one/a.png",
        "one/b/c.png",
        "two/a.png",
        "urls.csv/https://x.test/1.jpg",
        "urls.csv/https://x.test/1.jpg#2",
    ]
    assert keys(one, urls, columns=Columns(id="id"))[2:] == ["urls.csv/7", "urls.csv/8"]


@pytest.mark.parametrize("where", ["photos", "photos/a.png", "*/*.png", "m.txt", "a.tar"])
def test_the_same_words_twice_are_refused_whatever_they_name(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "photos/a.png", "m.txt", "a.tar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        Sources([where, "photos/../photos", where])
    assert str(caught.value) == f"--input {where} {where}: the same input twice; give it once"


def test_globs_and_files_keep_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "one/a.png", "one/b.png", "two/a.png")
    monkeypatch.chdir(tmp_path)
    # As a shell passes `one/*.png`; what two inputs name is numbered.
    assert keys("one/a.png", "one/b.png", "*/a.png") == [
        *("one/a.png", "one/b.png"),
        *("one/a.png#2", "two/a.png"),
    ]


def test_skipped_is_summed_over_the_inputs(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "a.png", "a.txt", ".hidden")
    two = make(tmp_path / "two", "a.png", "b.txt", "c.txt")
    sources = Sources([str(one), str(two)])
    assert sum(1 for _ in sources) == 2
    assert sources.skipped == {"hidden": 1, "no_image_suffix": 3}
    # Again is anew, not in addition.
    assert sum(1 for _ in sources) == 2
    assert sources.skipped == {"hidden": 1, "no_image_suffix": 3}


def test_the_input_that_is_empty_is_named(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", "a.png"), make(tmp_path / "two", "a.txt")
    with pytest.raises(InvalidInput, match=rf"^{two}: no image in it \(1 no_image_suffix\)"):
        keys(one, two)
    with pytest.raises(InvalidInput, match=r"^.*/none: no such file"):
        Sources([str(one), f"{tmp_path}/none"])


# Directories of many files.


def test_the_order_does_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.local_listing._AT_ONCE", 3)
    names = [f"{a}/{b}/{c}.png" for a in range(9) for b in range(9) for c in range(4)]
    make(tmp_path, *names)
    assert keys(tmp_path) == names


def test_links_are_followed_once_and_their_files_counted_once(tmp_path: Path) -> None:
    make(tmp_path / "in", *(f"{n}/{n}.png" for n in range(50)))
    for n in range(50):
        (tmp_path / "in" / f"{n}" / "next").symlink_to(tmp_path / "in" / f"{(n + 1) % 50}")
    found = list_sources(str(tmp_path / "in"))
    assert sorted(item["key"] for item in found.items) == sorted(f"{n}/{n}.png" for n in range(50))
    assert found.skipped == {"directory_seen_before": 50}


def test_a_local_item_tells_size_and_time_of_its_file(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    os.utime(tmp_path / "a.png", ns=(0, 5))
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c.png").symlink_to(tmp_path / "a.png")
    [*items] = list_sources(str(tmp_path)).items
    assert [item.get("state") for item in items] == ["1-5", None, "1-5"]
    [*items] = list_sources(f"{tmp_path}/*.png").items
    assert [item.get("state") for item in items] == ["1-5", None, "1-5"]
    (tmp_path / "a.png").write_bytes(b"xy")
    assert list_sources(str(tmp_path / "a.png")).items[0]["state"] != "1-5"


def test_the_directory_we_are_in_is_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.png", "b/c.png")
    monkeypatch.chdir(tmp_path)
    items = list_sources(".").items
    assert [(item["key"], item["source"]) for item in items] == [("a.png",) * 2, ("b/c.png",) * 2]
