"""Tensors of an answer → results, one for each image sent.

Letters as in `model`: N images, K hypotheses, T tokens, P grid cells.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from model.errors import ItemFailure, Reason
from model.image_bytes import MIN_SIDE, Limits
from serving import contract
from serving.contract import Status
from serving.errors import InvalidRequest, ServerError

_Result = TypeVar("_Result")

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
class Answer:
    """What a model answers to N images.

    Attributes:
      outputs: by name; strings as object arrays of bytes.
      version: of the model that answered; None where a server does not tell.
    """

    outputs: Mapping[str, np.ndarray]
    version: int | None


@dataclass(frozen=True)
class Row:
    """The part of an answer that belongs to one image.

    Attributes:
      tensors: the outputs of the contract, without their dimension 0.
      version: of the model that answered.
    """

    tensors: Mapping[str, np.ndarray]
    version: int


@dataclass(frozen=True)
class CaptionResult:
    """The best caption of an image.

    Attributes:
      caption: words joined by spaces.
      log_prob: natural logarithm of its probability.
      token_ids: vocabulary ids, `length` of them.
      length: number of tokens.
      model_version: version of the model whose caption it is.
    """

    caption: str
    log_prob: float
    token_ids: tuple[int, ...]
    length: int
    model_version: int


@dataclass(frozen=True)
class Explained(CaptionResult):
    """A caption and where the model looked.

    Attributes:
      words: `length` words.
      attention: float32 [length, P]; row t is the weight of each grid cell at word t.
      places: where the grid's rows and columns look, shares of height and width: float32 [2, G].
    """

    words: list[str]
    attention: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Hypothesis:
    """One of the K captions that the beam search found.

    Attributes:
      caption: words joined by spaces.
      log_prob: as in CaptionResult.
      model_version: likewise.
    """

    caption: str
    log_prob: float
    model_version: int


def rows(signature: str, answer: Answer, count: int, version: int) -> Iterator[Row]:
    """Cuts an answer into one row for each of `count` images.

    Args:
      signature: what was asked for.
      answer: of the model.
      count: images sent.
      version: of the model, for an answer that does not tell its own.

    Raises:
      ServerError: an output of the contract is missing, or has not `count` rows, so that
        nobody can tell which row belongs to which image.
    """
    names, outputs = contract.OUTPUTS[signature], answer.outputs
    for name, tensor in names.items():
        if name not in outputs:
            raise ServerError(f"the answer to {signature} has no {name}; expected {list(names)}")
        shape = outputs[name].shape
        if len(shape) != len(tensor.dims) or shape[0] != count:
            raise ServerError(
                f"{signature} answered {name} of shape {list(shape)} to {count} images; "
                f"expected [{','.join((str(count), *tensor.dims[1:]))}]; nothing of it is used"
            )
    told = version if answer.version is None else answer.version
    for row in range(count):
        yield Row({name: outputs[name][row] for name in names}, told)


def failure(row: Row) -> ItemFailure | None:
    """Why the model has no caption for an image; None where it has one."""
    status = int(row.tensors[contract.STATUS])
    if status == Status.OK:
        return None
    unknown = (
        Reason.MODEL_ERROR,
        f"status {status} of the model, expected {list(map(int, Status))}",
    )
    reason, why = _FAILURES.get(status, unknown)
    return ItemFailure(reason, f"the model's own check: {why}")


def caption_result(row: Row) -> CaptionResult:
    """A row of `serving_default`."""
    tensors = row.tensors
    length = int(tensors[contract.LENGTH])
    return CaptionResult(
        _text(tensors[contract.CAPTION]),
        float(tensors[contract.LOG_PROB]),
        tuple(int(token) for token in tensors[contract.TOKEN_IDS][:length]),
        length,
        row.version,
    )


def explained(row: Row) -> Explained:
    """A row of `explain`."""
    best = caption_result(row)
    return Explained(
        best.caption,
        best.log_prob,
        best.token_ids,
        best.length,
        best.model_version,
        _texts(row.tensors[contract.WORDS][: best.length]),
        row.tensors[contract.ATTENTION][: best.length],
        row.tensors[contract.PLACES],
    )


def hypotheses(row: Row) -> list[Hypothesis]:
    """A row of `nbest`, best first."""
    return [
        Hypothesis(caption, float(log_prob), row.version)
        for caption, log_prob in zip(
            _texts(row.tensors[contract.CAPTIONS]), row.tensors[contract.LOG_PROBS], strict=True
        )
    ]


def all_of(results: Iterable[_Result | ItemFailure]) -> list[_Result]:
    """The results; raises InvalidRequest for the first failure, and takes no more of them."""
    found: list[_Result] = []
    for result in results:
        if isinstance(result, ItemFailure):
            raise InvalidRequest(f"image {len(found) + 1}: {result.message}")
        found.append(result)
    return found


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        raise ServerError(f"a caption of type {type(value).__name__}; expected a string tensor")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ServerError(f"a caption {value[:80]!r} ({error}); expected UTF-8") from error


def _texts(values: Sequence[object] | np.ndarray) -> list[str]:
    return [_text(value) for value in values]
