"""How requests are gathered into batches: the settings, and TensorFlow Serving's file of them.

The file is the text form of `BatchingParameters`, tensorflow_serving/servables/tensorflow/
session_bundle_config.proto of github.com/tensorflow/serving, which tensorflow-serving-api does
not ship: its fields are declared here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from model.errors import InvalidInput

BATCHING_FILE = "batching_parameters.txt"

# Name and number of each wrapped integer; `allowed_batch_sizes` is number 6.
_WRAPPED = {
    "max_batch_size": 1,
    "batch_timeout_micros": 2,
    "max_enqueued_batches": 3,
    "num_batch_threads": 4,
}
_ALLOWED = "allowed_batch_sizes"


@dataclass(frozen=True)
class BatchingParameters:
    """Settings of TensorFlow's batch scheduler, one queue a signature.

    Attributes:
      max_batch_size: images in a batch at most, and so in a request.
      batch_timeout_micros: microseconds that a batch which is not full waits for more.
      max_enqueued_batches: batches that may wait.
      num_batch_threads: batches computed at a time.
      allowed_batch_sizes: a batch is filled up to the next of these, rising to max_batch_size;
        empty for any size.
    """

    max_batch_size: int = 32
    batch_timeout_micros: int = 5000
    max_enqueued_batches: int = 8
    num_batch_threads: int = 2
    allowed_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in _WRAPPED:
            least = 0 if name == "batch_timeout_micros" else 1
            if getattr(self, name) < least:
                raise InvalidInput(
                    f"{name} of {getattr(self, name)}: expected {least} or more; mend it"
                )
        sizes = self.allowed_batch_sizes
        rising = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
        if not rising or (sizes and sizes[-1] != self.max_batch_size):
            raise InvalidInput(
                f"{_ALLOWED} of {list(sizes)}: expected rising sizes, the last of which is "
                f"max_batch_size ({self.max_batch_size}); mend them"
            )

    @property
    def capacity(self) -> int:
        """Images that may wait or be computed at a time."""
        return self.max_batch_size * (self.max_enqueued_batches + self.num_batch_threads)

    def to_text(self) -> str:
        """The contents of the file."""
        message = _Message()
        for name in _WRAPPED:
            getattr(message, name).value = getattr(self, name)
        message.allowed_batch_sizes.extend(self.allowed_batch_sizes)
        return str(text_format.MessageToString(message))


def load(path: Path) -> BatchingParameters:
    """Reads a file; what it does not set is as in a BatchingParameters().

    Raises:
      InvalidInput: it is unreadable, or its values cannot be used.
    """
    try:
        message = text_format.Parse(path.read_text(encoding="utf-8"), _Message())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise InvalidInput(
            f"{path}: cannot be read ({error}); expected what `captionbeam export` writes"
        ) from error
    found: dict[str, Any] = {
        name: getattr(message, name).value for name in _WRAPPED if message.HasField(name)
    }
    if message.allowed_batch_sizes:
        found[_ALLOWED] = tuple(message.allowed_batch_sizes)
    elif "max_batch_size" in found:
        found[_ALLOWED] = ()
    try:
        return BatchingParameters(**found)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error


def _message_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    declared = [
        field(
            name=name,
            number=number,
            label=field.LABEL_OPTIONAL,
            type=field.TYPE_MESSAGE,
            type_name=".google.protobuf.Int64Value",
        )
        for name, number in _WRAPPED.items()
    ]
    declared += [
        field(
            name="thread_pool_name",
            number=5,
            label=field.LABEL_OPTIONAL,
            type=field.TYPE_MESSAGE,
            type_name=".google.protobuf.StringValue",
        ),
        field(name=_ALLOWED, number=6, label=field.LABEL_REPEATED, type=field.TYPE_INT64),
        field(
            name="pad_variable_length_inputs",
            number=7,
            label=field.LABEL_OPTIONAL,
            type=field.TYPE_BOOL,
        ),
    ]
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    file = descriptor_pb2.FileDescriptorProto(
        name="captionbeam/batching_parameters.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers.name],
        message_type=[descriptor_pb2.DescriptorProto(name="BatchingParameters", field=declared)],
    )
    # A pool of its own: the official message may be loaded beside it.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(wrappers)
    pool.Add(file)
    found = pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    return message_factory.GetMessageClass(found)


_Message = _message_class()
