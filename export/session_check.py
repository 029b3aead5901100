"""Run as a script, in a process that imports none of our code: does TensorFlow's loader take it?

TensorFlow Serving loads a SavedModel as a session does. Reads from stdin, as
JSON: path, warmup, images (base64), and the names signature, input, caption, status. Replays the
warm-up requests, captions the images, and prints one line of JSON: captions, statuses, requests,
load_s, peak_mib.
"""

import base64
import json
import resource
import sys
import time

import tensorflow.compat.v1 as tf
from tensorflow_serving.apis import prediction_log_pb2


def main() -> None:
    """See the module."""
    asked = json.load(sys.stdin)
    with tf.Session(graph=tf.Graph()) as session:
        begin = time.perf_counter()
        loaded = tf.saved_model.load(session, [tf.saved_model.SERVING], asked["path"])
        load_s = time.perf_counter() - begin

        def run(signature: str, inputs: dict[str, object]) -> dict[str, object]:
            definition = loaded.signature_def[signature]
            if set(inputs) != set(definition.inputs):
                raise ValueError(
                    f"{signature} of {sorted(inputs)}, expected {sorted(definition.inputs)}"
                )
            feed = {definition.inputs[name].name: value for name, value in inputs.items()}
            wanted = {name: info.name for name, info in definition.outputs.items()}
            answer: dict[str, object] = session.run(wanted, feed)
            return answer

        requests = 0
        for record in tf.io.tf_record_iterator(asked["warmup"]):
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            run(request.model_spec.signature_name, inputs)
            requests += 1
        images = [base64.b64decode(image) for image in asked["images"]]
        found = run(asked["signature"], {asked["input"]: images})
    captions = [caption.decode() for caption in found[asked["caption"]]]  # type: ignore[attr-defined]
    answer = {
        "captions": captions,
        "statuses": found[asked["status"]].tolist(),  # type: ignore[attr-defined]
        "requests": requests,
        "load_s": load_s,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
