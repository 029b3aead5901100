"""Run as a script, in a process that imports none of our code: does TensorFlow's loader take it?

TensorFlow Serving loads a SavedModel as a session does. Reads from stdin, as
JSON: path, warmup, images (base64), largest (how many images the largest answer is of), and the
names signature, explain, input, caption, status. Replays the warm-up requests, captions the
images, has as many explained as the server puts in a batch, and prints one line of JSON: captions,
statuses, requests (signature and rows of each), answer_bytes (of the explanation as the message
that goes over the wire), load_s, peak_mib.
"""

import base64
import itertools
import json
import pathlib
import re
import sys
import time

import tensorflow.compat.v1 as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2


def main() -> None:
    """See the module."""
    asked = json.load(sys.stdin)
    with tf.Session(graph=tf.Graph()) as session:
        begin = time.perf_counter()
        loaded = tf.saved_model.load(session, [tf.saved_model.SERVING], asked["path"])
        load_s = time.perf_counter() - begin

        def run(signature, inputs):  # type: ignore[no-untyped-def]
            definition = loaded.signature_def[signature]
            if set(inputs) != set(definition.inputs):
                raise ValueError(
                    f"{signature} of {sorted(inputs)}, expected {sorted(definition.inputs)}"
                )
            feed = {definition.inputs[name].name: value for name, value in inputs.items()}
            wanted = {name: info.name for name, info in definition.outputs.items()}
            return session.run(wanted, feed)

        requests = []
        for record in tf.io.tf_record_iterator(asked["warmup"]):
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            signature = request.model_spec.signature_name
            run(signature, inputs)
            requests.append([signature, len(inputs[asked["input"]])])
        images = [base64.b64decode(image) for image in asked["images"]]
        found = run(asked["signature"], {asked["input"]: images})
        many = list(itertools.islice(itertools.cycle(images), asked["largest"]))
        explained = run(asked["explain"], {asked["input"]: many})

    response = predict_pb2.PredictResponse()
    for name, array in explained.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
    wire = response.SerializeToString()
    returned = predict_pb2.PredictResponse.FromString(wire)
    for name, array in explained.items():
        if tf.make_ndarray(returned.outputs[name]).tolist() != array.tolist():
            raise ValueError(f"{asked['explain']}: {name} is another after {len(wire)} bytes")
    captions = [caption.decode() for caption in found[asked["caption"]]]
    answer = {
        "captions": captions,
        "statuses": found[asked["status"]].tolist(),
        "requests": requests,
        "answer_bytes": len(wire),
        "load_s": load_s,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(answer))


def peak_mib() -> float:
    """Most memory that this process has held; `ru_maxrss` would begin at its parent's peak."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) / 1024


if __name__ == "__main__":
    main()
