"""MODELS/NAME/VERSION: what is called a version, and where things lie in one."""

from pathlib import Path

from model.errors import InvalidInput

SAVED_MODEL_FILE = "saved_model.pb"
ASSETS = "assets"
# TensorFlow Serving replays it before it calls a version available.
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
# Ours (export/record.py); the server reads no other file there than its warm-up.
RECORD_FILE = Path("assets.extra", "verified.json")


def is_version(path: Path) -> bool:
    """By its name, as the server has it."""
    return path.name.isascii() and path.name.isdecimal()


def check_published(path: Path) -> None:
    """Raise InvalidInput where there is no published version."""
    # One that lost its graph is a version still, and a damaged one.
    parts = (SAVED_MODEL_FILE, RECORD_FILE)
    if not is_version(path) or not any((path / part).is_file() for part in parts):
        raise InvalidInput(
            f"{path}: no published version, expected MODELS/NAME/VERSION as "
            "`captionbeam export --output MODELS/NAME` makes it"
        )
