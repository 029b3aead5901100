"""Rows of captions as Parquet: one file a shard, its schema the same whatever rows it has."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.caption_rows import Kind

_TYPES = {
    Kind.TEXT: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.float64(),
    Kind.FLAG: pa.bool_(),
    Kind.CAPTIONS: pa.list_(
        pa.struct([pa.field("caption", pa.string()), pa.field("log_prob", pa.float64())])
    ),
    Kind.JSON: pa.string(),
}


class ParquetEncoder:
    """Keeps the rows, since Parquet stands by columns; as many as a shard has, at most.

    Args:
      fields: names and kinds, in order.
    """

    def __init__(self, fields: Sequence[tuple[str, Kind]]) -> None:
        self._fields, self._rows = fields, list[Mapping[str, Any]]()

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def add(self, row: Mapping[str, Any]) -> bytes:
        """Nothing yet."""
        self._rows.append(row)
        return b""

    def end(self) -> bytes:
        """The whole file."""
        columns = [
            pa.array([_to_value(row, name, kind) for row in self._rows], _TYPES[kind])
            for name, kind in self._fields
        ]
        buffer = pa.BufferOutputStream()
        pq.write_table(
            pa.Table.from_arrays(columns, schema=_schema(self._fields)),
            buffer,
            # What any reader knows; nothing of it depends on time, machine or threads.
            version="2.6",
            compression="snappy",
        )
        return buffer.getvalue().to_pybytes()


def read_parquet_rows(data: bytes, fields: Sequence[tuple[str, Kind]]) -> list[dict[str, Any]]:
    """The rows of a file that ParquetEncoder made; raises ValueError."""
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    if table.schema != _schema(fields):
        raise ValueError(f"schema {table.schema}, expected {_schema(fields)}")
    kinds = dict(fields)
    return [
        {
            name: json.loads(value) if kinds[name] is Kind.JSON else value
            for name, value in row.items()
            if value is not None
        }
        for row in table.to_pylist()
    ]


def _schema(fields: Sequence[tuple[str, Kind]]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, _TYPES[kind], nullable=kind is Kind.JSON) for name, kind in fields]
    )


def _to_value(row: Mapping[str, Any], name: str, kind: Kind) -> Any:
    if kind is Kind.JSON:
        return storage.json_text(row[name]) if name in row else None
    return row[name]
