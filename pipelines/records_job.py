"""The preprocessing job: annotations → specs → vocabulary → shards → manifest.

inputs     = annotation files, checked                      (launcher)
vocabulary = training specs | count words                   (a pipeline of its own)
shards     = specs | read, encode, write | publish manifest (pipelines/shards)
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from apache_beam.utils.shared import Shared

from model import records
from model.encoder import NAME, Encoder, EncoderSettings
from model.errors import InvalidInput
from model.preprocessing import fingerprint
from pipelines import storage
from pipelines.coco import Inputs, Source, read_inputs
from pipelines.features import Features, GridEncoder
from pipelines.jobs import JOB_FILE, WORK_DIR, Item, Job, assign, plan_job
from pipelines.publication import (
    ORPHANS,
    TRAIN_SPLIT,
    VOCABULARY,
    Publication,
    is_complete,
    shard_names,
)
from pipelines.runner import check_beam_args
from pipelines.shards import check_made, run_job, write_errors
from pipelines.word_counts import write_vocabulary

STAGE = "preprocess"
SHARD_SIZE = 512
_JOB = Job(
    STAGE,
    output="",
    output_file="{name}" + records.RECORD_SUFFIX,
    failures_file=WORK_DIR + "/failures/{name}.jsonl",
)


@dataclass(frozen=True)
class PreprocessSettings:
    """What to preprocess, and how.

    Attributes:
      sources: annotation files and image prefixes, one a split.
      output: RECORDS, on any Beam filesystem.
      karpathy: dataset_*.json whose splits replace those of `sources`.
      encoder: weights, image and grid size.
      shard_size: images of a shard, about.
      min_word_count: a word seen less often becomes <unk>.
      max_words: words beyond which a caption is cut.
    """

    sources: tuple[Source, ...]
    output: str
    karpathy: str | None = None
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    shard_size: int = SHARD_SIZE
    min_word_count: int = 5
    max_words: int = 20

    def __post_init__(self) -> None:
        for name in ("shard_size", "min_word_count", "max_words"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} {getattr(self, name)}, expected at least 1")
        counts = Counter(source.split for source in self.sources)
        if twice := [split for split, count in counts.items() if count > 1]:
            raise InvalidInput(f"split {twice[0]} is named twice, expected each once")
        for source in self.sources:
            storage.check_filesystem(source.annotations, "annotations")
            storage.check_filesystem(source.images, "images")
            if "://" not in source.images and not storage.exists(source.images):
                raise InvalidInput(
                    f"images {source.images}: no such directory, expected the photographs of "
                    f"{source.annotations}"
                )
        storage.check_filesystem(self.output, "output")


@dataclass(frozen=True)
class Outcome:
    """The manifest, and whether it was there before."""

    manifest: records.Manifest
    was_complete: bool


def preprocess(
    settings: PreprocessSettings,
    beam_args: Sequence[str],
    make_encoder: Callable[[], GridEncoder] | None = None,
) -> Outcome:
    """Make a records directory, or finish one that was begun.

    Args:
      settings: what and how.
      beam_args: Beam's own flags.
      make_encoder: picklable; model.encoder.Encoder of the settings when omitted.

    Raises:
      InvalidInput: unusable annotations or encoder, or another job's output directory.
      NotRun: a dry run.
    """
    check_beam_args(beam_args, settings.output, *(source.images for source in settings.sources))
    inputs = read_inputs(settings.sources, settings.karpathy, STAGE)
    if TRAIN_SPLIT not in inputs.splits:
        raise InvalidInput(
            f"splits {sorted(inputs.splits)}, expected one named {TRAIN_SPLIT}: the vocabulary "
            f"comes from it; pass --split {TRAIN_SPLIT}=ANNOTATIONS.json:IMAGES"
        )
    make_encoder = make_encoder or partial(Encoder, settings.encoder)
    # Loaded here first: weights that cannot be had end the job before an image is read, and
    # workers in this process take the same encoder.
    shared = Shared()
    encoder = shared.acquire(make_encoder)
    fields = _manifest_fields(settings, encoder)
    shards = {
        split: assign(items, -(-len(items) // settings.shard_size))
        for split, items in sorted(inputs.splits.items())
    }
    with write_errors(settings.output):
        job = _plan(settings, inputs, shards, fields)
        if is_complete(job):
            return Outcome(_read_manifest(job), was_complete=True)
    _make_vocabulary(job, len(shards[TRAIN_SPLIT]), settings.min_word_count, beam_args)
    work = Features(
        make_encoder,
        shared,
        settings.encoder.image_size,
        job.path(VOCABULARY),
        settings.max_words,
    )
    publication = Publication(
        job=replace(job, specs=()),
        splits={split: len(parts) for split, parts in shards.items()},
        images=inputs.images,
        skipped=inputs.uncaptioned + inputs.unassigned,
        captions=inputs.captions,
        skipped_captions=inputs.unassigned_captions,
        orphans=len(inputs.orphans),
        manifest=fields,
        min_word_count=settings.min_word_count,
    )
    run_job(job, work, publication, beam_args)
    check_made(job.path(records.MANIFEST_FILE))
    return Outcome(_read_manifest(job), was_complete=False)


def _manifest_fields(settings: PreprocessSettings, encoder: GridEncoder) -> dict[str, Any]:
    """What the manifest says that no shard decides."""
    wanted = settings.encoder
    return {
        "fingerprint": fingerprint(wanted.image_size, wanted.grid_size),
        "image_size": wanted.image_size,
        "grid_size": wanted.grid_size,
        "grid_shape": encoder.grid_shape,
        "encoder": {"name": NAME, "weights": wanted.weights, "digest": encoder.digest},
        "max_words": settings.max_words,
    }


def _plan(
    settings: PreprocessSettings,
    inputs: Inputs,
    shards: Mapping[str, Sequence[Sequence[Item]]],
    fields: Mapping[str, Any],
) -> Job:
    """The job with its specs, new or the one to be resumed."""
    job = replace(_JOB, output=settings.output)
    manifest, marker = job.path(records.MANIFEST_FILE), job.path(JOB_FILE)
    if storage.exists(manifest) and not storage.exists(marker):
        raise InvalidInput(
            f"{settings.output} holds finished records without the {WORK_DIR} of their job, so "
            "that they cannot be checked; take another --output, or remove them"
        )
    orphans = b"".join(map(storage.json_line, inputs.orphans))
    job = plan_job(
        job,
        {
            name: items
            for split, parts in shards.items()
            for name, items in zip(shard_names(split, len(parts)), parts, strict=True)
        },
        {
            "encoder_weights": settings.encoder.weights,
            "encoder_digest": fields["encoder"]["digest"],
            "image_size": settings.encoder.image_size,
            "grid_size": settings.encoder.grid_size,
            "max_words": settings.max_words,
            "min_word_count": settings.min_word_count,
            "shard_size": settings.shard_size,
            "images": {split: sum(map(len, parts)) for split, parts in shards.items()},
            "images skipped": inputs.uncaptioned + inputs.unassigned,
            "captions": inputs.captions,
            "captions without image": hashlib.sha256(orphans).hexdigest(),
            "fingerprint of preprocessing": fields["fingerprint"],
        },
    )
    storage.write_bytes(job.path(ORPHANS), orphans)
    return job


def _make_vocabulary(
    job: Job, training_shards: int, min_word_count: int, beam_args: Sequence[str]
) -> None:
    path = job.path(VOCABULARY)
    if not storage.exists(path):
        training = set(shard_names(TRAIN_SPLIT, training_shards))
        specs = [spec.path for spec in job.specs if spec.name in training]
        write_vocabulary(specs, path, min_word_count, beam_args)


def _read_manifest(job: Job) -> records.Manifest:
    path = job.path(records.MANIFEST_FILE)
    return records.Manifest.from_json(storage.read_bytes(path).decode(), path)
