"""Where things lie in MODELS/NAME/VERSION, as TensorFlow Serving has it."""

from pathlib import Path

SAVED_MODEL_FILE = "saved_model.pb"
# Replayed before a version is called available.
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")


def is_version(path: Path) -> bool:
    """Whether a directory is a version, by its name: a number of 63 bits."""
    name = path.name
    return name.isascii() and name.isdecimal() and int(name) < 2**63
