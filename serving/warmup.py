"""Replays the warm-up requests of a version, as TensorFlow Serving does when it loads one."""

import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow_serving.apis import prediction_log_pb2

from model.errors import InvalidInput
from serving import contract
from serving.batching_parameters import BATCHING_FILE
from serving.errors import CallFailed
from serving.layout import WARMUP_FILE
from serving.loaded_model import LoadedModel


def warm_up(model: LoadedModel) -> int:
    """Runs every request of the file; none if there is no file.

    Returns:
      How many there were.

    Raises:
      InvalidInput: the file cannot be read, or the model refuses a request of it.
    """
    file = model.path / WARMUP_FILE
    if not file.is_file():
        return 0
    count = 0
    try:
        for record in tf.compat.v1.io.tf_record_iterator(str(file)):
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            signature = request.model_spec.signature_name or contract.SERVING_DEFAULT
            model.run(signature, inputs)
            count += 1
    except (tf.errors.OpError, DecodeError, TypeError, ValueError, CallFailed) as error:
        raise InvalidInput(
            f"{file}: warm-up request {count + 1} fails ({error}); export the model "
            f"again, or mend {BATCHING_FILE} beside it"
        ) from error
    return count
