"""The tf.distribute strategy that a name stands for."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from model.errors import CheckFailed, InvalidInput

# What a collective raises when another process died, left or was started anew.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
    tf.errors.FailedPreconditionError,
)
# How TensorFlow names a process of a cluster in its errors.
_TASK = re.compile(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Choose where training runs.

    Args:
      name: "auto" takes all GPUs there are, else the CPU; "one" the first device;
        "mirrored" all devices of this machine (logical CPU devices when there is no
        GPU); "multiworker" the machines named in TF_CONFIG.
    """
    # First: looking for devices starts the runtime, after which no cluster can be joined.
    if name == "multiworker":
        if "TF_CONFIG" not in os.environ:
            raise InvalidInput(
                "--strategy multiworker: TF_CONFIG is not set, expected the cluster and this "
                "process's task as JSON"
            )
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"--strategy multiworker: TF_CONFIG is not usable ({error}), expected "
                '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": 0}}'
            ) from error
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one"
    if name == "one":
        return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def is_chief(resolver: tf.distribute.cluster_resolver.ClusterResolver | None) -> bool:
    """Whether this process of a cluster saves: the chief, or without one the first worker."""
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().as_dict():
        return bool(resolver.task_type == "chief")
    return bool(resolver.task_id == 0)


@contextmanager
def all_must_answer(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Say which process of a cluster was lost, where TensorFlow says that a collective failed.

    Raises:
      CheckFailed: a process died or cannot be reached.
    """
    try:
        yield
    except _LOST as error:
        lost = _others_named(str(error), strategy.cluster_resolver)
        if not lost:
            raise
        raise CheckFailed(
            f"{' and '.join(lost)} no longer answers; look at what it said last, then start all "
            "processes again: training goes on from the last checkpoint"
        ) from error


def _others_named(
    message: str, resolver: tf.distribute.cluster_resolver.ClusterResolver | None
) -> list[str]:
    """Processes that an error names, this one left out, as "worker 1 (HOST:PORT)"."""
    if resolver is None:
        return []
    cluster = resolver.cluster_spec()
    here = (resolver.task_type, resolver.task_id)
    named = {
        (kind, int(index)) for kind, index in _TASK.findall(message) if kind in cluster.jobs
    } - {here}
    return [
        f"{kind} {index} ({cluster.task_address(kind, index)})" for kind, index in sorted(named)
    ]


def sum_over_replicas(strategy: tf.distribute.Strategy, value: float) -> float:
    """Over all replicas of all processes, each with its process's value; all must ask."""
    if strategy.num_replicas_in_sync == 1:
        return value

    @tf.function
    def total() -> tf.Tensor:
        here = strategy.run(lambda: tf.constant(value, tf.float32))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, here, axis=None)

    return float(total())
