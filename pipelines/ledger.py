"""The ledger of bulk captioning: inputs = captioned + failed (by reason) + skipped.

It is counted twice, from the shards' results and from the rows that were written, and the
output is complete only where both agree and every key stands in exactly one row.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from model.errors import CheckFailed, InvalidInput
from pipelines import storage
from pipelines.balance import equation
from pipelines.coco_results import COCO_FILE, CocoResults, coco_results
from pipelines.jobs import FileInfo, Job, ShardResult, ShardSpec, failed_by_reason
from pipelines.row_formats import Row, RowFormat

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Ledger:
    """What became of every input.

    Attributes:
      inputs: all there were; always the sum of the others.
      captioned: those with a caption.
      failed: those with a failure row, by reason.
      skipped: those passed over when the input was listed, by kind.
    """

    inputs: int
    captioned: int
    failed: Mapping[str, int]
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        return equation(self.inputs, "captioned", self.captioned, self.failed, self.skipped)


@dataclass(frozen=True)
class WriteSummary:
    """Checks the ledger, then writes OUTPUT/summary.json: the output is complete with it.

    Attributes:
      job: with its specs.
      skipped: inputs passed over, by kind.
      model: "name" and "version" of the model.
      rows: format of the captions' rows.
      coco: whether captions.json is written, too.
    """

    job: Job
    skipped: Mapping[str, int]
    model: Mapping[str, Any]
    rows: RowFormat = field(default_factory=RowFormat)
    coco: bool = False

    def __call__(self, results: list[ShardResult]) -> None:
        """Raises CheckFailed, naming both sides, when they differ."""
        with coco_results(self.job) if self.coco else nullcontext() as coco:
            self._publish(results, coco)

    def _publish(self, results: list[ShardResult], coco: CocoResults | None) -> None:
        expected = {spec.name: spec for spec in self.job.specs}
        if [result.name for result in results] != sorted(expected):
            raise CheckFailed(
                f"{len(results)} shards came back, expected {len(expected)}; repeat the command"
            )
        found = self._ledger()
        counted = replace(
            found,
            captioned=sum(result.written for result in results),
            failed=failed_by_reason(results),
        )
        for result in results:
            captions = _read_rows(self.job, result.output, self.rows)
            failures = _read_rows(self.job, result.failures, RowFormat())
            _check_keys(self.job, expected[result.name], [*captions, *failures])
            found = _add(found, len(captions), Counter(str(row["reason"]) for row in failures))
            if coco is not None:
                coco.add(captions)
        if _plain(counted) != _plain(found) or not _balances(found):
            raise CheckFailed(
                f"the shards report {_plain(counted)}, their rows say {_plain(found)}; delete "
                f"{self.job.path('_work', 'done')} and repeat the command"
            )
        files = [file for result in results for file in (result.output, result.failures)]
        if coco is not None:
            files.append(coco.publish())
        storage.write_json(
            self.job.path(SUMMARY_FILE),
            {
                "ledger": asdict(found),
                "model": dict(self.model),
                "files": [asdict(file) for file in files],
            },
        )

    def _ledger(self) -> Ledger:
        """What is known before a shard is looked at."""
        inputs = sum(spec.items for spec in self.job.specs) + sum(self.skipped.values())
        return Ledger(inputs, 0, {}, dict(self.skipped))


def is_complete(job: Job, skipped: Mapping[str, int], coco: bool = False) -> bool:
    """Whether all shards are there, and the summary; a summary without them is removed.

    Args:
      job: with its specs.
      skipped: inputs passed over now, by kind; a summary that says others is written again.
      coco: whether captions.json must be there, too.
    """
    summary = storage.read_json(job.path(SUMMARY_FILE))
    same = summary is not None and summary["ledger"]["skipped"] == dict(skipped)
    if same and all(job.result(spec) for spec in job.specs):
        results = [FileInfo(**file) for file in summary["files"] if file["file"] == COCO_FILE]
        if not coco or any(storage.size(job.path(COCO_FILE)) == file.bytes for file in results):
            return True
    # The summary first: it vouches for the other. Before a shard was finished neither is the job's.
    for file in (SUMMARY_FILE, COCO_FILE):
        if summary is not None or storage.match(job.done_path("*")):
            storage.delete_matching(job.path(file))
    return False


def read_ledger(job: Job) -> Ledger:
    """The ledger of a complete output; raises CheckFailed where it is none."""
    summary = storage.read_json(job.path(SUMMARY_FILE))
    if summary is None:
        raise CheckFailed(f"{job.output}: the runner ended without a summary; repeat the command")
    return Ledger(**summary["ledger"])


def check_counted(ledger: Ledger, counted: tuple[int, Mapping[str, int]] | None) -> None:
    """Compare the rows with what Beam counted.

    Args:
      ledger: of the written rows.
      counted: captioned, and failed by reason; None where the runner does not tell.

    Raises:
      CheckFailed: they differ; names both.
    """
    if counted is None:
        return
    captioned, failed = counted
    if (captioned, dict(failed)) != (ledger.captioned, dict(ledger.failed)):
        raise CheckFailed(
            f"Beam counted {captioned} captioned and {json.dumps(dict(failed))} failed, the rows "
            f"say {ledger.captioned} and {json.dumps(dict(ledger.failed))}; repeat the command, "
            "which counts the rows anew"
        )


def _check_keys(job: Job, spec: ShardSpec, rows: Sequence[Row]) -> None:
    """Raise CheckFailed where an item of a shard has not exactly one row."""
    found = sorted(str(row["key"]) for row in rows)
    wanted = sorted(str(item["key"]) for item in storage.read_json_lines(spec.path))
    if found != wanted:
        wrong = sorted((Counter(found) - Counter(wanted)) | (Counter(wanted) - Counter(found)))
        raise CheckFailed(
            f"shard {spec.name}: {wrong[0]!r} (and {len(wrong) - 1} other keys) not in exactly one "
            f"row; delete {job.done_path(spec.name)} and repeat the command"
        )


def _read_rows(job: Job, file: FileInfo, rows: RowFormat) -> list[dict[str, Any]]:
    path = job.path(file.file)
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error}); take another --output") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise CheckFailed(
            f"{path}: {len(data)} bytes that are not the {file.bytes} that were written; delete "
            "its shard's file in _work/done and repeat the command"
        )
    return rows.read(data)


def _add(ledger: Ledger, captioned: int, failed: Counter[str]) -> Ledger:
    total = Counter(ledger.failed) + failed
    return replace(
        ledger, captioned=ledger.captioned + captioned, failed=dict(sorted(total.items()))
    )


def _balances(ledger: Ledger) -> bool:
    parts: Sequence[int] = (*ledger.failed.values(), *ledger.skipped.values())
    return ledger.inputs == ledger.captioned + sum(parts)


def _plain(ledger: Ledger) -> str:
    return json.dumps(asdict(ledger), sort_keys=True)
