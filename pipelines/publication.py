"""What ends preprocessing: the ledgers are checked, the manifest is written last."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model import records
from model.errors import CheckFailed, Reason
from model.vocabulary import Vocabulary
from pipelines import storage
from pipelines.balance import top_reasons
from pipelines.features import CAPTIONS, CUT_CAPTIONS, LOST_CAPTIONS
from pipelines.jobs import WORK_DIR, Job, ShardResult, failed_by_reason

# The vocabulary comes from it, and training reads it.
TRAIN_SPLIT = "train"
# Made before the shards, below the work directory.
VOCABULARY = f"{WORK_DIR}/{records.VOCABULARY_FILE}"
ORPHANS = f"{WORK_DIR}/annotation_failures.jsonl"


def shard_names(split: str, count: int) -> list[str]:
    """The shards of a split, in order."""
    return [records.shard_name(split, index, count) for index in range(count)]


def is_complete(job: Job) -> bool:
    """Whether every file that the manifest vouches for is there; else the manifest is removed.

    Removed before a shard is made again: a run that is killed meanwhile leaves no directory
    that looks finished.
    """
    published = (records.MANIFEST_FILE, records.VOCABULARY_FILE, records.FAILURES_FILE)
    if all(storage.exists(job.path(file)) for file in published) and all(
        map(job.result, job.specs)
    ):
        return True
    storage.delete_matching(job.path(records.MANIFEST_FILE))
    return False


@dataclass(frozen=True)
class Publication:
    """Shard results → vocabulary.json, failures.jsonl and, last, manifest.json.

    Attributes:
      job: without specs.
      splits: number of shards by split.
      images: images of all annotation files.
      skipped: of these, those left out by intention.
      captions: annotations in all.
      skipped_captions: annotations of skipped images.
      orphans: annotations without an image.
      manifest: the manifest's fields that no shard decides.
      min_word_count: as in the settings; None of a vocabulary that was not counted.
    """

    job: Job
    splits: Mapping[str, int]
    images: int
    skipped: int
    captions: int
    skipped_captions: int
    orphans: int
    manifest: Mapping[str, Any]
    min_word_count: int | None

    def __call__(self, results: list[ShardResult]) -> None:
        """Check that the ledgers balance, then write.

        Raises:
          CheckFailed: an image or caption is unaccounted for, or there is nothing to train on.
        """
        manifest = self._manifest(results)
        _check_balance("image", manifest.ledger)
        _check_balance("caption", manifest.caption_ledger)
        failures = [ORPHANS, *(result.failures.file for result in results)]
        storage.concatenate(map(self.job.path, failures), self.job.path(records.FAILURES_FILE))
        self._check_training(results)
        vocabulary = self.job.path(VOCABULARY)
        storage.concatenate([vocabulary], self.job.path(records.VOCABULARY_FILE))
        storage.write_bytes(self.job.path(records.MANIFEST_FILE), manifest.to_json().encode())

    def _check_training(self, results: Sequence[ShardResult]) -> None:
        names = shard_names(TRAIN_SPLIT, self.splits[TRAIN_SPLIT])
        training = [result for result in results if result.name in names]
        if not any(result.written for result in training):
            failed = failed_by_reason(training)
            raise CheckFailed(
                f"split {TRAIN_SPLIT}: 0 of {sum(failed.values())} images written, expected at "
                f"least one: {top_reasons(failed)}; see {self.job.path(records.FAILURES_FILE)}, "
                "mend what it names and take another --output"
            )

    def _manifest(self, results: Sequence[ShardResult]) -> records.Manifest:
        by_name = {result.name: result for result in results}
        path = self.job.path(VOCABULARY)
        vocabulary = Vocabulary.from_json(storage.read_bytes(path).decode(), path)
        return records.Manifest(
            **self.manifest,
            vocabulary={
                "digest": vocabulary.digest,
                "size": len(vocabulary),
                "min_word_count": self.min_word_count,
            },
            splits={
                split: tuple(_shard_info(by_name[name]) for name in shard_names(split, count))
                for split, count in self.splits.items()
            },
            ledger={
                "inputs": self.images,
                "written": sum(result.written for result in results),
                "failed": failed_by_reason(results),
                "skipped": self.skipped,
            },
            caption_ledger=self._caption_ledger(results),
        )

    def _caption_ledger(self, results: Sequence[ShardResult]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for result in results:
            counts.update(result.counts)
            failed.update(result.parts_failed)
        for name, count in counts.items():
            if name.startswith(LOST_CAPTIONS):
                failed[name.removeprefix(LOST_CAPTIONS)] += count
        failed[Reason.UNKNOWN_IMAGE] += self.orphans
        return {
            "inputs": self.captions,
            "written": counts[CAPTIONS],
            "failed": {str(reason): count for reason, count in sorted(failed.items()) if count},
            "skipped": self.skipped_captions,
            "cut": counts[CUT_CAPTIONS],
        }


def _shard_info(result: ShardResult) -> records.ShardInfo:
    output = result.output
    captions = result.counts.get(CAPTIONS, 0)
    return records.ShardInfo(output.file, result.written, captions, output.bytes, output.sha256)


def _check_balance(unit: str, ledger: Mapping[str, Any]) -> None:
    accounted = ledger["written"] + sum(ledger["failed"].values()) + ledger["skipped"]
    if accounted != ledger["inputs"]:
        raise CheckFailed(
            f"the {unit} ledger does not balance: {accounted} accounted for, "
            f"{ledger['inputs']} in the annotation files; nothing was published, report this"
        )
