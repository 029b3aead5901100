"""Tensors of an answer → results, one for each image sent.

Letters as in `model`: N images, K hypotheses, T tokens, P grid cells.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model.errors import ItemFailure, Reason
from model.image_bytes import MIN_SIDE, Limits
from serving import contract
from serving.contract import Status
from serving.errors import ServerError

_FAILURES: Mapping[int, tuple[Reason, str]] = {
    Status.NOT_AN_IMAGE: (Reason.NOT_AN_IMAGE, "expected a JPEG, PNG, GIF or BMP file"),
    Status.DECODE: (Reason.DECODE, "TensorFlow cannot decode it, expected a whole image"),
    Status.TOO_MANY_PIXELS: (
        Reason.TOO_MANY_PIXELS,
        f"expected at most {Limits().max_pixels} pixels in all",
    ),
    Status.TOO_SMALL: (Reason.TOO_SMALL, f"expected at least {MIN_SIDE} pixels a side"),
    Status.TOO_MANY_BYTES: (
        Reason.TOO_MANY_BYTES,
        f"expected at most {Limits().max_bytes} bytes, got more",
    ),
}


@dataclass(frozen=True)
class CaptionResult:
    """The best caption of an image.

    Attributes:
      caption: words joined by spaces.
      log_prob: natural logarithm of its probability.
      token_ids: vocabulary ids, `length` of them.
      length: number of tokens.
    """

    caption: str
    log_prob: float
    token_ids: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Explained(CaptionResult):
    """A caption and where the model looked.

    Attributes:
      words: `length` words.
      attention: float32 [length, P]; row t is the weight of each grid cell at word t.
    """

    words: list[str]
    attention: np.ndarray


@dataclass(frozen=True)
class Hypothesis:
    """One of the K captions that the beam search found.

    Attributes:
      caption: words joined by spaces.
      log_prob: as in CaptionResult.
    """

    caption: str
    log_prob: float


def rows(
    signature: str, outputs: Mapping[str, np.ndarray], count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Cuts an answer into one mapping for each of `count` images.

    Raises:
      ServerError: an output of the contract is missing, or has not `count` rows, so that
        nobody can tell which row belongs to which image.
    """
    names = contract.OUTPUTS[signature]
    for name, tensor in names.items():
        if name not in outputs:
            raise ServerError(f"the answer to {signature} has no {name}; expected {list(names)}")
        shape = outputs[name].shape
        if len(shape) != len(tensor.dims) or shape[0] != count:
            raise ServerError(
                f"{signature} answered {name} of shape {list(shape)} to {count} images; "
                f"expected [{','.join((str(count), *tensor.dims[1:]))}]; nothing of it is used"
            )
    for row in range(count):
        yield {name: outputs[name][row] for name in names}


def failure(row: Mapping[str, np.ndarray]) -> ItemFailure | None:
    """Why the model has no caption for an image; None where it has one."""
    status = int(row[contract.STATUS])
    if status == Status.OK:
        return None
    unknown = (
        Reason.MODEL_ERROR,
        f"status {status} of the model, expected {list(map(int, Status))}",
    )
    reason, why = _FAILURES.get(status, unknown)
    return ItemFailure(reason, f"the model's own check: {why}")


def caption_result(row: Mapping[str, np.ndarray]) -> CaptionResult:
    """A row of `serving_default`."""
    length = int(row[contract.LENGTH])
    return CaptionResult(
        _text(row[contract.CAPTION]),
        float(row[contract.LOG_PROB]),
        tuple(int(token) for token in row[contract.TOKEN_IDS][:length]),
        length,
    )


def explained(row: Mapping[str, np.ndarray]) -> Explained:
    """A row of `explain`."""
    best = caption_result(row)
    return Explained(
        best.caption,
        best.log_prob,
        best.token_ids,
        best.length,
        _texts(row[contract.WORDS][: best.length]),
        row[contract.ATTENTION][: best.length],
    )


def hypotheses(row: Mapping[str, np.ndarray]) -> list[Hypothesis]:
    """A row of `nbest`, best first."""
    return [
        Hypothesis(caption, float(log_prob))
        for caption, log_prob in zip(
            _texts(row[contract.CAPTIONS]), row[contract.LOG_PROBS], strict=True
        )
    ]


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        raise ServerError(f"a caption of type {type(value).__name__}; expected a string tensor")
    return value.decode()


def _texts(values: Sequence[object] | np.ndarray) -> list[str]:
    return [_text(value) for value in values]
