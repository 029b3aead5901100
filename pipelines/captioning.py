"""What a bulk shard does: bytes → captions, through a server or a model in this process.

Reading, fetching and decoding run ahead in threads while the model works on the batch before.
A batch is cut by position in the shard, so a caption and its score never depend on the
runner, on the number of workers or on an interruption.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from apache_beam.utils.shared import Shared

from model.errors import InvalidInput, ItemFailure, Reason
from model.image_bytes import Canonical, canonicalise
from pipelines import storage
from pipelines.fetch import Fetcher, process_fetcher
from pipelines.fetch_order import is_url, spread_hosts
from pipelines.fetch_settings import FetchSettings
from pipelines.image_files import read_image_file
from pipelines.jobs import Item
from pipelines.read_ahead import batches, read_ahead
from pipelines.sink import Sink
from serving.client import CaptionResult, Client, Target, connect_to

# Enough to hide the latency of a web server; decoding leaves Python's lock.
_READ_THREADS = 16
# Batches that are read or waiting while one is in the model.
_BATCHES_AHEAD = 2
# Batches in the model at once: one encodes while the other, whose search leaves cores idle,
# writes words.
_CALLS = 2


Connect: TypeAlias = Callable[[Target], Client]


class Clients:
    """Hands out clients in whatever process it was pickled to.

    A model is loaded once a process. A server is asked anew each time, because what it serves
    may have changed.
    """

    def __init__(self, target: Target, connect: Connect = connect_to) -> None:
        """Keeps the settings; nothing is loaded."""
        self._target, self._connect = target, connect
        self._shared = Shared()

    def load(self) -> Client | None:
        """The model in this process, which stays loaded while somebody holds it."""
        if self._target.server is not None:
            return None
        client: Client = self._shared.acquire(partial(self._connect, self._target))
        return client

    @contextmanager
    def open(self) -> Iterator[Client]:
        """A client that has answered; raises as `serving.client.connect_to`."""
        loaded = self.load()
        if loaded is not None:
            yield loaded
        else:
            with self._connect(self._target) as client:
                yield client

    def pinned(self, version: int) -> "Clients":
        """The same, for that version alone even when a newer one is published meanwhile.

        It shares what this one has loaded in this process.
        """
        model = self._target.model
        if model is None or Path(model).resolve().name == str(version):
            return self
        clients = Clients(replace(self._target, model=f"{model}/{version}"), self._connect)
        clients._shared = self._shared
        return clients


@dataclass(frozen=True)
class CaptionSettings:
    """What decides the rows of a shard, besides its items.

    Attributes:
      model_name: name of the model that must answer.
      model_version: its version.
      batch_size: images in one request.
      fetch: how URLs are read.
    """

    model_name: str
    model_version: int
    batch_size: int = 32
    fetch: FetchSettings = field(default_factory=FetchSettings)


@dataclass(frozen=True)
class _Image:
    """An item that was read: canonical image, and the SHA-256 of its original bytes."""

    canonical: Canonical
    sha256: str


class CaptionShard:
    """The ShardWork of bulk captioning: one row or one failure for every item."""

    def __init__(self, clients: Clients, settings: CaptionSettings) -> None:
        """Keeps the settings."""
        self._clients, self._settings = clients, settings
        self._model: Client | None = None

    def setup(self) -> None:
        """Loads the model; a server has it loaded already."""
        self._model = self._clients.load()

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        """Captions a shard.

        Raises:
          ServerUnavailable, ServerError: the rest of the shard cannot be captioned.
          InvalidInput: another version of the model answers than at the start.
        """
        size = self._settings.batch_size
        load = partial(_load, process_fetcher(self._settings.fetch))
        ahead = size * _BATCHES_AHEAD
        # Whoever waits for a host has a thread of its own, and holds up nobody else.
        threads = ahead if any(is_url(str(item["source"])) for item in items) else _READ_THREADS
        with self._client() as client:
            images = read_ahead(spread_hosts(items), load, threads=threads, ahead=ahead)
            captioned = read_ahead(
                batches(images, size), partial(_caption, client), threads=_CALLS, ahead=_CALLS
            )
            for _, outcomes in captioned:
                if isinstance(outcomes, ItemFailure):
                    raise outcomes
                for item, outcome in outcomes:
                    if isinstance(outcome, ItemFailure):
                        sink.fail(item, outcome)
                    else:
                        sink.write(storage.json_line(self._row(item, *outcome)))
        # Every answer tells its version to `_row`, except those of a server that never does.
        with self._client():
            pass

    @contextmanager
    def _client(self) -> Iterator[Client]:
        with self._clients.open() as client:
            self._check_model(*client.model)
            yield client

    def _check_model(self, name: str, version: int) -> None:
        wanted = (self._settings.model_name, self._settings.model_version)
        if (name, version) != wanted:
            raise InvalidInput(
                f"model {name} version {version} answers, expected {wanted[0]} version "
                f"{wanted[1]} as at the start; serve that version again, on every replica, and "
                "repeat the command, or take another --output"
            )

    def _row(self, item: Item, image: _Image, result: CaptionResult) -> dict[str, object]:
        # The server may have changed its model, and replicas may differ.
        self._check_model(self._settings.model_name, result.model_version)
        return {
            "key": item["key"],
            "source": item["source"],
            "caption": result.caption,
            "log_prob": result.log_prob,
            "sha256": image.sha256,
            "width": image.canonical.width,
            "height": image.canonical.height,
            "model": self._settings.model_name,
            "model_version": result.model_version,
        }


_Outcome: TypeAlias = tuple[_Image, CaptionResult] | ItemFailure


def _caption(
    client: Client, batch: Sequence[tuple[Item, _Image | ItemFailure]]
) -> list[tuple[Item, _Outcome]]:
    """One outcome for each item, in order."""
    images = [image.canonical.data for _, image in batch if not isinstance(image, ItemFailure)]
    results = iter(client.caption_each(images))
    return [
        (item, image if isinstance(image, ItemFailure) else _outcome(image, next(results)))
        for item, image in batch
    ]


def _outcome(image: _Image, answer: CaptionResult | ItemFailure) -> _Outcome:
    if isinstance(answer, ItemFailure):
        return answer
    if not math.isfinite(answer.log_prob):
        return ItemFailure(
            Reason.MODEL_ERROR, f"log_prob {answer.log_prob}, expected a finite number"
        )
    return image, answer


def _load(fetcher: Fetcher, item: Item) -> _Image:
    """Read and canonicalise one item; raises ItemFailure."""
    source = str(item["source"])
    if not source:
        raise ItemFailure(Reason.INVALID_URL, "an empty cell, expected a URL or a path")
    data = fetcher.fetch(source) if is_url(source) else read_image_file(source)
    return _Image(canonicalise(data), hashlib.sha256(data).hexdigest())
