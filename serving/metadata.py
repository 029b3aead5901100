"""What a model says of itself, and whether that is what `serving.contract` asks for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from serving import contract
from serving.errors import ModelMismatch


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a model declares it or a request carries it.

    Attributes:
      dtype: TensorFlow's name of the type.
      dims: sizes, None where any size goes; None as a whole where the rank is unknown.
    """

    dtype: str
    dims: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.dims is None:
            return f"{self.dtype} of unknown rank"
        sizes = ",".join("?" if size is None else str(size) for size in self.dims)
        return f"{self.dtype} [{sizes}]"

    def accepts(self, given: "TensorSpec") -> bool:
        """True if a tensor of that type and shape can be fed here."""
        if self.dtype != given.dtype:
            return False
        if self.dims is None or given.dims is None:
            return self.dims is None
        return len(self.dims) == len(given.dims) and all(
            size in (None, other) for size, other in zip(self.dims, given.dims, strict=True)
        )


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one function of a model, by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class ModelMetadata:
    """Name, version and signatures of the model that answers."""

    name: str
    version: int
    signatures: Mapping[str, Signature]


def from_signature_defs(definitions: Mapping[str, Any]) -> dict[str, Signature]:
    """Reads `SignatureDef` messages, as a SavedModel and GetModelMetadata carry them."""
    return {
        name: Signature(_tensors(definition.inputs), _tensors(definition.outputs))
        for name, definition in definitions.items()
        # TensorFlow's own bookkeeping signature, `__saved_model_init_op`.
        if not name.startswith("__")
    }


def check(metadata: ModelMetadata) -> None:
    """Raises ModelMismatch, naming every difference from `serving.contract`.

    Outputs that the contract does not know are let pass: a newer export may add some.
    """
    found = list(_differences(metadata.signatures))
    if found:
        raise ModelMismatch(
            f"model {metadata.name} version {metadata.version} is not a captionbeam model: "
            f"{'; '.join(found)}; export it with `captionbeam export`"
        )


def _tensors(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(tf.as_dtype(info.dtype).name, _dims(info.tensor_shape))
        for name, info in infos.items()
    }


def _dims(shape: Any) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)


def _differences(signatures: Mapping[str, Signature]) -> Iterator[str]:
    for name, outputs in contract.OUTPUTS.items():
        if name not in signatures:
            given = ", ".join(sorted(signatures)) or "none"
            yield f"signature {name} is missing (it has {given})"
            continue
        signature = signatures[name]
        yield from _tensor_differences(f"{name} input", signature.inputs, contract.INPUTS)
        yield from _tensor_differences(f"{name} output", signature.outputs, outputs)
        for extra in sorted(set(signature.inputs) - set(contract.INPUTS)):
            yield f"{name} input {extra} is not known here"


def _tensor_differences(
    place: str, given: Mapping[str, TensorSpec], expected: Mapping[str, contract.Tensor]
) -> Iterator[str]:
    for name, tensor in expected.items():
        wanted = f"expected {tensor.dtype} [{','.join(tensor.dims)}]"
        if name not in given:
            yield f"{place} {name} is missing"
        elif not _fits(given[name], tensor):
            yield f"{place} {name} is {given[name]}, {wanted}"


def _fits(given: TensorSpec, expected: contract.Tensor) -> bool:
    # A fixed batch size would refuse every other number of images.
    return (
        given.dtype == expected.dtype
        and given.dims is not None
        and len(given.dims) == len(expected.dims)
        and given.dims[0] is None
    )
