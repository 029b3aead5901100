"""Prints what a records directory holds, and draws some of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from model import records
from model.errors import InvalidInput, ItemFailure
from model.photographs import photograph
from model.places import places
from model.progress import Progress
from model.record_check import DamagedRecord
from model.record_figures import Picture, draw_records
from model.vocabulary import SPECIALS, Vocabulary
from pipelines import storage
from pipelines.balance import equation
from pipelines.image_files import read_item
from pipelines.jobs import WORK_DIR, Item, Job
from pipelines.plan import TRAIN_SPLIT, unplanned_job
from pipelines.records_files import read_manifest, read_vocabulary
from pipelines.shard_check import read_records
from pipelines.wording import short

_FREQUENT_WORDS = 12
# Shards are filled by the hash of the key, so that the first ones are a fair sample of them all.
_MEASURED_IMAGES = 10_000
# More make a picture that no viewer opens.
_MOST_DRAWN = 60
# Larger than any panel, small enough to keep 60 of them.
_PHOTO_PIXELS = 1000
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


@dataclass(frozen=True)
class RecordsView:
    """A finished records directory, one of its splits in view.

    Attributes:
      job: whose output it is; without specs.
      manifest: of the directory.
      vocabulary: of the directory.
      split: in view.
    """

    job: Job
    manifest: records.Manifest
    vocabulary: Vocabulary
    split: str

    def read(self) -> Iterator[tuple[records.ShardInfo, records.Record]]:
        """The records of the split, in order; raises InvalidInput for one that is damaged."""
        for info in self.manifest.shards(self.split):
            try:
                path, shape = self.job.path(info.file), self.manifest.grid_shape
                kept = self.manifest.compression, self.manifest.content
                for record in read_records(path, shape, *kept):
                    yield info, record
            except (DamagedRecord, OSError) as error:
                raise InvalidInput(
                    f"{self.job.path(info.file)}: {error}; see what else is wrong with "
                    f"`captionbeam preprocess --check {self.job.output}`"
                ) from error


def open_view(output: str, split: str | None = None) -> RecordsView:
    """Read the manifest and the vocabulary of a records directory.

    Args:
      output: RECORDS, on any Beam filesystem.
      split: to be in view; train, or the first where there is no train, when omitted.

    Raises:
      InvalidInput: no finished records, or no such split.
    """
    storage.check_filesystem(output, "records")
    job = unplanned_job(output)
    try:
        manifest = read_manifest(job.path(records.MANIFEST_FILE))
        vocabulary = read_vocabulary(job.path(records.VOCABULARY_FILE))
    except OSError as error:
        raise InvalidInput(
            f"{output}: cannot be read ({error}), expected a finished records directory; see "
            f"`captionbeam preprocess --check {output}`"
        ) from error
    if split is None:
        split = TRAIN_SPLIT if TRAIN_SPLIT in manifest.splits else min(manifest.splits)
    manifest.shards(split)
    return RecordsView(job, manifest, vocabulary, split)


def print_summary(view: RecordsView) -> None:
    """Print all but the records themselves."""
    manifest = view.manifest
    print(f"{'split':12} {'images':>9} {'captions':>9} {'shards':>7} {'bytes':>15}")
    for split, shards in manifest.splits.items():
        images, captions, size = (
            sum(getattr(shard, unit) for shard in shards)
            for unit in ("records", "captions", "bytes")
        )
        print(f"{split:12} {images:9} {captions:9} {len(shards):7} {size:15}")
    for unit, ledger in (("images", manifest.ledger), ("captions", manifest.caption_ledger)):
        parts = (ledger["written"], ledger["failed"], ledger["skipped"])
        print(f"{unit}: {equation(ledger['inputs'], 'written', *parts)}")
    print(_content(manifest))
    if manifest.flip_copies is not None:
        print(f"mirror images: {manifest.flip_copies} of the records of {TRAIN_SPLIT}")
    encoder = {**manifest.encoder, "digest": short(manifest.encoder["digest"])}
    name = encoder.pop("name")
    print(f"encoder: {', '.join([name, *(f'{key} {encoder[key]}' for key in sorted(encoder))])}")
    print(f"preprocessing: fingerprint {short(manifest.fingerprint)}")
    least = manifest.vocabulary["min_word_count"]
    seen = "as given with --vocabulary" if least is None else f"seen at least {least} times"
    frequent = [word for word in view.vocabulary.words if word not in SPECIALS]
    print(
        f"vocabulary: {len(view.vocabulary)} words, {len(SPECIALS)} of them special, the others "
        f"{seen}; most often "
        f"{', '.join(frequent[:_FREQUENT_WORDS])}"
    )
    print(f"words a caption: {_lengths(view)}")


def print_records(view: RecordsView, count: int, picture: str) -> None:
    """Print the first records of the split and draw them into a file.

    Raises:
      InvalidInput: the picture cannot be written.
    """
    if Path(picture).suffix.lower() not in _PICTURE_SUFFIXES:
        raise InvalidInput(f"--picture {picture}, expected a {', '.join(_PICTURE_SUFFIXES)} file")
    pictures: list[Picture] = []
    for number, (info, record) in enumerate(islice(view.read(), count), 1):
        print(f"\n{view.split} {number}: {_describe(record)}")
        for caption, tokens in zip(record.captions, record.tokens, strict=True):
            words = " ".join(view.vocabulary.words[token] for token in tokens)
            print(f"  {storage.json_line(caption).decode().strip()}")
            print(f"    {' '.join(map(str, tokens))} = {words}")
        if number <= _MOST_DRAWN:
            pictures.append(_picture(view, info, record))
    try:
        draw_records(pictures, picture)
    except OSError as error:
        raise InvalidInput(f"--picture {picture}: cannot be written ({error})") from error
    print(f"\npicture of {len(pictures)} records: {picture}")


def _content(manifest: records.Manifest) -> str:
    cells, features = manifest.grid_shape
    grids = f"{cells} cells of {features} features"
    side = f"{manifest.image_size}×{manifest.image_size} pixels, aspect ratio {manifest.aspect}"
    if manifest.content == records.IMAGES:
        return f"images: JPEG and PNG, for an encoder that sees {side}, and grids of {grids}"
    return (
        f"grids: {grids} in {np.dtype(records.GRID_DTYPE).name}, of images of {side}; "
        f"compression {manifest.compression}"
    )


def _lengths(view: RecordsView) -> str:
    total = view.manifest.num_images(view.split)
    measured = min(total, _MEASURED_IMAGES)
    progress = Progress("records", measured, "images")
    found: list[int] = []
    for _, record in islice(view.read(), measured):
        found += map(len, record.tokens)
        progress.advance()
    progress.close()
    lengths = np.array(found)
    of = f"first {measured} of {total}" if measured < total else str(total)
    cut = view.manifest.caption_ledger["cut"]
    distribution = (
        f"mean {lengths.mean():.1f}, half have up to {int(np.median(lengths))}, 95 % up to "
        f"{int(np.percentile(lengths, 95))}, longest {lengths.max()}"
        if len(lengths)
        else "none"
    )
    return (
        f"{distribution} ({view.split}, {of} images); {cut} of all splits cut to "
        f"{view.manifest.max_words}"
    )


def _describe(record: records.Record) -> str:
    if record.grid is None:
        return f"{record.key}, id {record.image_id}, image of {len(record.image or b'')} bytes"
    grid = record.grid.astype(np.float32)
    cells, features = grid.shape
    return (
        f"{record.key}, id {record.image_id}, grid {cells}×{features} from {grid.min():.4g} to "
        f"{grid.max():.4g}, mean {grid.mean():.4g}, {np.mean(grid == 0):.1%} zeros"
    )


def _picture(view: RecordsView, info: records.ShardInfo, record: records.Record) -> Picture:
    photo, note = _found_photo(view.job, info, record)
    looked_at = None
    if record.grid is not None:
        looked_at = places((1, 1) if photo is None else photo.shape[:2], view.manifest)
    title = f"{record.key}  (id {record.image_id})"
    return Picture(title, record.captions, record.grid, looked_at, photo, note)


def _found_photo(
    job: Job, info: records.ShardInfo, record: records.Record
) -> tuple[np.ndarray | None, str]:
    """The photograph of a record, or None and why; one of images brings its own."""
    if record.image is not None:
        return photograph(record.image, _PHOTO_PIXELS), ""
    name = info.file.removesuffix(records.RECORD_SUFFIX)
    items = _items(job.path(WORK_DIR, "specs", f"{name}.jsonl"))
    mirrored = record.key.endswith(records.FLIP_MARK)
    item = items.get(record.key.removesuffix(records.FLIP_MARK))
    if item is None:
        return None, f"no photograph of this key in {WORK_DIR}/specs"
    try:
        return photograph(read_item(item), _PHOTO_PIXELS, mirrored=mirrored), ""
    except ItemFailure as failure:
        return None, f"photograph: {failure.message}"


@lru_cache(maxsize=1)
def _items(spec: str) -> Mapping[str, Item]:
    """What a shard is made from by key, as far as the job is still there."""
    try:
        return {item["key"]: item for item in storage.read_json_lines(spec)}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
