"""Directories, globs and manifests → items with unique keys."""

import glob
import json
import os
from pathlib import Path

import pytest

from model.errors import InvalidInput
from pipelines.columns import Columns
from tests.source_fixtures import Listed, list_sources


def make(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return directory


def keys(found: Listed) -> list[str]:
    return [item["key"] for item in found.items]


def places(found: Listed) -> list[dict[str, str]]:
    """Keys and sources."""
    return [{"key": item["key"], "source": item["source"]} for item in found.items]


def manifest(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


# Directories.


def test_a_directory_is_listed_with_all_below_it_in_order(tmp_path: Path) -> None:
    make(tmp_path, "b.JPG", "a/z.png", "a/b/c.webp", "c/1.png", "a.tiff")
    found = list_sources(str(tmp_path))
    # A directory's own files come before those below it.
    assert places(found) == [
        {"key": key, "source": str(tmp_path / key)}
        for key in ("a.tiff", "b.JPG", "a/z.png", "a/b/c.webp", "c/1.png")
    ]
    assert found.skipped == {}


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "notes.txt", "noext", ".hidden.png", ".git/x.png", "sub/._b.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = list_sources(str(tmp_path))
    assert keys(found) == ["a.png"]
    assert found.skipped == {"hidden": 3, "no_image_suffix": 2, "no_regular_file": 1}


def test_loops_of_links_end_and_no_file_is_listed_twice(tmp_path: Path) -> None:
    make(tmp_path, "in/a/1.png", "in/z/2.png", "outside/3.png")
    top = tmp_path / "in"
    (top / "a" / "up").symlink_to(top)
    (top / "a" / "self").symlink_to(top / "a" / "self")
    (top / "0-to-z").symlink_to(top / "z")
    (top / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(top / "a")
    found = list_sources(str(top))
    assert sorted(keys(found)) == ["a/1.png", "out/3.png", "z/2.png"]
    assert found.skipped == {"directory_seen_before": 3, "no_image_suffix": 1}


def test_a_link_to_nowhere_is_an_item_that_will_fail(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    assert keys(list_sources(str(tmp_path))) == ["gone.png", "itself.png"]


def test_a_name_that_is_no_utf8_can_be_written_down(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    [item] = list_sources(str(tmp_path)).items
    assert item["key"].encode() == b"caf\\udce9.png"


# Globs and single files.


def test_a_glob_is_every_match(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.dat", "sub/c.png")
    found = list_sources(f"{tmp_path}/*")
    assert keys(found) == [f"{tmp_path}/a.png", f"{tmp_path}/b.dat"]
    assert found.skipped == {"directory": 1}
    assert keys(list_sources(f"{tmp_path}/**/*.png")) == [
        f"{tmp_path}/a.png",
        f"{tmp_path}/sub/c.png",
    ]


def test_a_glob_of_all_below_ends_at_loops_of_links(tmp_path: Path) -> None:
    make(tmp_path, "in/a/1.png", "in/z/2.png", "in/z/note.txt", "outside/[x]/3.png")
    top = tmp_path / "in"
    # Of two loops glob alone makes 2 ** 40 paths.
    (top / "a" / "up").symlink_to(top)
    (top / "z" / "up").symlink_to(top)
    (top / "out").symlink_to(tmp_path / "outside")
    (top / "itself").symlink_to(top / "itself")
    expected = [f"{top}/a/1.png", f"{top}/out/[x]/3.png", f"{top}/z/2.png"]
    found = list_sources(f"{top}/**/*.png")
    assert keys(found) == expected
    assert found.skipped == {"directory_seen_before": 2}
    assert keys(list_sources(f"{tmp_path}/i?/**/**/*.png")) == expected
    assert keys(list_sources(f"{top}/**/z/*.png")) == expected[2:]


@pytest.mark.parametrize(
    "pattern", ["**/*.png", "**/b/*", "./**/*.png", "a/**", "?/**/b/**/*.p*", "**/.hid/*", "a**/*"]
)
def test_a_glob_without_links_finds_what_python_finds(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "0.png", "a/1.png", "a/b/2.png", "a/b/c/3.png", "b/4.txt", "a/.hid/5.png")
    make(tmp_path, "b/b/6.png", "a/.7.png")
    monkeypatch.chdir(tmp_path)
    expected = {path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}  # noqa: PTH113, PTH207
    assert expected
    assert keys(list_sources(pattern)) == sorted(expected)


def test_a_directory_with_brackets_is_no_glob(tmp_path: Path) -> None:
    make(tmp_path / "photos [1]", "a.png")
    assert keys(list_sources(str(tmp_path / "photos [1]"))) == ["a.png"]


def test_one_image_is_an_input(tmp_path: Path) -> None:
    path = str(make(tmp_path, "a.png") / "a.png")
    assert places(list_sources(path)) == [{"key": path, "source": path}]


# Manifests.


def test_a_text_manifest_is_one_source_a_line(tmp_path: Path) -> None:
    lines = "\ufeffhttps://x.test/1.jpg\r\n\r\n  sub/a.jpg  \n/abs/b.jpg\nhttps://x.test/1.jpg\n"
    found = list_sources(manifest(tmp_path, "list.txt", lines))
    assert places(found) == [
        {"key": "https://x.test/1.jpg", "source": "https://x.test/1.jpg"},
        {"key": "sub/a.jpg", "source": f"{tmp_path}/sub/a.jpg"},
        {"key": "/abs/b.jpg", "source": "/abs/b.jpg"},
        {"key": "https://x.test/1.jpg#2", "source": "https://x.test/1.jpg"},
    ]


def test_numbered_keys_never_meet_a_key_that_looks_numbered(tmp_path: Path) -> None:
    found = list_sources(manifest(tmp_path, "list.txt", "a\na#2\na\na\na#2\n"))
    assert keys(found) == ["a", "a#2", "a#3", "a#4", "a#2#2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", 'id,link\r\n7,"https://x.test/a,b"\r\n8,\r\nx,c.jpg\r\n'),
        ("m.tsv", "id\tlink\n7\thttps://x.test/a,b\n8\t\nx\tc.jpg\n"),
        (
            "m.jsonl",
            '{"id": 7, "link": "https://x.test/a,b"}\n\n{"id": "8", "link": null}\n'
            '{"link": "c.jpg", "id": "x", "more": [1]}\n',
        ),
    ],
)
def test_a_table_has_its_columns_named(name: str, text: str, tmp_path: Path) -> None:
    found = list_sources(manifest(tmp_path, name, text), Columns("link", "id"))
    assert places(found) == [
        {"key": "7", "source": "https://x.test/a,b"},
        {"key": "8", "source": ""},
        {"key": "x", "source": f"{tmp_path}/c.jpg"},
    ]


def test_empty_cells_have_keys_of_their_own(tmp_path: Path) -> None:
    found = list_sources(manifest(tmp_path, "m.csv", 'url,n\n,1\n"",2\na.jpg,3\n'))
    assert keys(found) == ["line 2", "line 3", "a.jpg"]
    assert [item["source"] for item in found.items[:2]] == ["", ""]


def test_a_manifest_beside_us_needs_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(tmp_path, "m.txt", "a.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert places(list_sources("m.txt")) == [{"key": "a.jpg", "source": "a.jpg"}]


# What cannot be used.


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("m.csv", "link,id\na,1\n", Columns(), "no column 'url'; it has link, id"),
        ("m.csv", "url,n\na,1\n", Columns(id="id"), "no column 'id'; it has url, n"),
        ("m.jsonl", '{"link": "a"}\n', Columns(), "no column 'url'; it has link"),
        ("m.csv", "url,id\na,1\nb,2\nc,1\n", Columns(id="id"), "line 4: id '1' comes twice"),
        ("m.jsonl", '{"url":"a","id":1}\n{"url":"b","id":"1"}', Columns(id="id"), "'1' comes twic"),
        ("m.csv", "url,id\na,\n", Columns(id="id"), 'line 2: id is ""'),
        ("m.csv", "url\na,b\n", Columns(), "line 2: more cells"),
        ("m.csv", 'url\n"a\n', Columns(), "line 1: unexpected end"),
        ("m.jsonl", '{"url": "a"}\n{"url": \n', Columns(), "line 2: no JSON"),
        ("m.jsonl", '["a"]\n', Columns(), "line 1: list; expected an object"),
        ("m.jsonl", '{"url": 5}\n', Columns(), "line 1: url is 5; expected text"),
        ("m.jsonl", '{"url": [[1]]}\n', Columns(), "line 1: url is a list; expected text"),
        (
            "m.jsonl",
            '{"url": "a", "n": {}}\n',
            Columns(id="n"),
            "line 1: n is an object; expected text or a number",
        ),
        ("m.jsonl", "{}\n" + "[" * 100_000, Columns(), "line 2: no JSON (maximum recursion"),
        ("m.txt", "a.jpg\n", Columns(id="id"), "a .txt manifest has no columns"),
        ("m.txt", "\n\n", Columns(), "no image in it"),
        ("m.csv", "", Columns(), "no image in it"),
        ("m.csv", "url\n", Columns(), "no image in it"),
        ("notes.md", "x", Columns(), "a file of another kind"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named_in_one_line(
    name: str, text: str, columns: Columns, message: str, tmp_path: Path
) -> None:
    path = manifest(tmp_path, name, text)
    with pytest.raises(InvalidInput) as caught:
        list_sources(path, columns)
    assert message in str(caught.value)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="no UTF-8"):
        list_sources(str(path))


@pytest.mark.parametrize("where", ["nowhere", "nowhere/*.jpg", "https://x.test/a.jpg"])
def test_an_input_that_is_not_there_is_refused(where: str, tmp_path: Path) -> None:
    where = where if ":" in where else f"{tmp_path}/{where}"
    with pytest.raises(InvalidInput, match="expected a directory, a glob or a manifest"):
        list_sources(where)


def test_a_directory_without_images_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="it is empty"):
        list_sources(str(tmp_path))
    make(tmp_path, "a.txt", "b.pdf")
    with pytest.raises(InvalidInput, match="2 no_image_suffix"):
        list_sources(str(tmp_path))


def test_every_item_can_be_written_as_json(tmp_path: Path) -> None:
    text = json.dumps({"url": "a\ud800.jpg"}) + "\n"
    items = list_sources(manifest(tmp_path, "m.jsonl", text)).items
    assert len(items) == 1
    for item in items:
        json.dumps(item, ensure_ascii=False).encode()
