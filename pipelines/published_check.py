"""Looks at the files beside the shards of a records directory: manifest, vocabulary, failures."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from model import records
from model.errors import InvalidInput, Reason
from model.preprocessing import choices, fingerprint
from pipelines import storage
from pipelines.contents import Contents, Fault, unreadable
from pipelines.plan import ORPHANS, VOCABULARY, current_fingerprint
from pipelines.publication import Publication
from pipelines.records_files import read_vocabulary
from pipelines.wording import short

# A caption fails for one of these without its image; for the image's reason it has no row.
_OF_CAPTIONS = (Reason.UNKNOWN_IMAGE, Reason.INVALID_CAPTION)
_CHUNK_BYTES = 2**20


def check_published(contents: Contents) -> Iterator[Fault]:
    """The faults of manifest.json, vocabulary.json and failures.jsonl, those of _work included."""
    manifest = contents.manifest
    vocabularies = list(_check_vocabularies(contents))
    if manifest is not None:
        of_work = any(fault.file == VOCABULARY for fault in vocabularies)
        if what := _manifest_fault(contents, manifest, of_work):
            yield Fault(records.MANIFEST_FILE, what)
    yield from vocabularies
    if what := _failures_fault(contents):
        yield Fault(records.FAILURES_FILE, what)
    if contents.plan is not None:
        found = digest_of(contents.job.path(ORPHANS))
        if found != contents.plan.orphans_digest:
            yield Fault(ORPHANS, in_words(found, contents.plan.orphans_digest))


def is_of_another_version(contents: Contents) -> bool:
    """Whether the grids were made by other preprocessing than this version's."""
    if contents.plan is not None:
        return contents.plan.fingerprint != current_fingerprint(contents.plan.encoder)
    manifest = contents.manifest
    return manifest is not None and manifest.fingerprint != fingerprint(
        choices(manifest.image_size, manifest.grid_size, manifest.aspect)
    )


def _manifest_fault(
    contents: Contents, manifest: records.Manifest, vocabulary_is_lost: bool
) -> str | None:
    if is_of_another_version(contents):
        return (
            f"preprocessing {short(manifest.fingerprint)} is not that of this version of "
            "captionbeam; make the records again in another --output"
        )
    if contents.plan is not None and contents.all_finished and not vocabulary_is_lost:
        publication = Publication(contents.job, contents.plan)
        # As read from JSON, so that lists and tuples are alike.
        expected = json.loads(publication.manifest(list(contents.results.values())).to_json())
        return _first_difference(json.loads(manifest.to_json()), expected)
    return next(_imbalances(manifest), None)


def _first_difference(found: Any, expected: Any, name: str = "") -> str | None:
    """Name the first value that differs: `splits.train.0.records is 9, expected 8`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys: Iterable[Any] = sorted({*found, *expected})
        pairs = [(key, found.get(key), expected.get(key)) for key in keys]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = [(key, *both) for key, both in enumerate(zip(found, expected, strict=True))]
    elif found == expected:
        return None
    else:
        return f"{name} is {json.dumps(found)}, expected {json.dumps(expected)}"
    for key, one, other in pairs:
        if what := _first_difference(one, other, f"{name}.{key}" if name else str(key)):
            return what
    return None


def _imbalances(manifest: records.Manifest) -> Iterator[str]:
    """What a manifest without its job contradicts itself in."""
    shards = [info for infos in manifest.splits.values() for info in infos]
    for unit, ledger in (("records", manifest.ledger), ("captions", manifest.caption_ledger)):
        accounted = ledger["written"] + sum(ledger["failed"].values()) + ledger["skipped"]
        if accounted != ledger["inputs"]:
            yield f"the ledger of {unit} accounts for {accounted}, expected {ledger['inputs']}"
        # How many captions a mirror image keeps stands in no ledger.
        if unit == "captions" and manifest.flip_copies:
            continue
        total = sum(getattr(info, unit) for info in shards)
        expected = ledger["written"] + (manifest.flip_copies or 0 if unit == "records" else 0)
        if total != expected:
            yield f"shards of {total} {unit}, expected {expected} as the ledger says"


def _check_vocabularies(contents: Contents) -> Iterator[Fault]:
    """The published vocabulary and the one of the job are the same, and the manifest's."""
    stated = contents.manifest.vocabulary["digest"] if contents.manifest else None
    # The job's last: without a manifest it is the one to be doubted, since it can be counted anew.
    files = (records.VOCABULARY_FILE, *([VOCABULARY] if contents.plan is not None else []))
    for file in files:
        path = contents.job.path(file)
        try:
            found = read_vocabulary(path).digest
        except OSError:
            yield Fault(file, unreadable(path))
        except InvalidInput as error:
            yield Fault(file, str(error).removeprefix(f"{path}: "))
        else:
            stated = stated or found
            if found != stated:
                yield Fault(file, f"digest {short(found)}, expected {short(stated)}")


def _failures_fault(contents: Contents) -> str | None:
    path = contents.job.path(records.FAILURES_FILE)
    try:
        found = Counter(_reasons(path))
    except OSError:
        return unreadable(path)
    except ValueError as error:
        return str(error)
    if contents.manifest is not None:
        expected = _stated_rows(contents.manifest)
        for reason in sorted({*found, *expected}):
            if found[reason] != expected.get(reason, 0):
                return (
                    f"{found[reason]} rows of {reason}, expected {expected.get(reason, 0)} as the "
                    "ledgers say"
                )
    if not contents.all_finished:
        return None
    results = sorted(contents.results.values(), key=lambda result: result.name)
    parts = [ORPHANS, *(result.failures.file for result in results)]
    found_digest, expected_digest = digest_of(path), digest_of(*map(contents.job.path, parts))
    # That a part cannot be read is a fault of its shard or of the job.
    if expected_digest in (None, found_digest):
        return None
    return in_words(found_digest, expected_digest)


def _reasons(path: str) -> Iterator[str]:
    with storage.open_read(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield str(Reason(json.loads(line)["reason"]))
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(f"line {number} is no row of a failure") from error


def _stated_rows(manifest: records.Manifest) -> dict[str, int]:
    of_captions: Mapping[str, int] = manifest.caption_ledger["failed"]
    return {
        **manifest.ledger["failed"],
        **{reason: count for reason, count in of_captions.items() if reason in _OF_CAPTIONS},
    }


def digest_of(*paths: str) -> str | None:
    """SHA-256 (hex) of files one after the other, or None where one cannot be read."""
    sha256 = hashlib.sha256()
    try:
        for path in paths:
            with storage.open_read(path) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    sha256.update(chunk)
    except OSError:
        return None
    return sha256.hexdigest()


def in_words(found: str | None, expected: str) -> str:
    """How a digest differs, for a person."""
    there = "cannot be read" if found is None else f"SHA-256 {short(found)}"
    return f"{there}, expected {short(expected)}"
