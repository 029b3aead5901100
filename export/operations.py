"""The operations that an exported graph may be made of: TensorFlow's own, and of these the known.

A server runs whatever a SavedModel holds. One that needs Python, a library of kernels, a file or
a socket is therefore refused by not being listed, and so is one that nobody has looked at: it may
lack a kernel in the server, or on a GPU.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.protobuf import saved_model_pb2

from model.errors import CheckFailed

_BY_USE = {
    "calls, branches and loops": """
        Const EnsureShape Identity NoOp Placeholder StatefulPartitionedCall
        StatelessCase StatelessIf StatelessWhile StopGradient While
    """,
    "weights": """
        DisableCopyOnRead ReadVariableOp VarHandleOp VarIsInitializedOp
    """,
    "a request's images, each for itself": """
        BatchDatasetV2 ConcatenateDataset DatasetToSingleElement IgnoreErrorsDataset OptionsDataset
        ParallelMapDatasetV2 TensorDataset TensorSliceDataset
    """,
    "image files": """
        DecodeImage DecodeJpeg DecodePng DecodeRaw ExtractJpegShape ResizeArea ReverseV2
        ScaleAndTranslate StringLength Substr
    """,
    "layers": """
        BatchMatMulV2 BiasAdd Conv2D Einsum MatMul MaxPool Pad Relu Sigmoid Softmax Tanh
    """,
    "arithmetic": """
        Abs AddV2 Cast Exp FloorDiv IsFinite Log Max Maximum Mean Min Minimum Mul Neg Prod
        RealDiv Round Rsqrt Square Sub Sum
    """,
    "comparisons": """
        All Any Equal Greater GreaterEqual Less LessEqual LogicalAnd LogicalNot LogicalOr NotEqual
        Select SelectV2 Where
    """,
    "shapes, rows and places": """
        BroadcastTo ConcatV2 ExpandDims Fill GatherV2 OneHot Pack Range Reshape Shape Size Split
        Squeeze StridedSlice TensorScatterUpdate Tile TopKV2 Transpose Unpack ZerosLike
    """,
    "words": """
        ReduceJoin StaticRegexReplace StringJoin StringStrip
    """,
}
ALLOWED = frozenset(name for names in _BY_USE.values() for name in names.split())
# They read and write files that their inputs name: how a model is loaded, no part of an answer.
SAVER = frozenset(
    [
        "AssignVariableOp",
        "MergeV2Checkpoints",
        "RestoreV2",
        "SaveV2",
        "ShardedFilename",
        "StaticRegexFullMatch",
    ]
)


@dataclass(frozen=True)
class Operations:
    """Kinds of operations in a SavedModel.

    Attributes:
      answering: that a signature runs.
      other: that none does.
    """

    answering: frozenset[str]
    other: frozenset[str]


def operations(saved_model: Path) -> Operations:
    """Kinds of operations in every graph of a saved_model.pb and in their functions.

    Raises:
      CheckFailed: it cannot be read.
    """
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(saved_model.read_bytes())
    except (OSError, DecodeError) as error:
        raise CheckFailed(f"{saved_model}: cannot be read ({error}); export again") from error
    answering, everything = set[str](), set[str]()
    for meta in message.meta_graphs:
        functions = {
            function.signature.name: function for function in meta.graph_def.library.function
        }
        nodes = {node.name: node for node in meta.graph_def.node}
        # A node of a function may call another by name, as if it were an operation.
        everything |= _kinds(nodes.values()) - set(functions)
        for function in functions.values():
            everything |= _kinds(function.node_def) - set(functions)
        reached = list(_reached(_answers(meta, nodes), functions))
        answering |= _kinds(reached) - set(functions)
    return Operations(frozenset(answering), frozenset(everything - answering))


def _kinds(nodes: Iterable[Any]) -> set[str]:
    return {node.op for node in nodes}


def _answers(meta: Any, nodes: Mapping[str, Any]) -> list[Any]:
    """Nodes of the graph that the outputs of its signatures depend on."""
    names = [
        info.name
        for name, signature in meta.signature_def.items()
        # TensorFlow's own bookkeeping, which loads the weights.
        if not name.startswith("__")
        for info in signature.outputs.values()
    ]
    found: dict[str, Any] = {}
    while names:
        name = names.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name not in found:
            found[name] = nodes[name]
            names += nodes[name].input
    return list(found.values())


def _reached(nodes: Iterable[Any], functions: Mapping[str, Any]) -> Iterator[Any]:
    """These nodes and those of all functions that they call, or name in any attribute."""
    waiting, seen = list(nodes), set[str]()
    while waiting:
        node = waiting.pop()
        yield node
        named = {node.op}
        for value in node.attr.values():
            named |= {value.func.name, *(function.name for function in value.list.func)}
        for name in (named & set(functions)) - seen:
            seen.add(name)
            waiting += functions[name].node_def


def check_operations(saved_model: Path) -> int:
    """Count the kinds; raises CheckFailed naming those that are not allowed."""
    found = operations(saved_model)
    others = sorted((found.answering - ALLOWED) | (found.other - ALLOWED - SAVER))
    if others:
        raise CheckFailed(
            f"export: operations that no server is known to have, or that touch files: "
            f"{', '.join(others)}; see export/operations.py"
        )
    return len(found.answering | found.other)
