"""The operations that an exported graph may be made of: TensorFlow's own, and of these the known.

A server runs whatever a SavedModel holds. One that needs Python, a library of kernels, a file or
a socket is therefore refused by not being listed, and so is one that nobody has looked at: it may
lack a kernel in the server, or on a GPU.
"""

from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.protobuf import saved_model_pb2

from model.errors import CheckFailed

_BY_USE = {
    "calls, branches and loops": """
        Const EnsureShape Identity NoOp PartitionedCall Placeholder StatefulPartitionedCall
        StatelessCase StatelessIf StatelessWhile StopGradient While
    """,
    "weights and assets, read from the SavedModel's own files": """
        AssignVariableOp DisableCopyOnRead MergeV2Checkpoints ReadVariableOp RestoreV2 SaveV2
        ShardedFilename StaticRegexFullMatch VarHandleOp VarIsInitializedOp
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


def operations(saved_model: Path) -> set[str]:
    """Kinds of operations in every graph of a saved_model.pb and in their functions.

    Raises:
      CheckFailed: it cannot be read.
    """
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(saved_model.read_bytes())
    except (OSError, DecodeError) as error:
        raise CheckFailed(f"{saved_model}: cannot be read ({error}); export again") from error
    found: set[str] = set()
    for meta in message.meta_graphs:
        found.update(node.op for node in meta.graph_def.node)
        functions = meta.graph_def.library.function
        # A node of a function may call another by name, as if it were an operation.
        names = {function.signature.name for function in functions}
        found.update(node.op for function in functions for node in function.node_def)
        found -= names
    return found


def check_operations(saved_model: Path) -> int:
    """Count the kinds; raises CheckFailed naming those that are not allowed."""
    found = operations(saved_model)
    others = sorted(found - ALLOWED)
    if others:
        raise CheckFailed(
            f"export: operations that no server is known to have: {', '.join(others)}; "
            "see export/operations.py"
        )
    return len(found)
