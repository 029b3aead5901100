"""MODELS/NAME/VERSION appears whole or not at all, whoever else publishes, whatever fails.

A version is made beside its place under a name that no server polls, brought to the disk and
renamed. Number, models.config and the removal of what killed exports left are settled under one
lock a MODELS folder, held for moments. Locks are the kernel's (flock), which end with the process
that holds them.
"""

import errno
import fcntl
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from export import models_config
from export.server_files import once_written
from model.errors import InvalidInput
from serving.layout import is_version

_LOCK_FILE = ".export.lock"
_PREFIX = ".unpublished"


def publish(
    name_dir: Path, make: Callable[[Path], object], note: Callable[[str], None] = print
) -> Path:
    """Publish what is made as a new version of MODELS/NAME.

    Args:
      name_dir: MODELS/NAME.
      make: fills an empty directory and checks it; what it raises prevents publishing.
      note: takes a line for each thing in models.config that a person has to know or do.

    Returns:
      MODELS/NAME/VERSION.

    Raises:
      InvalidInput: the disk is full, say, or models.config cannot be read.
    """
    with writing(name_dir), _place(name_dir) as unpublished:
        make(unpublished)
        _sync(unpublished)
        with _locked(name_dir.parent):
            version_dir, notes = _take_version(unpublished, name_dir)
    for line in notes:
        note(line)
    return version_dir


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses becomes one line; `path` names the place."""
    try:
        yield
    except OSError as error:
        raise unwritten(path, _reason(error)) from error


def unwritten(path: Path, reason: str) -> InvalidInput:
    """That nothing could be published at a place, and why."""
    return InvalidInput(
        f"{path}: cannot be written ({reason}), nothing is published; "
        "make room there, or name another place"
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _take_version(unpublished: Path, name_dir: Path) -> tuple[Path, list[str]]:
    """Publish under a number that nothing has or names; a copy made by hand may take it first."""
    models = name_dir.parent
    while True:
        config = models_config.read(models)
        taken = {int(child.name) for child in name_dir.iterdir() if is_version(child)}
        # A label whose version was deleted must not come to name this one.
        version = max({0, *taken, *models_config.named(config, name_dir.name)}) + 1
        missing = {
            file: text
            for file, text in once_written(name_dir.name).items()
            if not (models / file).exists()
        }
        text, notes = models_config.updated(config, name_dir.name, version, taken)
        version_dir = name_dir / str(version)
        with _staged(models, {**missing, models_config.MODELS_CONFIG: text}) as staged:
            try:
                # Renaming a directory over one that is not empty fails.
                unpublished.rename(version_dir)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                continue
            _sync_directory(name_dir)
            try:
                _replace(staged)
            except OSError as error:
                raise InvalidInput(
                    f"{version_dir} is published, but {models_config.MODELS_CONFIG} could not be "
                    f"replaced ({_reason(error)}): set {models_config.CANARY} to {version} by "
                    "hand, or export again"
                ) from error
        return version_dir, notes


@contextmanager
def _staged(directory: Path, texts: Mapping[str, str]) -> Iterator[dict[Path, Path]]:
    """Files on the disk under temporary names, which a full one refuses before anything changes."""
    # An operator's link stays one: what it leads to is replaced.
    paths = [(directory / name).resolve() for name in texts]
    files = {path.with_name(f".{path.name}.new"): path for path in paths}
    try:
        for (temporary, path), text in zip(files.items(), texts.values(), strict=True):
            # A killed export's may be one that cannot be written.
            temporary.unlink(missing_ok=True)
            temporary.write_text(text, encoding="utf-8")
            with suppress(FileNotFoundError):
                shutil.copymode(path, temporary)
            _sync_file(temporary)
        yield files
    finally:
        for temporary in files:
            # What was published is, whether this succeeds or not.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _replace(staged: Mapping[Path, Path]) -> None:
    for temporary, path in staged.items():
        temporary.replace(path)
    for directory in {path.parent for path in staged.values()}:
        _sync_directory(directory)


@contextmanager
def _place(name_dir: Path) -> Iterator[Path]:
    """An empty directory of this export alone, locked, and gone in the end."""
    name_dir.mkdir(parents=True, exist_ok=True)
    mine = name_dir / f"{_ours()}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, mine, ignore_errors=True)
        with _locked(name_dir.parent):
            _remove_abandoned(name_dir)
            mine.mkdir()
            descriptor = stack.enter_context(_opened(mine))
            # Where files alone can be locked, the next export locks no directory either, and leaves
            # all alone. Where nothing can be, _locked has failed already.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield mine


def _remove_abandoned(name_dir: Path) -> None:
    """Remove what exports of this machine left when they were killed: nobody holds its lock."""
    for left in name_dir.iterdir():
        # Another host's name may begin with this one's.
        if not re.fullmatch(re.escape(_ours()) + r"\d+-[0-9a-f]{8}", left.name):
            continue
        with suppress(OSError), _opened(left) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def _ours() -> str:
    """How names of this machine's unpublished versions begin."""
    return f"{_PREFIX}-{socket.gethostname()}-"


@contextmanager
def _locked(models: Path) -> Iterator[None]:
    """One process and thread at a time in a MODELS folder."""
    with (models / _LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Bring a directory and all in it to the disk: a rename is of no use before its files are."""
    for directory, _, files in os.walk(path):
        for file in files:
            _sync_file(Path(directory, file))
        _sync_directory(Path(directory))


def _sync_file(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    # Not every filesystem syncs directories.
    with suppress(OSError), _opened(path) as descriptor:
        os.fsync(descriptor)
