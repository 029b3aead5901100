"""What a bulk shard does: bytes → captions, through a server or a model in this process.

Reading, fetching and decoding run ahead in threads while the model works on the batch before.
A batch is cut by position in the shard and filled up, so a caption and its score never depend on
the runner, on the number of workers, on an interruption or on what else a server is asked; the
last digits of a score may where images of the same bytes are left out (pipelines/same_bytes).
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias
from uuid import uuid4

from model.errors import InvalidInput, ItemFailure, Reason
from model.image_bytes import canonicalise
from pipelines.begun import Earlier
from pipelines.caption_rows import Asked, Told
from pipelines.clients import Clients
from pipelines.columns import CARRIED
from pipelines.companions import Companions
from pipelines.crashes import CarefulDecoder, Decode
from pipelines.earlier import RowSink
from pipelines.fetch import process_fetcher
from pipelines.fetch_order import spread_hosts
from pipelines.fetch_settings import FetchSettings
from pipelines.jobs import Item
from pipelines.output_settings import JSON_LINES
from pipelines.read_ahead import read_ahead
from pipelines.reading import (
    AHEAD_BYTES,
    BATCHES_AHEAD,
    Read,
    ReadImage,
    batches,
    known_failure,
    load_image,
    read_threads,
    weight,
)
from pipelines.row_formats import Row, RowFormat
from pipelines.same_bytes import Duplicates, remembered
from pipelines.sink import Sink
from serving import contract
from serving.client import Client

# Batches in the model at once: one encodes while the other, whose search leaves cores idle,
# writes words.
_CALLS = 2


@dataclass(frozen=True)
class CaptionSettings:
    """What a shard is captioned with.

    Attributes:
      model_name: name of the model that must answer.
      model_version: its version.
      batch_size: images in one request.
      fetch: how URLs are read.
      asked: what a row says besides the caption.
      dedupe: ask about images of the same bytes once (pipelines/same_bytes).
      retry: reasons of an earlier run's failures to try again.
      format: of the rows.
      sidecars: directory of a small text for each caption; None for none.
      copies: whether the image lies beside it.
    """

    model_name: str
    model_version: int
    batch_size: int = 32
    fetch: FetchSettings = field(default_factory=FetchSettings)
    asked: Asked = field(default_factory=Asked)
    dedupe: bool = False
    retry: frozenset[str] = frozenset()
    format: str = JSON_LINES
    sidecars: str | None = None
    copies: bool = False

    @property
    def rows(self) -> RowFormat:
        """How they are written."""
        return RowFormat(self.format, self.asked.row_fields)

    @property
    def model(self) -> dict[str, str | int]:
        """Name and version, as OUTPUT says them."""
        return {"name": self.model_name, "version": self.model_version}


_Outcome: TypeAlias = Told | ItemFailure
# An item, what was read, and the model's answer where it was asked.
_Answered: TypeAlias = tuple[Item, Read, _Outcome | None]


class CaptionShard:
    """The ShardWork of bulk captioning: one row or one failure for every item."""

    def __init__(
        self, clients: Clients, settings: CaptionSettings, decode: Decode = canonicalise
    ) -> None:
        """Keeps the settings."""
        self._clients, self._settings, self._decode = clients, settings, decode
        self._model: Client | None = None
        # Not Beam's Shared: of all that a process shares it keeps alive what was asked for last.
        self._token = uuid4().hex

    def setup(self) -> None:
        """Loads nothing yet: a shard all of whose rows are kept needs no model."""

    def process(self, items: Sequence[Item], sink: Sink) -> None:
        """Captions a shard; what an earlier run captioned stays.

        Raises:
          ServerUnavailable, ServerError: the rest of the shard cannot be captioned.
          InvalidInput: another version of the model answers than at the start.
        """
        items = spread_hosts(items)
        settings = self._settings
        with Companions(
            sink.job, settings.sidecars, copies=settings.copies, strips=settings.asked.explain
        ) as companions:
            current = partial(self._is_current, companions, sink.earlier)
            rows = RowSink(sink, items, current, settings.asked.counts, settings.rows, companions)
            if rows.waiting:
                # Once loaded, a model stays so for the next shard.
                self._model = self._model or self._clients.load()
                with CarefulDecoder(self._decode) as careful:
                    decode = careful if sink.earlier.crashed else self._decode
                    self._caption_all(rows, companions, decode)
            rows.finish()

    def _caption_all(self, rows: RowSink, companions: Companions, decode: Decode) -> None:
        duplicates = Duplicates(remembered(self._token) if self._settings.dedupe else None)
        with closing(self._answered(rows.waiting, decode, duplicates)) as answered:
            for item, read, answer in answered:
                if isinstance(read, ItemFailure):
                    rows.fail(item, read)
                    continue
                outcome = duplicates.outcome(read, answer)
                if isinstance(outcome, ItemFailure):
                    rows.fail(item, outcome)
                else:
                    rows.write(self._row(item, read, outcome, companions))
        duplicates.remember()

    def _answered(
        self, items: Sequence[Item], decode: Decode, duplicates: Duplicates
    ) -> Generator[_Answered, None, None]:
        """Every item, what was read, and the model's answer where it was asked."""
        settings = self._settings
        fetcher = process_fetcher(settings.fetch)
        load = partial(load_image, fetcher, decode, keep=settings.copies)
        ahead = settings.batch_size * BATCHES_AHEAD
        threads = read_threads(items, settings.batch_size)
        images = read_ahead(
            items,
            load,
            threads=threads,
            ahead=ahead,
            known_failure=partial(known_failure, fetcher),
            weigh=weight,
            most=AHEAD_BYTES,
        )
        # Closed whatever happens: threads that wait for room would outlive the process' last line.
        with self._client() as client, closing(images):
            ask = partial(_ask, client, settings)
            cut = batches(duplicates.once(images), settings.batch_size)
            with closing(read_ahead(cut, ask, threads=_CALLS, ahead=_CALLS)) as asked:
                for _, answered in asked:
                    if isinstance(answered, ItemFailure):
                        raise answered
                    yield from answered
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
                f"{wanted[1]} as at the start; nothing of this shard was kept. Repeat the command: "
                "it captions everything by the version that answers then, the same on every replica"
            )

    def _is_current(self, companions: Companions, earlier: Earlier, row: Row) -> bool:
        """Whether a row that an earlier run left would be made again."""
        if "reason" in row:
            # What the model refused, another one may take.
            return row["reason"] not in self._settings.retry | {Reason.MODEL_ERROR}
        made_by = (row["model"], row["model_version"])
        wanted = (self._settings.model_name, self._settings.model_version)
        if made_by != wanted:
            return False
        # A strip may be of an attempt that was cut, and of another model; a copy of another image.
        has_files = self._settings.asked.explain or self._settings.copies
        return companions.are_left(row["key"]) and not (has_files and earlier.cut)

    def _row(self, item: Item, read: ReadImage, told: Told, companions: Companions) -> Row:
        for version in told.versions:
            # The server may have changed its model, and replicas may differ.
            self._check_model(self._settings.model_name, version)
        if read.original is not None:
            companions.write_copy(item["key"], read.original)
        strip = {}
        if told.strip is not None:
            companions.write_strip(item["key"], told.strip)
            strip = {contract.ATTENTION: companions.strip_of(item["key"])}
        return {
            "key": item["key"],
            "source": item["source"],
            "caption": told.caption,
            "log_prob": told.log_prob,
            "sha256": read.sha256,
            "width": read.width,
            "height": read.height,
            "model": self._settings.model_name,
            "model_version": self._settings.model_version,
            **self._settings.asked.fields(told),
            **strip,
            **({CARRIED: item[CARRIED]} if CARRIED in item else {}),
        }


def _ask(
    client: Client, settings: CaptionSettings, batch: Sequence[tuple[Item, Read]]
) -> list[_Answered]:
    """Every item of a batch, in order, with the model's outcome where it was asked."""
    sent = [read.data if isinstance(read, ReadImage) else None for _, read in batch]
    images = [data for data in sent if data is not None]
    told = iter(settings.asked.ask(client, images, settings.batch_size))
    # Rows need the images no more.
    return [
        (item, read, None)
        if isinstance(read, ItemFailure)
        else (item, replace(read, data=None), None if read.data is None else next(told))
        for item, read in batch
    ]
