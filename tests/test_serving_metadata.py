"""What of a model's metadata is held against the contract."""

import dataclasses

import pytest

from serving import contract, metadata
from serving.errors import ModelMismatch
from serving.metadata import ModelMetadata, Signature, TensorSpec

SIZES = {"N": None, "T": 20, "K": 3, "P": 49, "G": 7, "2": 2}


def spec(tensor: contract.Tensor) -> TensorSpec:
    return TensorSpec(tensor.dtype, tuple(SIZES[letter] for letter in tensor.dims))


@pytest.fixture
def ours() -> ModelMetadata:
    inputs = {name: spec(tensor) for name, tensor in contract.INPUTS.items()}
    signatures = {
        name: Signature(inputs, {key: spec(tensor) for key, tensor in outputs.items()})
        for name, outputs in contract.OUTPUTS.items()
    }
    return ModelMetadata("captioner", 1, signatures)


def with_output(ours: ModelMetadata, name: str, given: TensorSpec) -> ModelMetadata:
    """The same model, `explain` answering one output of another type or shape."""
    explain = ours.signatures[contract.EXPLAIN]
    changed = dataclasses.replace(explain, outputs={**explain.outputs, name: given})
    return dataclasses.replace(ours, signatures={**ours.signatures, contract.EXPLAIN: changed})


def test_the_contract_itself_passes_with_outputs_to_come(ours: ModelMetadata) -> None:
    metadata.check(ours)
    metadata.check(with_output(ours, "status", TensorSpec("int32", (None,))))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (TensorSpec("float32", (1, 20, 49)), r"float32 \[1,20,49\]"),
        (TensorSpec("float32", (None, 20)), r"float32 \[\?,20\]"),
        (TensorSpec("float64", (None, 20, 49)), r"float64 \[\?,20,49\]"),
        (TensorSpec("float32", None), r"float32 of unknown rank"),
    ],
)
def test_another_type_rank_or_a_fixed_batch_is_refused(
    ours: ModelMetadata, given: TensorSpec, words: str
) -> None:
    message = rf"explain output attention is {words}, expected float32 \[N,T,P\]; export it"
    with pytest.raises(ModelMismatch, match=message):
        metadata.check(with_output(ours, contract.ATTENTION, given))


def test_accepts_compares_type_rank_and_fixed_sizes() -> None:
    images = TensorSpec("string", (None, 3))
    assert images.accepts(TensorSpec("string", (7, 3)))
    assert not images.accepts(TensorSpec("string", (7, 4)))
    assert not images.accepts(TensorSpec("string", (7,)))
    assert not images.accepts(TensorSpec("float32", (7, 3)))
    assert TensorSpec("string", None).accepts(TensorSpec("string", (7, 4)))
