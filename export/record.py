"""VERSION/assets.extra/verified.json: what a version held and said when it was published.

TensorFlow Serving reads no file of assets.extra but its warm-up. With this one, `--check` names
each file that has changed since, and each sample that is captioned otherwise.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from export.samples import Sample
from export.versions import RECORD_FILE
from model.errors import CheckFailed

_SCHEMA_VERSION = 1
# In a message; a copy that was cut short may lack hundreds.
_NAMED = 5


@dataclass(frozen=True)
class Record:
    """What was verified.

    Attributes:
      files: of the version, this record left out: path → {"bytes", "sha256"}.
      captions: what was said of export/samples: [{"caption", "log_prob", "status"}].
      encoder: digest of the encoder's weights that the graph holds.
      tensorflow: the version that wrote it.
    """

    files: Mapping[str, Mapping[str, Any]]
    captions: Sequence[Mapping[str, Any]]
    encoder: str
    tensorflow: str

    def check_files(self, path: Path) -> None:
        """Compare a version with the record; raises CheckFailed naming the files."""
        there = _files(path)
        missing = [f"{name} is missing" for name in self.files if name not in there]
        unknown = [f"{name} is new" for name in there if name not in self.files]
        changed = [
            f"{name} has changed ({there[name]['bytes']} bytes, {expected['bytes']} when published)"
            for name, expected in self.files.items()
            if name in there and there[name] != expected
        ]
        found = missing + changed + unknown
        if found:
            more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
            raise CheckFailed(
                f"{path}: {'; '.join(found[:_NAMED])}{more}; restore it from a copy or export again"
            )

    def check_captions(self, samples: Sequence[Sample]) -> None:
        """Compare what is said of the samples; raises CheckFailed naming the first that differs."""
        if len(samples) != len(self.captions):
            raise CheckFailed(
                f"export: {len(samples)} samples here, {len(self.captions)} when it was published "
                f"(TensorFlow {self.tensorflow}); check it with the captionbeam that published it"
            )
        before = [Sample(one.image, **was) for one, was in zip(samples, self.captions, strict=True)]
        for row, (now, then) in enumerate(zip(samples, before, strict=True)):
            if not now.says_the_same_as(then):
                raise CheckFailed(
                    f"export: sample {row} is {now.said} here, {then.said} when it was published "
                    f"(TensorFlow {tf.__version__} here, {self.tensorflow} then)"
                )


def write(path: Path, samples: Sequence[Sample], encoder_digest: str) -> None:
    """Record a version that has passed; nothing may be added to it after that."""
    captions = [
        {"caption": sample.caption, "log_prob": sample.log_prob, "status": sample.status}
        for sample in samples
    ]
    record = Record(_files(path), captions, encoder_digest, tf.__version__)
    fields = {"schema_version": _SCHEMA_VERSION, **asdict(record)}
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    (path / RECORD_FILE).write_text(text, encoding="utf-8")


def read(path: Path) -> Record:
    """The record of a version; raises CheckFailed where there is none that can be read."""
    file = path / RECORD_FILE
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        schema = fields.pop("schema_version")
        if schema != _SCHEMA_VERSION:
            raise CheckFailed(
                f"{file}: schema version {schema}, expected {_SCHEMA_VERSION}; check it with the "
                "version of captionbeam that published it"
            )
        record = Record(**fields)
        _ = [Sample(b"", **caption) for caption in record.captions]
        return record
    except OSError as error:
        raise CheckFailed(
            f"{file}: cannot be read ({error.strerror}), so that nothing is known of the files; "
            "versions published before there was one have none: export again"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckFailed(f"{file}: damaged ({error}); export again") from error


def _files(path: Path) -> dict[str, dict[str, Any]]:
    return {
        file.relative_to(path).as_posix(): _digest(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.relative_to(path) != RECORD_FILE
    }


def _digest(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"bytes": file.stat().st_size, "sha256": sha256}
    except OSError as error:
        raise CheckFailed(
            f"{file}: cannot be read ({error.strerror}); restore it from a copy or export again"
        ) from error
