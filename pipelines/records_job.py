"""The preprocessing job: annotations → specs → vocabulary → shards → manifest.

inputs     = annotation files, checked                      (launcher)
vocabulary = training specs | count words                   (a pipeline of its own)
shards     = specs | read, encode, write | publish manifest (pipelines/shards)
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from apache_beam.utils.shared import Shared

from model import records
from model.encoder import Encoder, EncoderSettings
from model.errors import InvalidInput
from model.vocabulary import Vocabulary
from pipelines import storage
from pipelines.coco import Inputs, Selection, read_inputs
from pipelines.encoding import GridEncoder
from pipelines.features import FLIP, READ_THREADS, Features
from pipelines.job_plan import assign, plan_job
from pipelines.jobs import JOB_FILE, WORK_DIR, Item, Job
from pipelines.plan import (
    ORPHANS,
    STAGE,
    TRAIN_SPLIT,
    VOCABULARY,
    Plan,
    current_fingerprint,
    unplanned_job,
)
from pipelines.publication import Publication, is_complete
from pipelines.records_files import read_manifest
from pipelines.runner import check_beam_args
from pipelines.shards import check_made, hold_output, run_job
from pipelines.source_flags import Source
from pipelines.tar_images import is_tar
from pipelines.word_counts import write_vocabulary

SHARD_SIZE = 1_024
# The other settings decide bytes, so they are in the plan.
_NO_CHOICES = ("sources", "output", "selection", "encoder", "read_threads")


@dataclass(frozen=True)
class PreprocessSettings:
    """What to preprocess, and how.

    Attributes:
      sources: annotation files and where their images are; those of one split join.
      output: RECORDS, on any Beam filesystem.
      selection: which of the images go where.
      encoder: weights, image and grid size.
      shard_size: images of a shard, about.
      min_word_count: a word seen less often becomes <unk>.
      max_words: words beyond which a caption is cut.
      compression: how records keep their grids: one of model.records.COMPRESSIONS.
      flip_copies: add the mirror image of every training image as a record of its own.
      content: what records hold of their images: one of model.records.CONTENTS.
      read_threads: images that a worker reads and decodes at once.
      vocabulary: used instead of counting words; `min_word_count` then means nothing.
    """

    sources: tuple[Source, ...]
    output: str
    selection: Selection = field(default_factory=Selection)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    shard_size: int = SHARD_SIZE
    min_word_count: int = 5
    max_words: int = 20
    compression: str = records.NO_COMPRESSION
    flip_copies: bool = False
    content: str = records.GRIDS
    read_threads: int = READ_THREADS
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        if self.compression not in records.COMPRESSIONS:
            raise InvalidInput(
                f"compression {self.compression!r}, expected one of "
                f"{', '.join(records.COMPRESSIONS)}"
            )
        self._check_content()
        for name in ("shard_size", "min_word_count", "max_words", "read_threads"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} {getattr(self, name)}, expected at least 1")
        for source in self.sources:
            storage.check_filesystem(source.annotations, "annotations")
            storage.check_filesystem(source.images, "images")
            elsewhere = is_tar(source.images) or "://" in source.images
            if not elsewhere and not storage.exists(source.images):
                raise InvalidInput(
                    f"images {source.images}: no such directory, expected the photographs of "
                    f"{source.annotations}"
                )
            if not elsewhere and Path(source.images).is_file():
                raise InvalidInput(
                    f"images {source.images}: a file, expected a directory or .tar files with the "
                    f"photographs of {source.annotations}"
                )
        storage.check_filesystem(self.output, "output")

    def _check_content(self) -> None:
        if self.content not in records.CONTENTS:
            raise InvalidInput(
                f"content {self.content!r}, expected one of {', '.join(records.CONTENTS)}"
            )
        if self.content == records.GRIDS:
            return
        if self.compression != records.NO_COMPRESSION:
            raise InvalidInput(
                f"compression {self.compression} with content {self.content}, expected "
                f"{records.NO_COMPRESSION}: JPEG and PNG are compressed already"
            )
        if self.flip_copies:
            raise InvalidInput(
                f"flip_copies with content {self.content}, expected content {records.GRIDS}; "
                "leave out --flip_copies"
            )


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
    inputs = read_inputs(settings.sources, settings.selection, STAGE)
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
    shards = {
        split: assign(_marked(split, items, settings), -(-len(items) // settings.shard_size))
        for split, items in sorted(inputs.splits.items())
    }
    orphans = b"".join(map(storage.json_line, inputs.orphans))
    plan = _make_plan(settings, inputs, shards, encoder, orphans)
    with hold_output(unplanned_job(settings.output), beam_args) as job:
        job = _plan_job(job, plan, shards)
        # From here on the specs hold the items; a kilobyte or two each need not stay for hours.
        inputs = replace(inputs, splits={})
        shards.clear()
        storage.write_bytes(job.path(ORPHANS), orphans)
        manifest = job.path(records.MANIFEST_FILE)
        if is_complete(job):
            return Outcome(read_manifest(manifest), was_complete=True)
        if settings.vocabulary is not None:
            storage.write_bytes(job.path(VOCABULARY), settings.vocabulary.to_json().encode())
        carry_out(job, plan, make_encoder, shared, beam_args, settings.read_threads)
        return Outcome(read_manifest(manifest), was_complete=False)


def carry_out(
    job: Job,
    plan: Plan,
    make_encoder: Callable[[], GridEncoder],
    shared: Shared,
    beam_args: Sequence[str],
    read_threads: int = READ_THREADS,
) -> None:
    """Make what is missing of a planned job: vocabulary, shards, then the published files.

    Args:
      job: with its specs.
      plan: of the job.
      make_encoder: picklable; called only where a shard is missing.
      shared: may hold an encoder of `make_encoder` already.
      beam_args: Beam's own flags.
      read_threads: images that a worker reads and decodes at once.
    """
    vocabulary = job.path(VOCABULARY)
    if not storage.exists(vocabulary):
        if plan.min_word_count is None:
            raise InvalidInput(
                f"{vocabulary} is lost, which was given with --vocabulary; repeat the command of "
                "the first run"
            )
        training = set(plan.shard_names(TRAIN_SPLIT))
        specs = [spec.path for spec in job.specs if spec.name in training]
        write_vocabulary(specs, vocabulary, plan.min_word_count, beam_args, job.lease)
    settings = plan.feature_settings(read_threads)
    work = Features(make_encoder, shared, plan.encoder_digest, vocabulary, settings)
    run_job(job, work, Publication(replace(job, specs=()), plan), beam_args)
    check_made(job.path(records.MANIFEST_FILE))


def _marked(split: str, items: Sequence[Item], settings: PreprocessSettings) -> Sequence[Item]:
    """Items of the training split say that they want a mirror image, where it is asked for."""
    if not settings.flip_copies or split != TRAIN_SPLIT:
        return items
    return [{**item, FLIP: True} for item in items]


def _make_plan(
    settings: PreprocessSettings,
    inputs: Inputs,
    shards: Mapping[str, Sequence[Sequence[Item]]],
    encoder: GridEncoder,
    orphans: bytes,
) -> Plan:
    return Plan(
        encoder=settings.encoder,
        encoder_digest=encoder.digest,
        grid_shape=encoder.grid_shape,
        fingerprint=current_fingerprint(settings.encoder),
        choices=_choices(settings),
        shards={split: len(parts) for split, parts in shards.items()},
        images=inputs.images,
        skipped_images=inputs.skipped,
        captions=inputs.captions,
        skipped_captions=inputs.skipped_captions,
        orphans=len(inputs.orphans),
        orphans_digest=hashlib.sha256(orphans).hexdigest(),
    )


def _choices(settings: PreprocessSettings) -> dict[str, Any]:
    """The settings that decide bytes, as JSON."""
    values = {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if each.name not in _NO_CHOICES
    }
    if settings.content == records.GRIDS:
        # As jobs began before there was another content.
        del values["content"]
    given = values.pop("vocabulary")
    # First, so that a resume with another vocabulary hears of that.
    if given is None:
        return {"vocabulary": None, **values}
    return {"vocabulary": given.digest, **values, "min_word_count": None}


def _plan_job(job: Job, plan: Plan, shards: Mapping[str, Sequence[Sequence[Item]]]) -> Job:
    """The job with its specs, new or the one to be resumed."""
    manifest, marker = job.path(records.MANIFEST_FILE), job.path(JOB_FILE)
    if storage.exists(manifest) and not storage.exists(marker):
        raise InvalidInput(
            f"{job.output} holds finished records without the {WORK_DIR} of their job, so "
            "that they cannot be checked; take another --output, or remove them"
        )
    parts = {
        name: items
        for split in shards
        for name, items in zip(plan.shard_names(split), shards[split], strict=True)
    }
    return plan_job(job, parts, plan.to_settings())
