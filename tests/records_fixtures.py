"""Records made with the fake encoder, and ways to damage them; imported by tests."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import captionbeam
from model.records import NO_COMPRESSION, Manifest, Record, frame, serialise
from pipelines.records_job import preprocess
from pipelines.shard_check import read_records
from tests.preprocess_fixtures import FakeEncoder, settings, write_split

GRID_SHAPE = FakeEncoder.grid_shape
FIRST, SECOND, THIRD = (f"train-{index:05d}-of-00003" for index in range(3))
VAL = "val-00000-of-00001"


def make_records(root: Path, **changes: Any) -> Path:
    """Records of 20 training images, one of them unreadable, and 6 of val: four shards in all.

    Two captions are no sentences, one belongs to no image.
    """
    write_split(root, "train", 20)
    write_split(root, "val", 6, first_id=101)
    (root / "train" / f"{4:012d}.jpg").write_bytes(b"")
    path = root / "captions_train.json"
    content = json.loads(path.read_text())
    by_id = {annotation["id"]: annotation for annotation in content["annotations"]}
    by_id[70]["caption"] = " ... "
    by_id[80]["caption"] = None
    content["annotations"].append({"id": 999, "image_id": 12345, "caption": "a lost caption"})
    path.write_text(json.dumps(content))
    preprocess(settings(root, "out", **changes), (), partial(FakeEncoder, root / "log"))
    return root / "out"


def copy_records(output: Path, target: Path) -> Path:
    """A copy to be damaged; its photographs stay where they are."""
    shutil.copytree(output, target)
    return target


Answer = tuple[int, list[str], str]
"""Of a command: exit code, lines of stdout, stderr."""


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Answer:
    """Run `captionbeam` with these arguments."""
    code = captionbeam.main(arguments)
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def shard(output: Path, name: str) -> Path:
    """Path of a shard."""
    return output / f"{name}.tfrecord"


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_shard(output: Path, name: str) -> list[Record]:
    """All records of a shard."""
    content = Manifest.load(output).content
    return list(read_records(str(shard(output, name)), GRID_SHAPE, NO_COMPRESSION, content))


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    """Change a JSON file as this command would write it."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def edit_shard_info(output: Path, name: str, **changes: Any) -> None:
    """Change what the manifest says of a shard."""

    def edit(manifest: Any) -> None:
        for infos in manifest["splits"].values():
            for info in infos:
                if info["file"] == shard(output, name).name:
                    info.update(changes)

    edit_json(output / "manifest.json", edit)


def edit_result(records: Path, name: str, **changes: Any) -> None:
    """Change the result that the job noted for a shard."""
    edit_json(records / "_work" / "done" / f"{name}.json", lambda result: result.update(changes))


def forge(output: Path, name: str, rows: Sequence[Record]) -> None:
    """Write a shard anew, with right checksums, and have manifest and job vouch for its bytes."""
    path = shard(output, name)
    path.write_bytes(b"".join(frame(serialise(row)) for row in rows))
    fields = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    edit_shard_info(output, name, **fields)
    edit_result(output, name, output={"file": path.name, **fields})


def forge_first(output: Path, name: str, **changes: Any) -> Record:
    """`forge` with the first record changed; returns what it was."""
    first, *others = read_shard(output, name)
    forge(output, name, [replace(first, **changes), *others])
    return first
