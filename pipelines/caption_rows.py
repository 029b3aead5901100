"""What a bulk row says besides the best caption, and how a model is asked for it.

Free of what is heavy, so that the command may import it for its flags.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.errors import InvalidInput, ItemFailure, Reason
from serving import contract

if TYPE_CHECKING:
    from serving.client import CaptionResult, Client, Hypothesis, ModelMetadata

BELOW = "below_min_log_prob"


@dataclass(frozen=True)
class Told:
    """What the model says of one image.

    Attributes:
      caption: the best one.
      log_prob: natural logarithm of its probability.
      model_version: version of the model whose caption it is.
      nbest: the best ones, best first; empty where they were not asked for.
    """

    caption: str
    log_prob: float
    model_version: int
    nbest: "tuple[Hypothesis, ...]" = ()


@dataclass(frozen=True)
class Asked:
    """What a row says besides the best caption.

    Attributes:
      nbest: captions of each image; 0 for the best alone.
      min_log_prob: below it a row is marked; None marks none.
    """

    nbest: int = 0
    min_log_prob: float | None = None

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
        if self.nbest:
            for found in client.nbest_each(images, fill_to):
                yield found if isinstance(found, ItemFailure) else self._ranked(found)
        else:
            for result in client.caption_each(images, fill_to):
                yield result if isinstance(result, ItemFailure) else _best(result)

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
        """Raise InvalidInput where a model has fewer captions of an image than asked for."""
        _, most = model.signatures[contract.NBEST].outputs[contract.CAPTIONS].dims or (None, None)
        if most is not None and self.nbest > most:
            raise InvalidInput(
                f"--nbest {self.nbest}: {model.name} has {most} captions of an image, expected at "
                "most as many; export it with a larger beam width for more"
            )

    def _ranked(self, hypotheses: "Sequence[Hypothesis]") -> Told | ItemFailure:
        best = hypotheses[0]
        # A search that finds fewer captions than it is wide fills the answer up.
        found = (each for each in hypotheses[: self.nbest] if math.isfinite(each.log_prob))
        return _finite(Told(best.caption, best.log_prob, best.model_version, tuple(found)))


def _best(result: "CaptionResult") -> Told | ItemFailure:
    return _finite(Told(result.caption, result.log_prob, result.model_version))


def _finite(told: Told) -> Told | ItemFailure:
    if math.isfinite(told.log_prob):
        return told
    return ItemFailure(Reason.MODEL_ERROR, f"log_prob {told.log_prob}, expected a finite number")
