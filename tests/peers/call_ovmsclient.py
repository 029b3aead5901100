"""Asks a server all that ovmsclient can, and prints what it made of the answers.

    .peers/ovmsclient/bin/python tests/peers/call_ovmsclient.py < QUESTION.json

The question has `transport` (grpc, rest), `address`, `model`, `version`, `input` (the tensor's
name), `images` (base64) and `refused` (base64, bytes that the model fails on). The answer has
`predict`, `metadata`, `status` and, by what was wrong, the `errors`: [type, message].
"""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import ovmsclient

TIMEOUT_S = 60.0
ABSENT = "absent"


def main() -> None:
    """One question, one answer."""
    question = json.load(sys.stdin)
    make = {"grpc": ovmsclient.make_grpc_client, "rest": ovmsclient.make_http_client}
    client = make[question["transport"]](question["address"])
    images = [base64.b64decode(image) for image in question["images"]]
    refused = base64.b64decode(question["refused"])
    model, version = question["model"], question["version"]
    inputs = {question["input"]: images}

    def predict(given: dict[str, Any], name: str = model, number: int = version) -> Any:
        return client.predict(given, name, number, TIMEOUT_S)

    answer = {
        "predict": predict(inputs),
        "metadata": client.get_model_metadata(model, version, TIMEOUT_S),
        "status": client.get_model_status(model, version, TIMEOUT_S),
        "errors": {
            "model": failure(lambda: predict(inputs, ABSENT)),
            "version": failure(lambda: predict(inputs, model, version + 1)),
            # Left out, ovmsclient asks for version 0: its own server's word for the newest.
            "version 0": failure(lambda: predict(inputs, model, 0)),
            "input": failure(lambda: predict({ABSENT: images})),
            "image": failure(lambda: predict({question["input"]: [refused]})),
            "batch": failure(lambda: predict({question["input"]: [*images, refused]})),
            "metadata": failure(lambda: client.get_model_metadata(ABSENT, version, TIMEOUT_S)),
            "status": failure(lambda: client.get_model_status(ABSENT, version, TIMEOUT_S)),
        },
    }
    json.dump(answer, sys.stdout, default=plain)


def failure(call: Callable[[], Any]) -> list[str]:
    """Type and message of the error that a call ends with."""
    try:
        answer = call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["no error", repr(answer)]


def plain(value: Any) -> Any:
    """What json does not know, in its own terms."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"{type(value).__name__} in an answer")


if __name__ == "__main__":
    main()
