"""Which versions of a model are loaded, and the change from one to the next.

A new version is loaded and warmed while the old one answers; then new requests go to it, and
the old one is closed when its last call has ended. As in TensorFlow Serving, the highest version
answers those who ask for none, and the versions that models.config labels stay loaded too.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from model.errors import CaptionbeamError
from serving.errors import INVALID_ARGUMENT, CallFailed, ServableNotFound
from serving.loaded_model import LoadedModel
from serving.published import ModelVersion, Source


class State(Enum):
    """States of `get_model_status.proto`, by their numbers there."""

    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """A version and what became of it.

    Attributes:
      version: its number.
      state: where it is in its life.
      error: why it could not be loaded; empty otherwise.
    """

    version: int
    state: State
    error: str = ""


@dataclass(frozen=True)
class Wanted:
    """The version that a request asks for: a number, a label, or the highest.

    Attributes:
      version: its number, or None.
      label: its label in models.config, or None.
    """

    version: int | None = None
    label: str | None = None


class _Loaded:
    """A loaded version and how many calls it is answering."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.calls = 0


class Versions:
    """The loaded versions of one model; safe to use from many threads.

    Args:
      source: the directory that is looked at.
      name: what clients call the model.
      load: loads and warms a version, or raises a CaptionbeamError.
      labels: reads what each label of models.config stands for.
      log: takes a line about each change.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        load: Callable[[ModelVersion], LoadedModel],
        labels: Callable[[], Mapping[str, int]],
        log: Callable[[str], None],
    ) -> None:
        self.name = name
        self._source = source
        self._load = load
        self._read_labels = labels
        self._log = log
        self._labels: Mapping[str, int] = {}
        self._loaded: dict[int, _Loaded] = {}
        self._status: dict[int, VersionStatus] = {}
        # What could not be loaded, by the time its directory had then: mended, it is tried again.
        self._refused: dict[int, float] = {}
        self._changed = threading.Condition()
        self._polling = threading.Lock()

    @property
    def latest(self) -> int | None:
        """The highest version that answers."""
        with self._changed:
            return max(self._loaded, default=None)

    def status(self, version: int | None = None) -> list[VersionStatus]:
        """Every version known, or one; newest first."""
        with self._changed:
            known = [self._status[number] for number in sorted(self._status, reverse=True)]
        return [found for found in known if version in (None, found.version)]

    @contextlib.contextmanager
    def using(self, wanted: Wanted) -> Iterator[LoadedModel]:
        """The version asked for, which stays loaded meanwhile.

        Raises:
          CallFailed: NOT_FOUND, or INVALID_ARGUMENT for an unknown label.
        """
        with self._changed:
            loaded = self._loaded[self._resolve(wanted)]
            loaded.calls += 1
        try:
            yield loaded.model
        finally:
            with self._changed:
                loaded.calls -= 1
                self._changed.notify_all()

    def number(self, wanted: Wanted) -> int | None:
        """The version number that is meant, loaded or not; None for all of them."""
        if wanted.label is None:
            return wanted.version
        with self._changed:
            return self._resolve(wanted)

    def poll(self) -> None:
        """Looks at the directory once and makes the change, if there is one to make."""
        with self._polling:
            found = self._source.versions()
            asked = self._read_labels()
            for version in sorted(set(asked.values()) & set(found)):
                self._try(found[version])
            # The highest that can be loaded: a broken one leaves its place to the next.
            newest = next((v for v in sorted(found, reverse=True) if self._try(found[v])), None)
            # Where none can be loaded, or the directory cannot be read, what is there stays.
            if newest is None:
                return
            with self._changed:
                self._labels = self._moved(asked)
                kept = {newest, *self._labels.values()}
                gone = [version for version in self._loaded if version not in kept]
            for version in gone:
                self._unload(version)
            self._forget(found)

    def close(self, timeout_s: float | None = None) -> bool:
        """Closes every version once its calls have ended; False if they do not within the time."""
        with self._changed:
            ended = self._changed.wait_for(
                lambda: all(loaded.calls == 0 for loaded in self._loaded.values()), timeout_s
            )
        # What is being loaded meanwhile goes with the process.
        if ended and self._polling.acquire(blocking=False):
            for version in list(self._loaded):
                self._unload(version)
            self._polling.release()
        return ended

    def _moved(self, asked: Mapping[str, int]) -> dict[str, int]:
        """Labels where they are asked to be, or where they were until that version is loaded."""
        wanted = {
            label: version if version in self._loaded else self._labels.get(label)
            for label, version in asked.items()
        }
        return {
            label: version
            for label, version in wanted.items()
            if version is not None and version in self._loaded
        }

    def _resolve(self, wanted: Wanted) -> int:
        if wanted.label is not None:
            try:
                return self._labels[wanted.label]
            except KeyError:
                raise CallFailed(
                    INVALID_ARGUMENT, f"Unrecognized servable version label: {wanted.label}"
                ) from None
        version = max(self._loaded, default=None) if wanted.version is None else wanted.version
        if version not in self._loaded:
            raise ServableNotFound(self.name, wanted.version)
        return version

    def _try(self, found: ModelVersion) -> bool:
        """Loads a version unless it is loaded, or was refused as it is; True if it is loaded."""
        if found.version in self._loaded:
            return True
        modified = _modified(found.path)
        if self._refused.get(found.version) == modified:
            return False
        self._log(f"loading version {found.version}")
        self._say(found.version, State.LOADING)
        try:
            model = self._load(found)
        except CaptionbeamError as error:
            self._refused[found.version] = modified
            self._say(found.version, State.END, str(error))
            self._log(f"version {found.version} is refused: {error}")
            return False
        with self._changed:
            self._loaded[found.version] = _Loaded(model)
            self._status[found.version] = VersionStatus(found.version, State.AVAILABLE)
        self._log(f"version {found.version} is available")
        return True

    def _unload(self, version: int) -> None:
        self._say(version, State.UNLOADING)
        with self._changed:
            loaded = self._loaded.pop(version)
            self._changed.wait_for(lambda: loaded.calls == 0)
        loaded.model.close()
        self._say(version, State.END)
        self._log(f"version {version} is unloaded")

    def _say(self, version: int, state: State, error: str = "") -> None:
        with self._changed:
            self._status[version] = VersionStatus(version, state, error)

    def _forget(self, found: Mapping[int, ModelVersion]) -> None:
        """Versions whose directories are gone, once they have ended."""
        with self._changed:
            for version, status in list(self._status.items()):
                if status.state is State.END and version not in found:
                    del self._status[version]
                    self._refused.pop(version, None)


def _modified(path: Path) -> float:
    """The newest time of the directory and its files, 0 where it is gone."""
    try:
        return max(child.stat().st_mtime for child in (path, *path.rglob("*")))
    except OSError:
        return 0.0
