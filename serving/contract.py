"""Names, types and shapes of the exported signatures: the one definition of the wire.

Letters as in `model`: N images, K hypotheses, T tokens, P grid cells in G rows and columns.
Dimension 0 of every tensor is the batch.
"""

from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

SERVING_DEFAULT = "serving_default"
EXPLAIN = "explain"
NBEST = "nbest"

IMAGE_BYTES = "image_bytes"
CAPTION = "caption"
LOG_PROB = "log_prob"
TOKEN_IDS = "token_ids"
LENGTH = "length"
WORDS = "words"
ATTENTION = "attention"
PLACES = "places"
CAPTIONS = "captions"
LOG_PROBS = "log_probs"
STATUS = "status"

GRPC_PORT = 8500
REST_PORT = 8501
# Where monitoring.config puts TensorFlow Serving's metrics.
METRICS_PATH = "/monitoring/prometheus/metrics"
# gRPC receives 4 MiB unless told otherwise. A few photographs are more, and so are the weights that
# `explain` answers for some 1,000 images.
MAX_MESSAGE_MIB = 64
# What a model is called where nobody says otherwise: MODELS/captioner.
DEFAULT_MODEL_NAME = "captioner"


class Status(IntEnum):
    """What became of an image; its row has no caption and log_prob −inf unless it is OK."""

    OK = 0
    # Nothing that begins as a JPEG, PNG, GIF or BMP file does.
    NOT_AN_IMAGE = 1
    # Decoding it failed: broken, cut off, of a kind that TensorFlow does not read.
    DECODE = 2
    # By its header; limits of model/image_bytes.
    TOO_MANY_PIXELS = 3
    TOO_SMALL = 4
    TOO_MANY_BYTES = 5


@dataclass(frozen=True)
class Tensor:
    """A tensor of the wire.

    Attributes:
      dtype: TensorFlow's name of the type ("string", "float32", "int32").
      dims: letters of its dimensions, batch first.
    """

    dtype: str
    dims: tuple[str, ...]


INPUTS = MappingProxyType({IMAGE_BYTES: Tensor("string", ("N",))})

_STATUS = {STATUS: Tensor("int32", ("N",))}

_CAPTION_OUTPUTS = _STATUS | {
    CAPTION: Tensor("string", ("N",)),
    LOG_PROB: Tensor("float32", ("N",)),
    TOKEN_IDS: Tensor("int32", ("N", "T")),
    LENGTH: Tensor("int32", ("N",)),
}

OUTPUTS = MappingProxyType(
    {
        SERVING_DEFAULT: _CAPTION_OUTPUTS,
        EXPLAIN: _CAPTION_OUTPUTS
        | {
            WORDS: Tensor("string", ("N", "T")),
            ATTENTION: Tensor("float32", ("N", "T", "P")),
            PLACES: Tensor("float32", ("N", "2", "G")),
        },
        NBEST: _STATUS
        | {
            CAPTIONS: Tensor("string", ("N", "K")),
            LOG_PROBS: Tensor("float32", ("N", "K")),
        },
    }
)
