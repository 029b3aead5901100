"""A SavedModel's signatures as one graph, with TensorFlow's batch scheduler before each.

Rows carry their deadline and a number: what has expired when its batch begins is not computed, and
no more is what the scheduler fills a batch up with, copies of its first row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from serving import contract
from serving.batching_parameters import BatchingParameters

_Signature = Callable[..., Mapping[str, tf.Tensor]]


class Account(NamedTuple):
    """What became of each row, beside the signature's outputs; all of shape [N].

    Attributes:
      in_time: bool, whether it was computed; False where its deadline had passed before.
      started_s: float64, seconds since 1970 when its batch began to be computed.
      ended_s: float64, when it was done.
      batch_size: int32, rows of that batch that were computed.
      batch_row: int32, its place there.
    """

    in_time: tf.Tensor
    started_s: tf.Tensor
    ended_s: tf.Tensor
    batch_size: tf.Tensor
    batch_row: tf.Tensor


@dataclass(frozen=True)
class SignatureGraph:
    """Placeholders and results of one signature.

    Attributes:
      images: string [N], to be fed.
      deadlines_s: float64 [N], seconds since 1970, to be fed.
      numbers: int64 [N], to be fed; no two rows of a batch have the same.
      outputs: the signature's, by name; zeros and empty strings where not in time.
      account: of each row.
    """

    images: tf.Tensor
    deadlines_s: tf.Tensor
    numbers: tf.Tensor
    outputs: Mapping[str, tf.Tensor]
    account: Account


def build(path: Path, batching: BatchingParameters | None) -> dict[str, SignatureGraph]:
    """Loads MODELS/NAME/VERSION into the default graph, which must not execute eagerly.

    Its variables are in the graph's collection of them, to be initialised by a session.

    Args:
      path: the version.
      batching: None leaves each request a batch of its own.

    Returns:
      The contract's signatures by name.
    """
    model = tf.saved_model.load(str(path))
    found = {}
    for name in contract.OUTPUTS:
        # The scheduler's queue has the scope's name; two of a name would be one queue.
        with tf.name_scope(name):
            found[name] = _signature_graph(model.signatures[name], batching)
    return found


def _signature_graph(signature: _Signature, batching: BatchingParameters | None) -> SignatureGraph:
    images = tf.compat.v1.placeholder(tf.string, [None])
    deadlines_s = tf.compat.v1.placeholder(tf.float64, [None])
    numbers = tf.compat.v1.placeholder(tf.int64, [None])
    names: list[str] = []

    def compute(*rows: tf.Tensor) -> list[tf.Tensor]:
        outputs, account = _in_time(signature, *rows)
        names[:] = outputs
        return [*outputs.values(), *account]

    if batching is not None:
        compute = _batched(compute, batching)
    results = compute(images, deadlines_s, numbers)
    outputs = dict(zip(names, results, strict=False))
    account = Account(*results[len(names) :])
    return SignatureGraph(images, deadlines_s, numbers, outputs, account)


def _batched(compute: Callable[..., Any], batching: BatchingParameters) -> Callable[..., Any]:
    schedule = tf.nondifferentiable_batch_function(
        num_batch_threads=batching.num_batch_threads,
        max_batch_size=batching.max_batch_size,
        batch_timeout_micros=batching.batch_timeout_micros,
        allowed_batch_sizes=list(batching.allowed_batch_sizes) or None,
        # Whoever calls bounds the images that wait. Here batches are counted, of any size, and one
        # that a thread is about to take still counts.
        max_enqueued_batches=batching.capacity,
        # A request of more images than a batch is refused, as TensorFlow Serving does.
        enable_large_batch_splitting=False,
        autograph=False,
    )
    batched: Callable[..., Any] = schedule(compute)
    return batched


def _in_time(
    signature: _Signature, images: tf.Tensor, deadlines_s: tf.Tensor, numbers: tf.Tensor
) -> tuple[dict[str, tf.Tensor], Account]:
    """Runs the rows that are in time and no copies; the others get zeros, and empty strings."""
    count = tf.shape(images)[0]
    started_s = tf.timestamp()
    in_time = deadlines_s > started_s
    # Not ==, which compares objects in a graph of a session.
    is_copy = tf.equal(numbers, numbers[:1]) & (tf.range(count) > 0)
    rows = tf.where(in_time & ~is_copy)
    with tf.control_dependencies([started_s]):
        kept = tf.gather_nd(images, rows)
    found = signature(**{contract.IMAGE_BYTES: kept})
    outputs = {name: _spread(value, rows, count) for name, value in found.items()}
    with tf.control_dependencies(list(outputs.values())):
        ended_s = tf.timestamp()

    def each(value: tf.Tensor) -> tf.Tensor:
        return tf.fill([count], value)

    computed = each(tf.shape(rows)[0])
    account = Account(in_time, each(started_s), each(ended_s), computed, tf.range(count))
    return outputs, account


def _spread(value: tf.Tensor, rows: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Puts each row of `value` into its place, `rows` int64 [M, 1], among `count` rows."""
    shape = tf.concat([[count], tf.shape(value)[1:]], axis=0)
    nothing = tf.fill(shape, tf.constant("" if value.dtype == tf.string else 0, value.dtype))
    return tf.tensor_scatter_nd_update(nothing, rows, value)
