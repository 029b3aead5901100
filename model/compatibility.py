"""Whether records, vocabulary, settings and a model belong together; each refusal says why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.config import Config
from model.errors import InvalidInput, RecordsMismatch
from model.preprocessing import choices, fingerprint
from model.records import IMAGES, Manifest
from model.vocabulary import Vocabulary

_Difference = tuple[str, Any, Any]


def check_digest(vocabulary: Vocabulary, expected: str, source: str) -> None:
    """Refuse a vocabulary that is not the expected one."""
    if vocabulary.digest != expected:
        raise RecordsMismatch(
            f"{source}: vocabulary {vocabulary.digest[:8]}, expected {expected[:8]}; "
            "use the vocabulary.json that was saved with it"
        )


def check_fingerprint(manifest: Manifest, source: str) -> None:
    """Refuse grids that another version of model/preprocessing made."""
    made_with = manifest.preprocessing
    here = choices(manifest.image_size, manifest.grid_size, manifest.aspect)
    difference = _first_difference(made_with, here)
    if difference is not None:
        name, there, now = difference
        raise RecordsMismatch(
            f"{source}: preprocessing {name} is {there} there, {now} in this version of "
            "captionbeam; preprocess again, or use the version that made it"
        )
    if manifest.fingerprint != fingerprint(made_with):
        raise RecordsMismatch(
            f"{source}: preprocessing fingerprint {manifest.fingerprint[:8]}, its choices give "
            f"{fingerprint(made_with)[:8]}; the manifest was edited, preprocess again"
        )


def check_same_grids(model: Manifest, records: Manifest, source: str) -> None:
    """Refuse records whose grids were made otherwise than those a model was trained on."""
    if records.content != model.content:
        raise RecordsMismatch(
            f"{source}: records of {records.content}, the model was trained on {model.content}; "
            f"preprocess with --content {model.content}"
        )
    difference = _grid_difference(records, model)
    if difference is not None:
        name, got, expected = difference
        raise RecordsMismatch(
            f"{source}: {name} {got}, the model expects {expected}; "
            "preprocess with the model's settings"
        )


def check_ensemble(
    vocabularies: Sequence[Vocabulary], manifests: Sequence[Manifest], sources: Sequence[str]
) -> None:
    """Refuse models that write other words or look at other grids than the first of them."""
    for manifest, source in zip(manifests, sources, strict=True):
        if len(sources) > 1 and manifest.content == IMAGES:
            raise RecordsMismatch(
                f"{source}: its encoder is fine-tuned, so that no other model looks at its grids; "
                "expected models of one frozen encoder, evaluate it alone"
            )
    for vocabulary, manifest, source in zip(vocabularies, manifests, sources, strict=True):
        digests = ({"vocabulary": each.digest[:8]} for each in (vocabulary, vocabularies[0]))
        difference = _first_difference(*digests) or _grid_difference(manifest, manifests[0])
        if difference is not None:
            name, got, expected = difference
            raise RecordsMismatch(
                f"{source}: {name} {got}, {sources[0]} has {expected}; models that caption "
                "together need one vocabulary and the same grids, train them on the same records"
            )


def _grid_difference(one: Manifest, other: Manifest) -> _Difference | None:
    """Name and both values of the first choice that tells their grids apart."""
    difference = _first_difference(one.preprocessing, other.preprocessing)
    if difference is None:
        weights = f"encoder {one.encoder['weights']}"
        digests = ({weights: manifest.encoder["digest"][:8]} for manifest in (one, other))
        return _first_difference(*digests)
    name, got, expected = difference
    return name.replace("_", " "), got, expected


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> _Difference | None:
    """Name and both values of the first field that differs."""
    for name in dict.fromkeys((*one, *other)):
        if one.get(name) != other.get(name):
            return name, one.get(name), other.get(name)
    return None


def check_same_records(model: Manifest, records: Manifest, source: str) -> None:
    """Refuse to resume on other records: position, order and best score belong to these."""
    if (model.flip_copies is None) != (records.flip_copies is None):
        now, then = ("without" if m.flip_copies is None else "with" for m in (records, model))
        raise RecordsMismatch(
            f"{source}: records {now} flip copies, training began {then} them; take another "
            "--model_dir, or the first run's --records"
        )
    for split in sorted({*model.splits, *records.splits}):
        there, here = model.splits.get(split, ()), records.splits.get(split, ())
        if [shard.sha256 for shard in there] != [shard.sha256 for shard in here]:
            raise RecordsMismatch(
                f"{source}: split {split} has other records than the ones training began with; "
                "take another --model_dir, or the first run's --records"
            )


def check_same_config(
    found: Config, wanted: Config, model_dir: Path, ignored: Sequence[str]
) -> None:
    """Refuse to resume with other settings."""
    for section in ("decoder", "search", "training", "encoder"):
        there, here = getattr(found, section), getattr(wanted, section)
        for name, value in vars(there).items():
            if name not in ignored and value != getattr(here, name):
                raise InvalidInput(
                    f"{model_dir} was begun with {section}.{name} {value}, now "
                    f"{getattr(here, name)}; take another --model_dir, or the first run's settings"
                )
