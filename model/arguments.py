"""Types of command-line arguments that several commands share."""

import argparse
from pathlib import Path


def local_path(text: str) -> Path:
    """A path on this machine; training reads its records too often for a bucket."""
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"got {text}, expected a directory on this machine; copy it here first"
        )
    return Path(text)


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least 1")
    return int(text)
