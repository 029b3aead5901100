"""Records with captions as long as COCO's, of random words over random grids."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from model import records
from model.encoder import EncoderSettings
from model.preprocessing import fingerprint
from model.records import Manifest, Record, ShardInfo
from model.vocabulary import Vocabulary

GRID_SHAPE = (49, 2048)
VOCABULARY_SIZE = 10_000
CAPTIONS_AN_IMAGE = 5
MAX_WORDS = 20
# Chen et al. 2015, COCO's training captions: about 10.5 words, most between 8 and 14.
_MEAN_WORDS, _DEVIATION = 10.5, 2.4
_SPECIAL = 4


def write_records(directory: Path, images: int) -> Path:
    """A RECORDS directory with one training shard.

    Args:
      directory: to make.
      images: of the split, 200 KB each.
    """
    directory.mkdir(parents=True)
    words = Counter({f"w{number}": 1 for number in range(VOCABULARY_SIZE - _SPECIAL)})
    vocabulary = Vocabulary.build(words, 1)
    if len(vocabulary) != VOCABULARY_SIZE:
        raise ValueError(f"{len(vocabulary)} words, expected {VOCABULARY_SIZE}")
    vocabulary.save(directory / records.VOCABULARY_FILE)
    shard = _write_shard(directory, images)
    made_with = EncoderSettings().choices
    manifest = Manifest(
        preprocessing=made_with,
        fingerprint=fingerprint(made_with),
        grid_shape=GRID_SHAPE,
        encoder={"name": "resnet50", "weights": "random:0", "digest": "0" * 64},
        vocabulary={
            "digest": vocabulary.digest,
            "size": len(vocabulary),
            "min_word_count": 1,
        },
        max_words=MAX_WORDS,
        splits={"train": (shard,)},
        ledger={"inputs": images, "written": images, "failed": {}, "skipped": 0},
        caption_ledger={},
    )
    (directory / records.MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return directory


def _write_shard(directory: Path, images: int) -> ShardInfo:
    generator, digest = np.random.default_rng(0), hashlib.sha256()
    file = records.shard_name("train", 0, 1) + records.RECORD_SUFFIX
    size = 0
    with (directory / file).open("wb") as shard:
        for number in range(images):
            data = records.frame(records.serialise(_image(number, generator)))
            shard.write(data)
            digest.update(data)
            size += len(data)
    return ShardInfo(
        file=file,
        records=images,
        captions=images * CAPTIONS_AN_IMAGE,
        bytes=size,
        sha256=digest.hexdigest(),
    )


def _image(number: int, generator: np.random.Generator) -> Record:
    lengths = generator.normal(_MEAN_WORDS, _DEVIATION, CAPTIONS_AN_IMAGE).round()
    tokens = [
        generator.integers(_SPECIAL, VOCABULARY_SIZE, int(length)).tolist()
        for length in np.clip(lengths, 4, MAX_WORDS)
    ]
    return Record(
        image_id=number,
        key=f"{number}.jpg",
        grid=np.abs(generator.normal(size=GRID_SHAPE)).astype(np.float16),
        captions=tuple("drawn" for _ in tokens),
        tokens=tuple(map(tuple, tokens)),
    )
