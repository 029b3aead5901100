"""Tiny records for tests: random grids, a few words, uneven caption lengths."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model import records
from model.preprocessing import SQUASH, choices, fingerprint
from model.records import Manifest, Record, ShardInfo
from model.vocabulary import Vocabulary, tokenise

GRID_SHAPE = (4, 8)
CHOICES = choices(64, 2, SQUASH)
CAPTIONS = (
    ("a dog", "one dog runs on the green grass today"),
    ("a red bird in a tall tree", "bird"),
    ("two people walk past a very old stone house", "people walking"),
    ("a man's hat", "the hat of a man", "hat"),
    ("a cat sleeps",),
    ("a boat on a lake at night", "boat"),
    ("some flowers", "flowers in a vase on a table"),
)


def make_vocabulary() -> Vocabulary:
    """All words of CAPTIONS."""
    words = Counter(word for image in CAPTIONS for caption in image for word in tokenise(caption))
    return Vocabulary.build(words, 1)


def make_records(
    directory: Path,
    *,
    shards: int = 2,
    val: bool = True,
    seed: int = 0,
    train: Sequence[Sequence[str]] = CAPTIONS,
) -> Path:
    """Write a complete RECORDS directory.

    The vocabulary is that of CAPTIONS. The val split has an image for each of them, the train
    split the very same images anew, or others with the captions that are given.
    """
    directory.mkdir(parents=True, exist_ok=True)
    splits = {"train": write_split(directory, "train", make_rows(train, seed), shards)}
    if val:
        splits["val"] = write_split(directory, "val", make_rows(CAPTIONS, seed), 1)
    write_papers(directory, splits)
    return directory


def write_papers(
    directory: Path, splits: Mapping[str, tuple[ShardInfo, ...]], **changes: Any
) -> None:
    """Write vocabulary and manifest; `changes` are fields of the manifest."""
    vocabulary = make_vocabulary()
    vocabulary.save(directory / records.VOCABULARY_FILE)
    total = sum(shard.records for split in splits.values() for shard in split)
    manifest = Manifest(
        preprocessing=CHOICES,
        fingerprint=fingerprint(CHOICES),
        grid_shape=GRID_SHAPE,
        encoder={"name": "resnet50", "weights": "random:0", "digest": "0" * 64},
        vocabulary={"digest": vocabulary.digest, "size": len(vocabulary), "min_word_count": 1},
        max_words=20,
        splits=splits,
        ledger={"inputs": total, "written": total, "failed": {}, "skipped": 0},
        caption_ledger={},
    )
    text = replace(manifest, **changes).to_json()
    (directory / records.MANIFEST_FILE).write_text(text, encoding="utf-8")


def make_rows(captions: Sequence[Sequence[str]], seed: int) -> list[Record]:
    """A record with a random grid for each image's captions."""
    vocabulary, generator = make_vocabulary(), np.random.default_rng(seed)
    return [
        Record(
            image_id=100 + index,
            key=f"image-{index}.jpg",
            grid=generator.normal(size=GRID_SHAPE).astype(np.float16),
            captions=tuple(texts),
            tokens=tuple(tuple(vocabulary.encode(text)) for text in texts),
        )
        for index, texts in enumerate(captions)
    ]


def write_split(
    directory: Path, split: str, images: Sequence[Record], shards: int
) -> tuple[ShardInfo, ...]:
    """Write the shards of a split."""
    infos = []
    for index in range(shards):
        members = images[index::shards]
        data = b"".join(records.frame(records.serialise(record)) for record in members)
        file = records.shard_name(split, index, shards) + records.RECORD_SUFFIX
        (directory / file).write_bytes(data)
        infos.append(
            ShardInfo(
                file=file,
                records=len(members),
                captions=sum(len(record.captions) for record in members),
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
    return tuple(infos)
