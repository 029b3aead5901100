"""Rows of every format: the same bytes for the same rows, and the rows again from the bytes."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.caption_rows import Asked
from pipelines.output_settings import FORMATS
from pipelines.row_formats import RowFormat

EVERYTHING = Asked(nbest=2, min_log_prob=-3.0, explain=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBER | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
ROW = st.fixed_dictionaries(
    {
        **dict.fromkeys(("key", "source", "caption"), TEXT),
        "log_prob": NUMBER,
        "sha256": TEXT,
        "width": st.integers(1, 2**31),
        "height": st.integers(1, 2**31),
        "model": TEXT,
        "model_version": st.integers(0, 2**63 - 1),
        "below_min_log_prob": st.booleans(),
        "nbest": st.lists(st.fixed_dictionaries({"caption": TEXT, "log_prob": NUMBER}), max_size=2),
        "attention": TEXT,
    },
    optional={"columns": st.dictionaries(st.text(), JSON, max_size=2)},
)
PLAIN = {
    "key": "a/b.jpg",
    "source": "photos/a/b.jpg",
    "caption": "a dog",
    "log_prob": -1.5,
    "sha256": "ab",
    "width": 640,
    "height": 480,
    "model": "captioner",
    "model_version": 3,
}


def encode(name: str, rows: Sequence[dict[str, Any]], asked: Asked = EVERYTHING) -> bytes:
    encoder = RowFormat(name, asked.row_fields).encoder()
    return b"".join([encoder.begin(), *map(encoder.add, rows), encoder.end()])


def read(name: str, data: bytes, asked: Asked = EVERYTHING) -> list[dict[str, Any]]:
    return RowFormat(name, asked.row_fields).read(data)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, max_size=3))
def test_what_is_read_is_what_was_written(name: str, rows: list[dict[str, Any]]) -> None:
    data = encode(name, rows)
    found = read(name, data)
    assert found == rows
    # In the order of the fields as well, so that a kept row has the bytes of one made anew.
    assert encode(name, found) == data


@pytest.mark.parametrize("name", FORMATS)
def test_texts_that_a_table_may_trip_over_survive(name: str) -> None:
    odd = [
        "a,b",
        'say "x"',
        "two\nlines",
        "two\r\nlines\r",
        "",
        " ",
        "=1+1",
        "@x",
        "é🐕",
        "\0",
        "'",
    ]
    rows = [PLAIN | {"key": text, "caption": text, "columns": {text: text}} for text in odd]
    rows.append(PLAIN | {"columns": {"half": "\ud800", "long": "x" * 200_000}})
    assert read(name, encode(name, rows, Asked()), Asked()) == rows


def test_csv_is_a_table_for_any_reader() -> None:
    row = PLAIN | {"caption": 'a "dog",\ntwo', "columns": {"n": [5]}}
    data = encode("csv", [row, PLAIN], Asked())
    assert data.startswith(b"key,source,caption,log_prob,sha256,width,height,model,model_version,")
    assert data.count(b"\r\n") == 3
    first, second = csv.DictReader(io.StringIO(data.decode(), newline=""))
    assert json.loads(first.pop("columns")) == {"n": [5]}
    assert first == {name: str(value) for name, value in row.items() if name != "columns"}
    assert second["columns"] == ""


def test_parquet_has_one_schema_whatever_the_rows() -> None:
    text, number = pa.string(), pa.float64()
    ranked = pa.list_(pa.struct([("caption", text), ("log_prob", number)]))
    expected = {
        **dict.fromkeys(("key", "source", "caption"), text),
        "log_prob": number,
        "sha256": text,
        "width": pa.int64(),
        "height": pa.int64(),
        "model": text,
        "model_version": pa.int64(),
        "below_min_log_prob": pa.bool_(),
        "nbest": ranked,
        "attention": text,
        "columns": text,
    }
    row = PLAIN | {"below_min_log_prob": True, "nbest": [], "attention": "x.png"}
    for rows in ([], [row], [row | {"columns": {"n": 1}}]):
        file = pq.ParquetFile(io.BytesIO(encode("parquet", rows)))
        found = file.schema_arrow
        assert dict(zip(found.names, found.types, strict=True)) == expected
        assert [field.nullable for field in found] == [False] * 12 + [True]
    assert file.read().column("columns").to_pylist() == ['{"n": 1}']


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("asked", [Asked(), Asked(nbest=2)])
def test_a_file_of_other_fields_or_none_is_refused(name: str, asked: Asked) -> None:
    if name == "jsonl":
        data = b"no JSON\n"
    else:
        data = encode(name, [], Asked(explain=True))
        with pytest.raises(ValueError, match="expected"):
            read(name, data, asked)
        data = b"\x00PAR" if name == "parquet" else b'"'
    with pytest.raises(ValueError):  # noqa: PT011
        read(name, data, asked)
