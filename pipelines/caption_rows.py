"""What a bulk row says, and how a model is asked for it.

Free of what is heavy, so that the command may import it for its flags.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from model.errors import InvalidInput, ItemFailure, Reason
from pipelines.columns import CARRIED
from serving import contract

if TYPE_CHECKING:
    from serving.client import CaptionResult, Client, Explained, Hypothesis, ModelMetadata

BELOW = "below_min_log_prob"


class Kind(Enum):
    """What a field of a row holds; only those of JSON may be missing."""

    TEXT = auto()
    INTEGER = auto()
    NUMBER = auto()
    FLAG = auto()
    CAPTIONS = auto()
    JSON = auto()


_OF_EVERY_ROW = {
    "key": Kind.TEXT,
    "source": Kind.TEXT,
    "caption": Kind.TEXT,
    "log_prob": Kind.NUMBER,
    "sha256": Kind.TEXT,
    "width": Kind.INTEGER,
    "height": Kind.INTEGER,
    "model": Kind.TEXT,
    "model_version": Kind.INTEGER,
}


@dataclass(frozen=True)
class Told:
    """What the model says of one image.

    Attributes:
      caption: the best one.
      log_prob: natural logarithm of its probability.
      versions: versions of the model that answered; the first one's caption it is.
      nbest: the best ones, best first; empty where they were not asked for.
      strip: PNG of where it looked at each word; None where it was not asked for.
    """

    caption: str
    log_prob: float
    versions: tuple[int, ...]
    nbest: "tuple[Hypothesis, ...]" = ()
    strip: bytes | None = None


@dataclass(frozen=True)
class Asked:
    """What a row says besides the best caption.

    Attributes:
      nbest: captions of each image; 0 for the best alone.
      min_log_prob: below it a row is marked; None marks none.
      explain: whether it names a picture of where the model looked at each word.
    """

    nbest: int = 0
    min_log_prob: float | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.nbest < 0:
            raise InvalidInput(f"--nbest {self.nbest}: expected 1 or more")
        if self.min_log_prob is not None and not self.min_log_prob <= 0:
            raise InvalidInput(
                f"--min_log_prob {self.min_log_prob:g}: expected a natural logarithm of a "
                "probability, 0 or below, such as -12"
            )

    def ask(
        self, client: "Client", images: Sequence[bytes], fill_to: int
    ) -> Iterator[Told | ItemFailure]:
        """Caption canonical image bytes: for each, in order, what the model says.

        Args:
          client: of the model.
          images: of one batch.
          fill_to: as `serving.client.Client.caption_each`.

        Raises:
          CaptionbeamError: as `serving.client.Client.caption_each`.
        """
        ranked = client.nbest_each(images, fill_to) if self.nbest else None
        if self.explain:
            shown = client.explain_each(images, fill_to)
            for index, data in enumerate(images):
                best = shown[index]
                told = _best(best) if ranked is None else self._ranked(ranked[index])
                yield told if isinstance(told, ItemFailure) else _with_strip(told, data, best)
        elif ranked is not None:
            yield from map(self._ranked, ranked)
        else:
            yield from map(_best, client.caption_each(images, fill_to))

    @property
    def row_fields(self) -> tuple[tuple[str, Kind], ...]:
        """Names and kinds of a row's fields, in order."""
        return tuple(
            {
                **_OF_EVERY_ROW,
                **({BELOW: Kind.FLAG} if self.min_log_prob is not None else {}),
                **({contract.NBEST: Kind.CAPTIONS} if self.nbest else {}),
                **({contract.ATTENTION: Kind.TEXT} if self.explain else {}),
                CARRIED: Kind.JSON,
            }.items()
        )

    def fields(self, told: Told) -> dict[str, Any]:
        """What a row says besides key, source, best caption, image and model, as JSON."""
        found: dict[str, Any] = {}
        if self.min_log_prob is not None:
            found[BELOW] = told.log_prob < self.min_log_prob
        if self.nbest:
            found[contract.NBEST] = [
                {"caption": each.caption, "log_prob": each.log_prob} for each in told.nbest
            ]
        return found

    def counts(self, row: Mapping[str, Any]) -> dict[str, int]:
        """What the summary counts of a row."""
        return {} if self.min_log_prob is None else {BELOW: int(row[BELOW])}

    def check(self, model: "ModelMetadata") -> None:
        """Raise InvalidInput where a model cannot say what is asked for."""
        shape = model.signatures[contract.EXPLAIN].outputs[contract.ATTENTION].dims
        cells = shape[-1] if shape else None
        if self.explain and cells is not None and math.isqrt(cells) ** 2 != cells:
            raise InvalidInput(
                f"--explain: {model.name} looks at {cells} cells, expected a square grid such as "
                "49; leave it out"
            )
        _, most = model.signatures[contract.NBEST].outputs[contract.CAPTIONS].dims or (None, None)
        if most is not None and self.nbest > most:
            raise InvalidInput(
                f"--nbest {self.nbest}: {model.name} has {most} captions of an image, expected at "
                "most as many; export it with a larger beam width for more"
            )

    def _ranked(self, hypotheses: "Sequence[Hypothesis] | ItemFailure") -> Told | ItemFailure:
        if isinstance(hypotheses, ItemFailure):
            return hypotheses
        best = hypotheses[0]
        # A search that finds fewer captions than it is wide fills the answer up.
        found = (each for each in hypotheses[: self.nbest] if math.isfinite(each.log_prob))
        return _finite(Told(best.caption, best.log_prob, (best.model_version,), tuple(found)))


def _best(result: "CaptionResult | ItemFailure") -> Told | ItemFailure:
    if isinstance(result, ItemFailure):
        return result
    return _finite(Told(result.caption, result.log_prob, (result.model_version,)))


def _with_strip(told: Told, data: bytes, shown: "Explained | ItemFailure") -> Told | ItemFailure:
    """The same, with the picture of canonical image bytes."""
    from pipelines.attention_strips import draw

    if isinstance(shown, ItemFailure):
        return shown
    strip = draw(data, shown.words, shown.attention, shown.places)
    return replace(told, versions=(*told.versions, shown.model_version), strip=strip)


def _finite(told: Told) -> Told | ItemFailure:
    if math.isfinite(told.log_prob):
        return told
    return ItemFailure(Reason.MODEL_ERROR, f"log_prob {told.log_prob}, expected a finite number")
