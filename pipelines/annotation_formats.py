"""Which format an annotation file has: its suffix says so, or its first line.

.json                COCO captions JSON
.jsonl, .ndjson      an object a line
.csv, .tsv           a table with a header
.token               a token file
.txt and all others  by the first line: token file, JSON, or a table
"""

import json
from pathlib import PurePosixPath

from pipelines.annotations import Annotations, Columns, Reader, open_text
from pipelines.caption_tables import TOKEN_LINE, read_json_lines, read_table, read_tokens
from pipelines.coco_json import read_coco

_BY_SUFFIX: dict[str, Reader] = {
    ".json": read_coco,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".csv": read_table,
    ".tsv": read_table,
    ".token": read_tokens,
}
SUFFIXES = (*_BY_SUFFIX, ".txt")
# Of a file without lines, such as COCO's.
_LONGEST_LINE = 2**16


def read_annotations(path: str, columns: Columns) -> Annotations:
    """Read an annotation file of whatever format.

    Raises:
      InvalidInput: it cannot be read as what it is.
    """
    reader = _BY_SUFFIX.get(PurePosixPath(path).suffix.lower()) or _sniff(path)
    return reader(path, columns)


def _sniff(path: str) -> Reader:
    with open_text(path, "an annotation file") as file:
        line = file.readline(_LONGEST_LINE).rstrip("\r\n")
    if TOKEN_LINE.fullmatch(line):
        return read_tokens
    if not line.lstrip().startswith(("{", "[")):
        return read_table
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return read_coco
    return read_coco if "images" in row or "annotations" in row else read_json_lines
