"""Verifies a records directory: every shard against what is said of it, and all the rest."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from model import records
from model.errors import InvalidInput
from model.progress import Progress
from pipelines import storage
from pipelines.contents import Contents, Expected, Fault, check_is_finished, read_contents
from pipelines.duplicates import Place, find_twice
from pipelines.plan import VOCABULARY
from pipelines.published_check import check_published, digest_of, in_words
from pipelines.read_ahead import read_ahead
from pipelines.records_files import read_vocabulary
from pipelines.shard_check import Rules, ShardReport, check_shard, read_records

# Hashing and checksums run beside each other; more would only wait for the same disk.
_THREADS = 4


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
      contents: the papers of the directory.
      shards: all that should be there.
      damaged: of these, the ones that must be made again.
      faults: everything that is wrong; a shard stands there once.
      stray: files like records that nobody speaks for.
    """

    contents: Contents
    shards: tuple[Expected, ...]
    damaged: tuple[Expected, ...]
    faults: tuple[Fault, ...]
    stray: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """What to make again: shards, then other files."""
        damaged = {shard.file: shard.name for shard in self.damaged}
        return list(dict.fromkeys(damaged.get(fault.file, fault.file) for fault in self.faults))


def check_records(output: str, unfinished: bool = False) -> Report:
    """Verify a records directory.

    Args:
      output: RECORDS, on any Beam filesystem.
      unfinished: look at the finished shards of a run that has not ended, too.

    Raises:
      InvalidInput: no records directory of this version.
      CheckFailed: the run has not ended.
    """
    contents = read_contents(output)
    if not unfinished:
        check_is_finished(contents)
    shards = tuple(contents.shards())
    wrong: dict[str, list[str]] = {shard.file: [] for shard in shards}
    sound: list[tuple[Expected, ShardReport]] = []
    for shard, report in _check_shards(contents, shards):
        wrong[shard.file] += report.faults
        if not report.faults:
            sound.append((shard, report))
    # A damaged shard is made again anyway; it must not cast suspicion on a sound one.
    for shard, what in _duplicates(contents, sound):
        wrong[shard.file].append(what)
    faults = [Fault(file, "; ".join(what)) for file, what in wrong.items() if what]
    there = storage.match(contents.job.path(f"*{records.RECORD_SUFFIX}"))
    return Report(
        contents,
        shards,
        tuple(shard for shard in shards if wrong[shard.file]),
        (*faults, *contents.faults, *check_published(contents)),
        tuple(sorted({path.rpartition("/")[2] for path in there} - wrong.keys())),
    )


def _check_shards(
    contents: Contents, shards: Sequence[Expected]
) -> Iterator[tuple[Expected, ShardReport]]:
    images = sum(shard.info.records for shard in shards if shard.info)
    progress = Progress("check", images, "images")
    check = partial(_check, contents, _rules(contents), progress)
    for shard, report in read_ahead(shards, check, threads=_THREADS, ahead=2 * _THREADS):
        # read_ahead hands on ItemFailures, of which a check has none.
        if isinstance(report, ShardReport):
            yield shard, report
    progress.close()


def _check(contents: Contents, rules: Rules, progress: Progress, shard: Expected) -> ShardReport:
    job = contents.job
    if shard.info is None:
        return ShardReport(("not made yet",))
    report = check_shard(job.path(shard.file), shard.info, rules, progress.advance)
    if report.faults or contents.plan is None:
        return report
    if shard.result is None:
        where = job.done_path(shard.name).removeprefix(job.path(""))
        return ShardReport((f"{where} does not say what it was made from",))
    failures = shard.result.failures
    found = digest_of(job.path(failures.file))
    if found != failures.sha256:
        return ShardReport((f"{failures.file}: {in_words(found, failures.sha256)}",))
    return report


def _rules(contents: Contents) -> Rules:
    fields = contents.plan.manifest_fields() if contents.plan else vars(contents.manifest)
    return Rules(
        tuple(fields["grid_shape"]),
        _vocabulary_size(contents),
        fields["max_words"],
        fields["compression"],
        fields["content"],
    )


def _vocabulary_size(contents: Contents) -> int:
    if contents.manifest is not None:
        return int(contents.manifest.vocabulary["size"])
    try:
        return len(read_vocabulary(contents.job.path(VOCABULARY)))
    # That it cannot be read is a fault of its own.
    except (OSError, InvalidInput):
        return sys.maxsize


def _duplicates(
    contents: Contents, sound: Sequence[tuple[Expected, ShardReport]]
) -> Iterator[tuple[Expected, str]]:
    """(shard, what of it stands elsewhere, too)."""
    splits = dict.fromkeys(shard.split for shard, _ in sound)
    for split in splits:
        inside = [(shard, report.keys) for shard, report in sound if shard.split == split]
        pairs = find_twice([keys for _, keys in inside])
        yield from _named(contents, [shard for shard, _ in inside], pairs, "key")
    shards = [shard for shard, _ in sound]
    pairs = find_twice([report.identities for _, report in sound])
    across = (
        (first, second)
        for first, second in pairs
        if shards[first.shard].split != shards[second.shard].split
    )
    yield from _named(contents, shards, across, "image")


def _named(
    contents: Contents,
    shards: Sequence[Expected],
    pairs: Iterable[tuple[Place, Place]],
    what: str,
) -> Iterator[tuple[Expected, str]]:
    """One sentence a shard: its first record that is elsewhere, and how many more there are."""
    by_shard: dict[int, list[tuple[Place, Place]]] = {}
    for first, second in pairs:
        by_shard.setdefault(second.shard, []).append((first, second))
    for index, found in by_shard.items():
        first, second = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        once = "each key once" if what == "key" else "each image in one split"
        yield (
            shards[index],
            f"record {second.record + 1} is the {what} {_key(contents, shards[index], second)} of "
            f"record {first.record + 1} of {shards[first.shard].file}{more}, expected {once}",
        )


def _key(contents: Contents, shard: Expected, place: Place) -> str:
    rules = _rules(contents)
    path = contents.job.path(shard.file)
    records_of_it = read_records(path, rules.grid_shape, rules.compression, rules.content)
    return next(islice(records_of_it, place.record, None)).key
