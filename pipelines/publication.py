"""What ends preprocessing: the ledgers are checked, the manifest is written last."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model import records
from model.errors import CheckFailed, Reason
from pipelines import storage
from pipelines.balance import top_reasons
from pipelines.features import CAPTIONS, CUT_CAPTIONS, FLIP_CAPTIONS, FLIPS, LOST_CAPTIONS
from pipelines.jobs import Job, ShardResult, failed_by_reason
from pipelines.plan import ORPHANS, TRAIN_SPLIT, VOCABULARY, Plan
from pipelines.records_files import read_vocabulary


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
      plan: what the shards were made from and with.
    """

    job: Job
    plan: Plan

    def __call__(self, results: list[ShardResult]) -> None:
        """Check that the ledgers balance, then write.

        Raises:
          CheckFailed: an image or caption is unaccounted for, or there is nothing to train on.
        """
        manifest = self.manifest(results)
        _check_balance("image", manifest.ledger)
        _check_balance("caption", manifest.caption_ledger)
        failures = [ORPHANS, *(result.failures.file for result in results)]
        storage.concatenate(map(self.job.path, failures), self.job.path(records.FAILURES_FILE))
        self._check_training(results)
        vocabulary = self.job.path(VOCABULARY)
        storage.concatenate([vocabulary], self.job.path(records.VOCABULARY_FILE))
        storage.write_bytes(self.job.path(records.MANIFEST_FILE), manifest.to_json().encode())

    def _check_training(self, results: Sequence[ShardResult]) -> None:
        names = set(self.plan.shard_names(TRAIN_SPLIT))
        training = [result for result in results if result.name in names]
        if not any(result.written for result in training):
            failed = failed_by_reason(training)
            raise CheckFailed(
                f"split {TRAIN_SPLIT}: 0 of {sum(failed.values())} images written, expected at "
                f"least one: {top_reasons(failed)}; see {self.job.path(records.FAILURES_FILE)}, "
                "mend what it names and take another --output"
            )

    def manifest(self, results: Sequence[ShardResult]) -> records.Manifest:
        """What manifest.json says of these shards and of the vocabulary of their job."""
        by_name = {result.name: result for result in results}
        vocabulary = read_vocabulary(self.job.path(VOCABULARY))
        return records.Manifest(
            **self.plan.manifest_fields(),
            vocabulary={
                "digest": vocabulary.digest,
                "size": len(vocabulary),
                "min_word_count": self.plan.min_word_count,
            },
            splits={
                split: tuple(shard_info(by_name[name]) for name in self.plan.shard_names(split))
                for split in self.plan.shards
            },
            ledger={
                "inputs": self.plan.images,
                "written": sum(result.written for result in results),
                "failed": failed_by_reason(results),
                "skipped": self.plan.skipped_images,
            },
            caption_ledger=self._caption_ledger(results),
            flip_copies=self._flip_copies(results),
        )

    def _flip_copies(self, results: Sequence[ShardResult]) -> int | None:
        if not self.plan.flip_copies:
            return None
        return sum(Counter(result.counts)[FLIPS] for result in results)

    def _caption_ledger(self, results: Sequence[ShardResult]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for result in results:
            counts.update(result.counts)
            failed.update(result.parts_failed)
        for name, count in counts.items():
            if name.startswith(LOST_CAPTIONS):
                failed[name.removeprefix(LOST_CAPTIONS)] += count
        failed[Reason.UNKNOWN_IMAGE] += self.plan.orphans
        return {
            "inputs": self.plan.captions,
            "written": counts[CAPTIONS],
            "failed": {str(reason): count for reason, count in sorted(failed.items()) if count},
            "skipped": self.plan.skipped_captions,
            "cut": counts[CUT_CAPTIONS],
        }


def shard_info(result: ShardResult) -> records.ShardInfo:
    """A shard as the manifest names it."""
    output, counts = result.output, Counter(result.counts)
    return records.ShardInfo(
        output.file,
        result.written + counts[FLIPS],
        counts[CAPTIONS] + counts[FLIP_CAPTIONS],
        output.bytes,
        output.sha256,
    )


def _check_balance(unit: str, ledger: Mapping[str, Any]) -> None:
    accounted = ledger["written"] + sum(ledger["failed"].values()) + ledger["skipped"]
    if accounted != ledger["inputs"]:
        raise CheckFailed(
            f"the {unit} ledger does not balance: {accounted} accounted for, "
            f"{ledger['inputs']} in the annotation files; nothing was published, report this"
        )
