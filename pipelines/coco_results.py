"""COCO's results, as pycocotools' `loadRes` takes them: [{"image_id": 139, "caption": "…"}, …].

An image's id is the last part of its key: a number as it stands (the id column of a manifest, the
`id` of COCO's own image entries), or the number in a COCO file name such as 000000000139.jpg or
COCO_val2014_000000000139.jpg. Other names do not tell ids: another data set numbers its images
otherwise than its files, or not at all.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from model.errors import InvalidInput
from pipelines import storage
from pipelines.jobs import FileInfo, Job
from pipelines.sink import HashedFile

COCO_FILE = "captions.json"
_ID = re.compile(r"0|[1-9][0-9]{0,17}")
_FILE_NAME = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})\.jpe?g", re.IGNORECASE)


def image_id(key: str) -> int | None:
    """The id of a key, or None where it tells none."""
    name = key.rpartition("/")[2]
    if _ID.fullmatch(name):
        return int(name)
    match = _FILE_NAME.fullmatch(name)
    return int(match[1]) if match else None


def check_ids(keys: Iterable[str]) -> None:
    """Raise InvalidInput where a key tells no id, or two tell the same; 8 bytes a key."""
    ids = array("q")
    for key in keys:
        found = image_id(key)
        if found is None:
            raise InvalidInput(
                f"--coco_results: the key {key!r} tells no image id, expected a number or a COCO "
                "file name such as 000000000139.jpg; give COCO's annotations (.json) as --input, "
                "or a manifest with --id_column"
            )
        ids.append(found)
    for one, other in pairwise(sorted(ids)):
        if one == other:
            raise InvalidInput(
                f"--coco_results: two keys tell the image id {one}, expected every id once; "
                "caption them into two outputs"
            )


class CocoResults:
    """The file, written row by row; see `coco_results`."""

    def __init__(self, file: HashedFile) -> None:
        """Begins the list."""
        self._file = file
        self._before = b"[\n"

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows of captions."""
        for row in rows:
            result = {"image_id": image_id(row["key"]), "caption": row["caption"]}
            self._file.write(self._before + storage.json_line(result).rstrip())
            self._before = b",\n"

    def publish(self) -> FileInfo:
        """End the list, and rename the file into place."""
        # Without a row, its beginning is still to be written.
        self._file.write(b"\n]\n" if self._before == b",\n" else b"[]\n")
        self._file.close()
        return self._file.publish()


@contextmanager
def coco_results(job: Job) -> Iterator[CocoResults]:
    """OUTPUT/captions.json; removed where it was not published."""
    file = HashedFile(job, COCO_FILE)
    try:
        yield CocoResults(file)
    finally:
        file.discard()
