import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidInput
from pipelines import json_stream
from pipelines.json_stream import read_lists

CONTENT: dict[str, Any] = {
    "info": {"images": [1, 2], "text": '"images": [3]'},
    "images": [{"id": 1}, [], "a, ] }", 12345678901234567890, -1.5e3, None, True],
    "licenses": [{"images": [4]}],
    "empty": [],
    "annotations": [{"caption": 'é \U0001f600 \\ "'}],
    "scalar": 7,
}


def read(path: Path, *names: str) -> tuple[set[str], list[tuple[str, int, Any]]]:
    rows: list[tuple[str, int, Any]] = []
    handlers = {
        name: lambda position, element, name=name: rows.append((name, position, element))
        for name in names
    }
    return read_lists(str(path), handlers, "COCO"), rows


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_elements_are_those_of_a_parser_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None, encoding: str
) -> None:
    path = tmp_path / "a.json"
    text = json.dumps(CONTENT, indent=indent, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    # The first bytes tell the encoding.
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", max(chunk, 4 if encoding != "utf-8" else 1))
    found, rows = read(path, "images", "annotations", "empty", "scalar", "none")
    assert found == {"images", "annotations", "empty"}
    assert rows == [
        (name, position, element)
        for name in ("images", "annotations")
        for position, element in enumerate(CONTENT[name])
    ]


def test_other_lists_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT))
    assert read(path, "licenses") == ({"licenses"}, [("licenses", 0, {"images": [4]})])


@pytest.mark.parametrize("text", ["{}", "[]", "3", ' {"images": {}} '])
def test_json_without_the_list(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert read(path, "images") == (set(), [])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ('{"images": [1, 2', "Expecting ',' delimiter: line 1 column 17 (char 16)"),
        ('{"images": [1 2]}', "Expecting ',' delimiter: line 1 column 15 (char 14)"),
        ('{"images": [1]', "Expecting ',' delimiter: line 1 column 15 (char 14)"),
        ('{"images": [1]} {', "Extra data: line 1 column 17 (char 16)"),
        ('{"images" [1]}', "Expecting ':' delimiter: line 1 column 11 (char 10)"),
        ('{"images":\n[{"id": "a]}', "Unterminated string starting at: line 2 column 9 (char 19)"),
    ],
)
def test_what_is_no_json_is_named_with_its_place(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read(path, "images")
    assert str(caught.value) == (
        f"{path}: invalid JSON ({error}), expected COCO; download it again"
    )


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"images": ["\xff"]}')
    with pytest.raises(InvalidInput, match=r"a\.json: invalid JSON \('utf-8' codec can't decode"):
        read(path, "images")


def test_only_a_window_of_the_file_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": ["x" * 90 for _ in range(1000)]}))
    longest = 0

    class Watched(json_stream._Window):
        def _grow(self) -> bool:
            nonlocal longest
            grown = super()._grow()
            longest = max(longest, len(self._text))
            return grown

    monkeypatch.setattr(json_stream, "_Window", Watched)
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 1000)
    assert len(read(path, "images")[1]) == 1000
    assert 1000 <= longest < 2 * 1000 + 100
