"""Asks a server through min-tfs-client, which knows Predict of the default signature alone.

    .peers/min_tfs_client/bin/python tests/peers/call_min_tfs_client.py < QUESTION.json

The question has `address`, `model`, `version`, `input` (the tensor's name) and `images`: text,
since this client sends no bytes that are not UTF-8. The answer has `predict`.
"""

import json
import sys

import numpy as np
from min_tfs_client.requests import TensorServingClient
from min_tfs_client.tensors import tensor_proto_to_ndarray


def main() -> None:
    """One question, one answer."""
    question = json.load(sys.stdin)
    host, port = question["address"].rsplit(":", 1)
    response = TensorServingClient(host, int(port)).predict_request(
        question["model"],
        {question["input"]: np.array(question["images"], dtype=str)},
        model_version=question["version"],
    )
    # It reads a tensor's typed fields (float_val, …), never tensor_content.
    predict = {name: tensor_proto_to_ndarray(value) for name, value in response.outputs.items()}
    json.dump({"predict": {name: array.tolist() for name, array in predict.items()}}, sys.stdout)


if __name__ == "__main__":
    main()
