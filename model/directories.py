"""Output directories, made before the work whose results they take."""

from pathlib import Path

from model.errors import InvalidInput


def make_directory(path: Path) -> None:
    """Make a directory and its parents.

    Raises:
      InvalidInput: something else is there, or it may not be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"{path}: cannot be made a directory ({error.strerror}); name another place"
        ) from error
