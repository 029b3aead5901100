"""MODELS/NAME/VERSION: what is called a version, and where things lie in one."""

from pathlib import Path

from model.errors import InvalidInput
from serving.layout import SAVED_MODEL_FILE, is_version

ASSETS = "assets"
# Ours (export/record.py); the server reads no other file there than its warm-up.
RECORD_FILE = Path("assets.extra", "verified.json")


def check_published(path: Path) -> None:
    """Raise InvalidInput where there is no published version."""
    # One that lost its graph is a version still, and a damaged one.
    parts = (SAVED_MODEL_FILE, RECORD_FILE)
    if not is_version(path) or not any((path / part).is_file() for part in parts):
        raise InvalidInput(
            f"{path}: no published version, expected MODELS/NAME/VERSION as "
            "`captionbeam export --output MODELS/NAME` makes it"
        )
