"""Reads the manifest and the vocabulary of a records directory, on any Beam filesystem."""

from model.errors import InvalidInput
from model.records import Manifest
from model.vocabulary import Vocabulary
from pipelines import storage


def read_manifest(path: str) -> Manifest:
    """Read a manifest.json.

    Raises:
      OSError: it cannot be read.
      InvalidInput: no manifest of this version; begins with the path.
    """
    return Manifest.from_json(_read_text(path), path)


def read_vocabulary(path: str) -> Vocabulary:
    """Read a vocabulary.json.

    Raises:
      OSError: it cannot be read.
      InvalidInput: no vocabulary; begins with the path.
    """
    return Vocabulary.from_json(_read_text(path), path)


def _read_text(path: str) -> str:
    try:
        return storage.read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 text ({error.reason})") from error
