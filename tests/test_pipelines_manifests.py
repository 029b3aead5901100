"""Manifests of every format, packed or not: rows, keys, and the columns that are carried."""

import datetime
import decimal
import errno
import gzip
import io
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import InvalidInput
from pipelines import json_stream, manifest_files, manifest_rows, parquet_rows
from pipelines.columns import Columns
from pipelines.manifest_rows import MANIFEST_SUFFIXES
from pipelines.manifests import read_manifest
from tests.source_fixtures import list_sources

URL = "https://x.test/a.jpg"


def write(directory: Path, name: str, content: Any) -> str:
    """A manifest of a text, bytes, rows (as JSON) or Parquet table; packed if it is named so."""
    path = directory / name.removesuffix(".gz")
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8", newline="")
    if not name.endswith(".gz"):
        return str(path)
    packed = directory / name
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return str(packed)


def items(where: str, columns: Columns | None = None) -> list[dict[str, Any]]:
    return list_sources(where, columns).items


def refusal(where: str, columns: Columns | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        list_sources(where, columns)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(where)
    return message.removeprefix(where)


TABLE = pa.table({"id": [7, 8], "link": [URL, "b.jpg"], "n": [1.5, None]})
FORMATS: dict[str, Any] = {
    "m.csv": f"id,link,n\n7,{URL},1.5\n8,b.jpg\n",
    "m.tsv": f"id\tlink\tn\n7\t{URL}\t1.5\n8\tb.jpg\n",
    "m.jsonl": f'{{"id": 7, "link": "{URL}", "n": 1.5}}\n{{"id": "8", "link": "b.jpg", "n": null}}',
    "m.json": [{"id": 7, "link": URL, "n": 1.5}, {"id": "8", "link": "b.jpg", "n": None}],
    "m.parquet": TABLE,
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(name: str, packed: str, tmp_path: Path) -> None:
    found = items(write(tmp_path, name + packed, FORMATS[name]), Columns("link", "id"))
    number = "1.5" if name in ("m.csv", "m.tsv") else 1.5
    assert found == [
        {"key": "7", "source": URL, "columns": {"n": number}},
        {"key": "8", "source": f"{tmp_path}/b.jpg", "columns": {"n": None}},
    ]


@pytest.mark.parametrize("name", ["m.txt.gz", "m.TXT.GZ", "m.json.gz"])
def test_a_list_of_urls_may_be_packed(name: str, tmp_path: Path) -> None:
    text = json.dumps([URL, "b.jpg", URL]) if "json" in name else f"{URL}\nb.jpg\n{URL}\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()))
    assert [(item["key"], item["source"]) for item in items(str(path))] == [
        (URL, URL),
        ("b.jpg", f"{tmp_path}/b.jpg"),
        (f"{URL}#2", URL),
    ]


def test_cocos_images_are_a_manifest(tmp_path: Path) -> None:
    images = [
        {"id": 9, "file_name": "9.jpg", "coco_url": URL, "license": 3},
        {"id": 10, "file_name": "10.jpg", "flickr_url": "https://f.test/10.jpg"},
    ]
    # What stands behind the images is not read, however it looks.
    text = json.dumps({"info": {"a": [1]}, "licenses": [{}], "images": images})[:-1] + ', "annot'
    where = write(tmp_path, "instances.json", text)
    first, second = items(where)
    assert (first["key"], first["source"]) == ("9", URL)
    assert (second["key"], second["source"]) == ("10", f"{tmp_path}/10.jpg")
    assert first["columns"] == {"file_name": "9.jpg", "coco_url": URL, "license": 3}
    [source] = [item["source"] for item in items(where, Columns("file_name")) if item["key"] == "9"]
    assert source == f"{tmp_path}/9.jpg"
    flickr = items(where, Columns("flickr_url", "file_name"))
    assert [(item["key"], item["source"]) for item in flickr] == [
        ("9.jpg", ""),
        ("10.jpg", "https://f.test/10.jpg"),
    ]


# Columns that are carried.


@pytest.mark.parametrize(
    ("carry", "expected"),
    [
        (None, {"n": 5, "list": [1, {"a": None}], "key": "mine"}),
        ((), None),
        (("key", "n"), {"key": "mine", "n": 5}),
        (("url", "id"), {"url": URL, "id": 7}),
    ],
)
@pytest.mark.parametrize("name", ["m.jsonl", "m.parquet"])
def test_the_columns_named_are_carried_else_all_others(
    name: str, carry: tuple[str, ...] | None, expected: dict[str, Any] | None, tmp_path: Path
) -> None:
    row = {"url": URL, "id": 7, "n": 5, "list": [1, {"a": None}], "key": "mine"}
    if name == "m.parquet":
        row["list"] = [{"a": None}]
        if expected and "list" in expected:
            expected = {**expected, "list": row["list"]}
        content: Any = pa.Table.from_pylist([row, {"url": URL, "id": 8}])
    else:
        content = json.dumps(row) + '\n{"url": "b", "id": 8}\n'
    found = items(write(tmp_path, name, content), Columns(id="id", carry=carry))
    assert found[0].get("columns") == expected
    assert found[0]["key"] == "7"


def test_a_column_that_a_row_lacks_is_not_carried(tmp_path: Path) -> None:
    where = write(tmp_path, "m.jsonl", '{"url": "a", "n": 1}\n{"url": "b", "m": 2}\n{"url": "c"}')
    assert [item.get("columns") for item in items(where)] == [{"n": 1}, {"m": 2}, None]
    named = items(where, Columns(carry=("m",)))
    assert [item.get("columns") for item in named] == [None, {"m": 2}, None]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2**63 - 1]), 2**63 - 1),
        (pa.array([True]), True),
        (pa.array([float("nan")]), "NaN"),
        (pa.array([float("-inf")], pa.float32()), "-Infinity"),
        (
            pa.array([1_600_000_000_123_456_789], pa.timestamp("ns")),
            "2020-09-13 12:26:40.123456789",
        ),
        (pa.array([0], pa.timestamp("ms", "UTC")), "1970-01-01 00:00:00.000Z"),
        (pa.array([datetime.date(2020, 1, 2)]), "2020-01-02"),
        (pa.array([datetime.time(1, 2, 3)]), "01:02:03.000000"),
        (pa.array([decimal.Decimal("1.10")]), "1.10"),
        (pa.array([5], pa.duration("ms")), 5),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([[datetime.date(2020, 1, 2)]]), ["2020-01-02"]),
        (pa.array([{"a": decimal.Decimal("2.50")}]), {"a": "2.50"}),
        (pa.nulls(1), None),
    ],
    ids=str,
)
def test_every_type_of_parquet_has_a_form_in_json(
    column: pa.Array, expected: Any, tmp_path: Path
) -> None:
    table = pa.table({"url": [URL], "value": column})
    [item] = items(write(tmp_path, "m.parquet", table))
    assert item["columns"] == {"value": expected}
    assert json.loads(json.dumps(item, allow_nan=False)) == item


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([b"\xff\xd8"]), "/9g="),
        (pa.array([b"\xff\xd8"], pa.large_binary()), "/9g="),
        (pa.array([b"\xff\xd8"], pa.binary(2)), "/9g="),
        (pa.array([[b"\xff\xd8"]]), ["/9g="]),
        # As Hugging Face's datasets keep an image.
        (pa.array([{"bytes": b"\xff\xd8", "path": None}]), {"bytes": "/9g=", "path": None}),
        (pa.array([[{"a": {"b": b"\xff\xd8"}}]]), [{"a": {"b": "/9g="}}]),
        (pa.array([b"\xff\xd8"]).dictionary_encode(), "/9g="),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_bytes_are_carried_only_where_they_are_named(
    column: pa.Array, expected: Any, tmp_path: Path
) -> None:
    table = pa.table({"url": [URL], "jpg": column, "n": [1], "list": [[{"a": "x"}]]})
    where = write(tmp_path, "m.parquet", table)
    assert items(where)[0]["columns"] == {"n": 1, "list": [{"a": "x"}]}
    assert items(where, Columns(carry=("jpg",)))[0]["columns"] == {"jpg": expected}


def test_bytes_behind_a_type_of_their_own_are_bytes(tmp_path: Path) -> None:
    table = pa.table({"url": [URL], "n": [1], "of_row": pa.array([b"x" * 16], pa.uuid())})
    assert items(write(tmp_path, "m.parquet", table))[0]["columns"] == {"n": 1}


def test_what_json_lines_may_hold_and_json_may_not_is_text(tmp_path: Path) -> None:
    where = write(tmp_path, "m.jsonl", '{"url": "a", "x": NaN, "y": 1e999, "z": "\\ud800"}')
    [item] = items(where)
    assert item["columns"] == {"x": "NaN", "y": "Infinity", "z": "\\ud800"}
    json.dumps(item, allow_nan=False, ensure_ascii=False).encode()


# States.


def test_local_sources_have_a_state_and_urls_none(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"12345")
    os.utime(image, ns=(0, 1_234_567_890_123_456_789))
    where = write(tmp_path, "m.txt", f"a.jpg\n{URL}\ngone.jpg\ngs://b/x.jpg\n")
    states = [item.get("state") for item in items(where)]
    assert states == ["5-1234567890123456789", None, None, None]


# Memory: a manifest is read as it is asked for.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "url\n" + "x://a\n" * 20_000 + '"'),
        ("m.jsonl", '{"url": "x://a"}\n' * 20_000 + "{"),
        ("m.json", '[{"url": "x://a"}' + ', {"url": "x://a"}' * 60_000 + ", {"),
    ],
)
def test_the_first_rows_are_there_before_the_last_is_read(
    name: str, text: str, tmp_path: Path
) -> None:
    where = write(tmp_path, name, text)
    rows = read_manifest(where, Columns())
    assert [found.item["key"] for found in islice(rows, 2)] == ["x://a", "x://a"]
    rows.close()  # type: ignore[attr-defined]
    assert refusal(where)


# What cannot be used.


def cut(data: bytes) -> bytes:
    return data[: len(data) - 20]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt.gz", cut(gzip.compress(os.urandom(500).hex().encode())), ": ends within its gzip"),
        ("m.csv.gz", b"url\na\n", ": no gzip data (Not a gzipped file"),
        ("m.txt.gz", gzip.compress(b"a\n", mtime=0) + b"more", ": no gzip data ("),
        ("m.txt", "a" * (2**24 + 1), ", line 1: over 16777216 characters"),
        ("m.csv", "url,n\n" + "a" * 200_000, ", line 1: field larger than field limit"),
        ("m.parquet", b"PAR1 no", ": "),
        ("m.parquet", b"", ": "),
        ("m.parquet", pa.table({"link": [URL]}), ": no column 'url'; it has link; name one with"),
        ("m.parquet", pa.table({"url": [b"a"]}), ", row 1: url is bytes; expected text"),
        ("m.parquet", pa.table({"url": [5]}), ", row 1: url is 5; expected text"),
        ("m.csv", "url,n,n\na,1,2\n", ": column 'n' comes twice"),
        ("m.json", "{}", ", after element 0: no JSON (no list 'images' in it)"),
        ("m.json", '{"images": {}}', ", after element 0: no JSON (no list 'images' in it)"),
        ("m.json", '["a", 5]', ", element 2: int; expected a URL, or an object"),
        ("m.json", '["a", "b"', ", after element 2: no JSON ("),
        ("m.json", '["a"] x', ", after element 1: no JSON ("),
        ("m.json", "[" * 100_000, ", after element 0: no JSON (maximum recursion"),
        ("m.json", "", ", after element 0: no JSON ("),
        ("m.json", "[]", ": no image in it (it is empty)"),
        ("m.json", '[{"link": "a"}]', ": no column 'url'; it has link"),
        ("m.json", '{"images": [{"file_name": "a"}]}', ", element 1: id is null; expected"),
        ("m.json", b'["\xff"]', ", after element 0: no JSON ("),
        (
            "m.jsonl",
            '{"url": "a", "n": ' + "[" * 40 + "]" * 40 + "}",
            ", line 1: n: over 32 lists or objects within each other",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        path = tmp_path / name
        path.write_bytes(content)
        where = str(path)
    else:
        where = write(tmp_path, name, content)
    assert refusal(where).startswith(message)


@pytest.mark.parametrize(
    "text",
    ["[ROW,HUGE]", '{"images": [ROW,HUGE]}', '{"info": HUGE}', '{"licenses": [ROW,HUGE]}'],
)
def test_an_element_without_end_is_refused_before_it_fills_the_memory(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 2**10)
    monkeypatch.setattr(manifest_rows, "LONGEST_ROW", 2**16)
    row = json.dumps({"url": URL, "id": 7, "text": "x" * 60_000})
    assert len(items(write(tmp_path, "m.json", f"[{row},{row},{row}]"))) == 3
    huge = f'"{"x" * 2**20}"'
    where = write(tmp_path, "m.json", text.replace("ROW", row).replace("HUGE", huge))
    assert "a value of over 65536 characters" in refusal(where)


def test_a_full_disk_is_not_the_fault_of_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = write(tmp_path, "m.parquet.gz", pa.table({"url": [URL]}))

    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            super().close()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parquet_rows.tempfile, "TemporaryFile", Full)
    with pytest.raises(InvalidInput, match=r"No space left.*set TMPDIR to") as caught:
        items(where)
    assert where not in str(caught.value)


@pytest.mark.parametrize("name", ["m.parquet.gz", "m.csv"])
def test_a_manifest_that_is_gone_says_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"expected a manifest; check its path") as caught:
        list(read_manifest(str(tmp_path / name), Columns()))
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read (")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        # One line, many lines, and what is unpacked before it is read.
        ("m.txt.gz", bytes(2**22)),
        ("m.jsonl.gz", b"\n" * 2**22),
        ("m.parquet.gz", bytes(2**22)),
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(
    name: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_files, "_SMALL_BYTES", 2**20)
    where = tmp_path / name
    where.write_bytes(gzip.compress(data))
    assert refusal(str(where)) == (
        ": unpacks to over 200 times its size; expected a manifest, unpack it yourself if it is one"
    )


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        (
            "m.csv",
            "url,n\na,1\n",
            Columns(carry=("m",)),
            "no column 'm'; it has url, n; name",
        ),
        ("m.jsonl", '{"url": "a"}\n', Columns(carry=("m",)), "name one with --carry_columns"),
        ("m.parquet", pa.table({"url": ["a"]}), Columns(id="m"), "name one with --id_column"),
        ("m.txt", "a\n", Columns(carry=("n",)), "no columns, so no --carry_columns n"),
        ("m.json", '["a"]', Columns(id="n"), "no columns, so no --id_column n"),
        ("m.jsonl", '{"url": "a"}\n{"url": "b"}', Columns(id="n"), "no column 'n'; it has url"),
        ("m.jsonl", '{"url": "a", "n": 1}\n{"url": "b"}', Columns(id="n"), "line 2: n is null"),
    ],
)
def test_a_column_that_is_not_there_is_named(
    name: str, content: Any, columns: Columns, message: str, tmp_path: Path
) -> None:
    assert message in refusal(write(tmp_path, name, content), columns)


def test_a_column_without_a_name_may_come_twice(tmp_path: Path) -> None:
    [item] = items(write(tmp_path, "m.csv", ",url,\n0,a,\n"))
    assert item["key"] == "a"


def test_a_manifest_that_packs_well_is_no_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_files, "_SMALL_BYTES", 1)
    text = "".join(f"https://x.test/photos/of/a/long/path/{n}.jpg\n" for n in range(1000))
    assert len(items(write(tmp_path, "m.txt.gz", text))) == 1000


def test_a_mapping_of_formats_is_all_that_is_promised() -> None:
    assert {*FORMATS, "m.txt"} == {f"m{suffix}" for suffix in MANIFEST_SUFFIXES}
