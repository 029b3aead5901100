"""What computes the frozen network: TensorFlow, or OpenVINO where it is installed.

A runtime takes prepared images to ResNet50's feature map; the grids of both agree to 1e-3 of
their mean magnitude (tests/test_model_runtimes.py).
"""

import importlib.util
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from model.errors import InvalidInput
from model.folding import fold, weights

TENSORFLOW, OPENVINO, AUTO = RUNTIMES = ("tensorflow", "openvino", "auto")
FLOAT32, MIXED_FLOAT16 = PRECISIONS = ("float32", "mixed_float16")

# A GPU wants enough images to fill it; a core's caches want few: TensorFlow takes 1.1 times as
# long with 32.
_BATCH_GPU, _BATCH_CPU = 256, 8


class Runtime(Protocol):
    """Prepared images → feature map.

    Attributes:
      batch_size: images that a call does best with.
      concurrency: calls that do best at once, each from a thread of its own.
      variables: of a graph that calls it; who saves the graph saves them.
    """

    batch_size: int
    concurrency: int
    variables: Sequence[tf.Variable]

    def __call__(self, images: Any) -> Any:
        """float32 [N, S, S, 3] → float32 [N, S/32, S/32, F]."""


def resolve(runtime: str = TENSORFLOW, precision: str = AUTO) -> dict[str, str]:
    """What `auto` means on this machine.

    Args:
      runtime: one of RUNTIMES; auto is OpenVINO on a CPU where it is installed.
      precision: one of PRECISIONS or auto, which is mixed_float16 for TensorFlow on a GPU.

    Returns:
      {"runtime", "precision"} without auto.

    Raises:
      InvalidInput: OpenVINO is asked for and not installed, or no such name.
    """
    for name, value, valid in (
        ("encoder_runtime", runtime, RUNTIMES),
        ("encoder_precision", precision, (*PRECISIONS, AUTO)),
    ):
        if value not in valid:
            raise InvalidInput(f"{name} {value!r}, expected one of {', '.join(valid)}")
    if runtime == AUTO:
        runtime = OPENVINO if _is_installed() and not has_gpu() else TENSORFLOW
    check_installed(runtime)
    if precision == AUTO:
        precision = MIXED_FLOAT16 if runtime == TENSORFLOW and has_gpu() else FLOAT32
    return {"runtime": runtime, "precision": precision}


def check_installed(runtime: str) -> None:
    """Raise InvalidInput where a runtime is not installed."""
    if runtime == OPENVINO and not _is_installed():
        raise InvalidInput(
            "encoder_runtime openvino, but it is not installed; install captionbeam[openvino], or "
            "take --encoder_runtime tensorflow"
        )


def _is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


class TensorFlowRuntime:
    """The network as a graph with batch normalisation folded."""

    concurrency = 1

    def __init__(self, network: keras.Model) -> None:
        self.batch_size = _BATCH_GPU if has_gpu() else _BATCH_CPU
        self.variables: Sequence[tf.Variable]
        self._compute, self.variables = _folded(network)

    def __call__(self, images: Any) -> tf.Tensor:
        """Eagerly, or inside the graph that calls it."""
        return tf.cast(self._compute(tf.convert_to_tensor(images, tf.float32)), tf.float32)


class OpenVinoRuntime:
    """The network compiled by OpenVINO, as many calls at once as there are cores.

    Each call runs on one core, so that a grid does not depend on how many there are.
    """

    batch_size = _BATCH_CPU
    variables: Sequence[tf.Variable] = ()

    def __init__(self, network: keras.Model) -> None:
        import openvino

        core = openvino.Core()
        with tempfile.TemporaryDirectory() as scratch:
            # Its reader of files, since its converter reports each use to its makers.
            path = Path(scratch) / "network.pb"
            path.write_bytes(freeze(network).graph.as_graph_def().SerializeToString())
            model = core.read_model(path)
        sizes = openvino.Dimension(1, self.batch_size)
        model.reshape([sizes, *network.input_shape[1:]])
        self.concurrency = len(os.sched_getaffinity(0))
        settings = {
            # Left to itself it computes in bfloat16 where a CPU can.
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": self.concurrency,
            "INFERENCE_NUM_THREADS": self.concurrency,
            # Pinned threads of two workers on one machine would share their cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = core.compile_model(model, "CPU", settings)
        self._requests = threading.local()

    def __call__(self, images: Any) -> np.ndarray:
        """Eagerly alone; a long batch is cut."""
        given = np.asarray(images, np.float32)
        if len(given) <= self.batch_size:
            return self._infer(given)
        starts = range(0, len(given), self.batch_size)
        return np.concatenate([self._infer(given[i : i + self.batch_size]) for i in starts])

    def _infer(self, images: np.ndarray) -> np.ndarray:
        if not hasattr(self._requests, "request"):
            # One a thread: a request holds one call's tensors.
            self._requests.request = self._compiled.create_infer_request()
        answer = self._requests.request.infer({0: images}, share_inputs=True)
        return np.array(answer[0])


_KINDS: dict[str, Callable[[keras.Model], Runtime]] = {
    TENSORFLOW: TensorFlowRuntime,
    OPENVINO: OpenVinoRuntime,
}


def load(name: str, network: keras.Model) -> Runtime:
    """Make the network ready to compute; `name` is one that `resolve` gave."""
    return _KINDS[name](network)


def freeze(network: keras.Model) -> Any:
    """A concrete function of the folded network with its weights as constants."""
    # Named, so that the variables live until they are read.
    compute, _variables = _folded(network)
    return convert_variables_to_constants_v2(compute)


def _folded(network: keras.Model) -> tuple[Any, list[tf.Variable]]:
    """A concrete function of the folded network in inference mode, and its variables."""
    signature = tf.TensorSpec([None, *network.input_shape[1:]], tf.float32)
    # Outside whatever graph asks for it first: an export's, for one.
    with tf.init_scope():
        folded = fold(network)
        graph = tf.function(lambda images: folded(images), input_signature=[signature])
        return graph.get_concrete_function(), weights(folded)
