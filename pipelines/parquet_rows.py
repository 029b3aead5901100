"""The rows of a Parquet file, a batch at a time, so that no row group is held whole."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import InvalidInput
from pipelines.columns import ColumnCheck, Columns
from pipelines.manifest_files import open_manifest, unpacked_name
from pipelines.partition import spool_errors

_BATCH_ROWS = 1024
# Read on from a column's pages in pieces of this size.
_BUFFER_BYTES = 2**18
_PIECE_BYTES = 2**20
_BYTES_TYPES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def read_parquet(where: str, columns: Columns, check: ColumnCheck) -> Iterator[dict[str, Any]]:
    """The rows, by column; dates, times and decimals are text, as Arrow writes them.

    Args:
      where: path of the file, on any Beam filesystem; packed by gzip as a whole or not.
      columns: those that are read; without names to carry, all but those of bytes.
      check: is told the columns before the first row.

    Raises:
      InvalidInput: it cannot be read, or is no Parquet.
    """
    with _open_seekable(where) as file:
        try:
            table = pq.ParquetFile(
                pa.PythonFile(file, mode="r"), pre_buffer=False, buffer_size=_BUFFER_BYTES
            )
            schema = table.schema_arrow
            check.see_header(schema.names)
            for batch in table.iter_batches(_BATCH_ROWS, columns=_wanted(schema, columns)):
                yield from _as_text(batch).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            said = " ".join(str(error).split())
            raise InvalidInput(f"{where}: no Parquet ({said}); write it again") from error


@contextmanager
def _open_seekable(where: str) -> Iterator[BinaryIO]:
    with open_manifest(where) as file:
        if unpacked_name(where) == where:
            yield file
            return
        # Its table of contents stands at the end.
        with spool_errors():
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            # What goes wrong with reading is the manifest's.
            while piece := file.read(_PIECE_BYTES):
                with spool_errors():
                    unpacked.write(piece)
            with spool_errors():
                unpacked.seek(0)
            yield unpacked
        finally:
            # A full disk fails again here, with what is still to be written.
            with suppress(OSError):
                unpacked.close()


def _wanted(schema: pa.Schema, columns: Columns) -> list[str]:
    """The columns to be read; all others cost nothing."""
    if columns.carry is None:
        named = [field.name for field in schema if not _holds_bytes(field.type)]
    else:
        named = list(columns.carry)
    return list(dict.fromkeys([columns.url, *([columns.id] if columns.id else []), *named]))


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether there are bytes in it at any depth, as in datasets' struct<bytes, path>."""
    if any(is_of(kind) for is_of in _BYTES_TYPES):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_bytes(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Python has no nanoseconds, and JSON neither dates nor decimals."""
    for index, field in enumerate(batch.schema):
        kind = field.type
        # Durations have no text of Arrow's, and are numbers.
        if pa.types.is_duration(kind):
            batch = batch.set_column(index, field.name, batch.column(index).cast(pa.int64()))
        elif pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
            batch = batch.set_column(index, field.name, batch.column(index).cast(pa.string()))
    return batch
