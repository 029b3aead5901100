"""Whether records, vocabulary, settings and a model belong together; each refusal says why."""

from collections.abc import Sequence
from pathlib import Path

from model.config import Config
from model.errors import InvalidInput, RecordsMismatch
from model.preprocessing import fingerprint
from model.records import Manifest
from model.vocabulary import Vocabulary


def check_digest(vocabulary: Vocabulary, expected: str, source: str) -> None:
    """Refuse a vocabulary that is not the expected one."""
    if vocabulary.digest != expected:
        raise RecordsMismatch(
            f"{source}: vocabulary {vocabulary.digest[:8]}, expected {expected[:8]}; "
            "use the vocabulary.json that was saved with it"
        )


def check_fingerprint(manifest: Manifest, source: str) -> None:
    """Refuse grids that another version of model/preprocessing made."""
    expected = fingerprint(manifest.image_size, manifest.grid_size)
    if manifest.fingerprint != expected:
        raise RecordsMismatch(
            f"{source}: preprocessing fingerprint {manifest.fingerprint[:8]}, this version of "
            f"captionbeam makes {expected[:8]}; preprocess again, or use the version that made it"
        )


def check_same_grids(model: Manifest, records: Manifest, source: str) -> None:
    """Refuse records whose grids were made otherwise than those a model was trained on."""
    facts = {
        "image size": (records.image_size, model.image_size),
        "grid size": (records.grid_size, model.grid_size),
        "preprocessing fingerprint": (records.fingerprint[:8], model.fingerprint[:8]),
        f"encoder {records.encoder['weights']}": (
            records.encoder["digest"][:8],
            model.encoder["digest"][:8],
        ),
    }
    for name, (got, expected) in facts.items():
        if got != expected:
            raise RecordsMismatch(
                f"{source}: {name} {got}, the model expects {expected}; "
                "preprocess with the model's settings"
            )


def check_same_records(model: Manifest, records: Manifest, source: str) -> None:
    """Refuse to resume on other records: position, order and best score belong to these."""
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
    for section in ("decoder", "search", "training"):
        there, here = getattr(found, section), getattr(wanted, section)
        for name, value in vars(there).items():
            if name not in ignored and value != getattr(here, name):
                raise InvalidInput(
                    f"{model_dir} was begun with {section}.{name} {value}, now "
                    f"{getattr(here, name)}; take another --model_dir, or the first run's settings"
                )
