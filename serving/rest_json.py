"""JSON of TensorFlow Serving's REST API ↔ arrays (its util/json_tensor.cc)."""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import contract
from serving.errors import INVALID_ARGUMENT, CallFailed
from serving.metadata import TensorSpec

INSTANCES, INPUTS = "instances", "inputs"
_B64 = "b64"
_MAX_SHOWN = 100
_MAX_RANK = 8


def parse(body: bytes | bytearray) -> tuple[str, str, np.ndarray]:
    """A predict request.

    Returns:
      Name of the signature, empty for the default; INSTANCES (row by row) or INPUTS (by
      column); image bytes, an object array of any rank.

    Raises:
      CallFailed: INVALID_ARGUMENT.
    """
    document = _document(body)
    signature = document.get("signature_name", "")
    if not isinstance(signature, str):
        raise _refused(document, "not formatted correctly. 'signature_name' must be a string")
    if INSTANCES in document and INPUTS in document:
        raise _refused(document, "expecting only one of 'inputs' or 'instances' keys to exist")
    if INPUTS in document:
        return signature, INPUTS, _tensor(_column(document[INPUTS]))
    if INSTANCES not in document:
        raise CallFailed(INVALID_ARGUMENT, "Missing 'inputs' or 'instances' key")
    rows = document[INSTANCES]
    if not isinstance(rows, list):
        raise _refused(document, "Expecting 'instances' to be an list/array")
    if not rows:
        raise _refused(document, "No values in 'instances' array")
    return signature, INSTANCES, _tensor([_row(row, place) for place, row in enumerate(rows)])


def spec(array: np.ndarray) -> TensorSpec:
    """Type and shape of parsed image bytes."""
    return TensorSpec("string", array.shape)


def answer(layout: str, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A predict answer in the layout that was asked in."""
    values = {name: _values(array) for name, array in outputs.items()}
    if layout == INPUTS:
        return {"outputs": values}
    rows = zip(*values.values(), strict=True)
    return {"predictions": [dict(zip(values, row, strict=True)) for row in rows]}


def _document(body: bytes | bytearray) -> dict[str, Any]:
    if not body:
        raise CallFailed(INVALID_ARGUMENT, "JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    # A RecursionError: deeply nested.
    except (ValueError, RecursionError) as error:
        raise CallFailed(INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise _refused(document, "Is not object")
    return document


def _row(row: Any, place: int) -> Any:
    """The image of an element of `instances`: itself, or under the input's name."""
    if not isinstance(row, dict) or set(row) == {_B64}:
        return row
    if set(row) != {contract.IMAGE_BYTES}:
        raise CallFailed(
            INVALID_ARGUMENT,
            f"Failed to process element: {place} of 'instances' list. JSON object: {_shown(row)} "
            f"keys must be equal to: {contract.IMAGE_BYTES}",
        )
    return row[contract.IMAGE_BYTES]


def _column(value: Any) -> Any:
    if not isinstance(value, dict) or set(value) == {_B64}:
        return value
    if contract.IMAGE_BYTES not in value:
        raise CallFailed(
            INVALID_ARGUMENT, f"Missing named input: {contract.IMAGE_BYTES} in 'inputs' object."
        )
    return value[contract.IMAGE_BYTES]


def _tensor(value: Any) -> np.ndarray:
    shape = _shape(value)
    if len(shape) > _MAX_RANK:
        raise _refused(value, f"is nested {len(shape)} lists deep, at most {_MAX_RANK} are read")
    flat: list[bytes] = []
    _fill(value, shape, 0, flat)
    array = np.empty(len(flat), dtype=object)
    array[:] = flat
    return array.reshape(shape)


def _shape(value: Any) -> list[int]:
    """As the first elements have it."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _fill(value: Any, shape: list[int], level: int, flat: list[bytes]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise _refused(
                value,
                f"found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}",
            )
        flat.append(_bytes(value))
        return
    if level >= len(shape) or len(value) != shape[level]:
        raise CallFailed(
            INVALID_ARGUMENT,
            f"Encountered list at unexpected size: {len(value)} at level: {level}; "
            "expected as many elements in every list",
        )
    for element in value:
        _fill(element, shape, level + 1, flat)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise _refused(value, "is no Unicode text") from error
    if not isinstance(value, dict):
        raise _refused(value, f"Type: {type(value).__name__} is not of expected type: string")
    if set(value) != {_B64} or not isinstance(value[_B64], str):
        raise _refused(value, "not formatted correctly for base64 data")
    # Unpadded and broken into lines, too, as TensorFlow Serving takes it.
    text = "".join(value[_B64].split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CallFailed(INVALID_ARGUMENT, "Unable to base64 decode") from error


def _values(array: np.ndarray) -> Any:
    if array.dtype == object:
        flat = [value.decode() for value in array.reshape(-1)]
    elif array.dtype.kind == "f":
        # As short as the type allows: 0.2 as a float32 is not 0.20000000298023224.
        flat = [float(text) for text in array.reshape(-1).astype(str)]
    else:
        flat = array.reshape(-1).tolist()
    nested = np.empty(len(flat), dtype=object)
    nested[:] = flat
    return nested.reshape(array.shape).tolist()


def _refused(value: Any, why: str) -> CallFailed:
    return CallFailed(INVALID_ARGUMENT, f"JSON Value: {_shown(value)} {why}")


def _shown(value: Any) -> str:
    """Its first characters; the rest of it, which may be many MiB, is not written."""
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part[: _MAX_SHOWN + 1]
        if len(text) > _MAX_SHOWN:
            return f"{text[:_MAX_SHOWN]}…"
    return text
