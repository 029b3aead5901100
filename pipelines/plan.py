"""The plan of a preprocessing job: all that decides its output beside the items of its shards.

RECORDS/_work/job.json keeps it, so that a shard can be made again when flags and annotation
files are long forgotten.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from model import records
from model.encoder import EncoderSettings
from model.errors import InvalidInput
from model.preprocessing import fingerprint
from model.resnet50 import NAME
from pipelines import storage
from pipelines.features import FeatureSettings
from pipelines.jobs import WORK_DIR, Job, ShardSpec

STAGE = "preprocess"
# The vocabulary comes from it, and training reads it.
TRAIN_SPLIT = "train"
# Made before the shards, below the work directory.
VOCABULARY = f"{WORK_DIR}/{records.VOCABULARY_FILE}"
ORPHANS = f"{WORK_DIR}/annotation_failures.jsonl"
_JOB = Job(
    STAGE,
    output="",
    output_file="{name}" + records.RECORD_SUFFIX,
    failures_file=WORK_DIR + "/failures/{name}.jsonl",
    published=records.MANIFEST_FILE,
)
# In job.json the encoder's settings stand beside the others, these under their flags' names.
_FLAGS = {name: f"encoder_{name}" for name in ("weights", "runtime", "precision")}


@dataclass(frozen=True)
class Plan:
    """What a records directory is made from and with.

    Attributes:
      encoder: which encoder.
      encoder_digest: of its weights.
      grid_shape: (P, F).
      fingerprint: of preprocessing (model/preprocessing).
      choices: the other settings that decide bytes, by their name in PreprocessSettings.
      shards: their number by split.
      images: of all annotation files.
      skipped_images: of these, those left out by intention.
      captions: annotations in all.
      skipped_captions: annotations of skipped images.
      orphans: annotations without an image.
      orphans_digest: SHA-256 (hex) of their failure rows.
    """

    encoder: EncoderSettings
    encoder_digest: str
    grid_shape: tuple[int, int]
    fingerprint: str
    choices: Mapping[str, Any]
    shards: Mapping[str, int]
    images: int
    skipped_images: int
    captions: int
    skipped_captions: int
    orphans: int
    orphans_digest: str

    def to_settings(self) -> dict[str, Any]:
        """Flat, for job.json, where what differs is named by its key."""
        values = asdict(self)
        encoder = values.pop("encoder")
        choices = values.pop("choices")
        named = {_FLAGS.get(name, name): value for name, value in encoder.items()}
        return {**named, **choices, **values}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Plan":
        """Read `to_settings`; raises LookupError, TypeError or InvalidInput for another table."""
        left = dict(settings)
        names = [field.name for field in fields(EncoderSettings)]
        encoder = EncoderSettings(**{name: left.pop(_FLAGS.get(name, name)) for name in names})
        own = {field.name for field in fields(cls)} - {"encoder", "choices"}
        values = {name: left.pop(name) for name in own}
        values["grid_shape"] = tuple(values["grid_shape"])
        plan = cls(encoder=encoder, choices=left, **values)
        least = 1 if plan.min_word_count is None else plan.min_word_count
        if min(plan.max_words, least) < 1:
            raise ValueError("max_words and min_word_count, expected at least 1")
        return plan

    @property
    def max_words(self) -> int:
        """Words beyond which a caption is cut."""
        return int(self.choices["max_words"])

    @property
    def min_word_count(self) -> int | None:
        """A word seen less often in train becomes <unk>; None of a vocabulary that was given."""
        count = self.choices["min_word_count"]
        return None if count is None else int(count)

    @property
    def vocabulary(self) -> str | None:
        """Digest of a vocabulary that was given; None of one that is counted."""
        digest = self.choices["vocabulary"]
        return None if digest is None else str(digest)

    @property
    def compression(self) -> str:
        """How records keep their grids."""
        return str(self.choices["compression"])

    @property
    def content(self) -> str:
        """What records hold of their images; plans of grids do not say so."""
        return str(self.choices.get("content", records.GRIDS))

    @property
    def flip_copies(self) -> bool:
        """Whether every training image has its mirror image beside it."""
        return bool(self.choices["flip_copies"])

    def feature_settings(self, read_threads: int) -> FeatureSettings:
        """What a shard is made with."""
        return FeatureSettings(
            self.encoder.image_size,
            self.encoder.aspect,
            self.compression,
            self.max_words,
            read_threads,
            self.content,
        )

    def manifest_fields(self) -> dict[str, Any]:
        """What the manifest says that no shard decides."""
        return {
            "preprocessing": self.encoder.choices,
            "fingerprint": self.fingerprint,
            "grid_shape": self.grid_shape,
            "encoder": {
                "name": NAME,
                "weights": self.encoder.weights,
                "digest": self.encoder_digest,
                "runtime": self.encoder.runtime,
                "precision": self.encoder.precision,
            },
            "max_words": self.max_words,
            "compression": self.compression,
            "content": self.content,
        }

    def shard_names(self, split: str) -> list[str]:
        """The shards of a split, in order."""
        count = self.shards[split]
        return [records.shard_name(split, index, count) for index in range(count)]


def current_fingerprint(encoder: EncoderSettings) -> str:
    """What this version of captionbeam does between image bytes and stored grid."""
    return fingerprint(encoder.choices)


def unplanned_job(output: str) -> Job:
    """The job of an output directory, without its specs."""
    return replace(_JOB, output=output)


def find_plan(output: str) -> tuple[Job, Plan] | None:
    """The job and plan of a records directory, or None where there is none.

    The specs carry no number of items: that stands in their files, which are not read here.

    Raises:
      InvalidInput: a job.json that is none of this version.
    """
    job = unplanned_job(output)
    path = job.path(WORK_DIR, "job.json")
    try:
        content = storage.read_json(path)
        if content is None:
            return None
        plan = Plan.from_settings(content["settings"])
        specs = tuple(
            ShardSpec(name, job.path(WORK_DIR, "specs", f"{name}.jsonl"), 0, str(digest))
            for name, digest in content["shards"].items()
        )
        names = [name for split in plan.shards for name in plan.shard_names(split)]
        if sorted(names) != sorted(spec.name for spec in specs):
            raise ValueError(f"shards of {sum(plan.shards.values())} and of {len(specs)}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, InvalidInput) as error:
        raise InvalidInput(
            f"{path}: not the plan of a job of this version ({error}); make the records again in "
            "another --output"
        ) from error
    return replace(job, specs=specs), plan
