"""A `captionbeam serve` process and requests of one image to it."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
import requests
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving import contract

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Served:
    """A server that is ready.

    Attributes:
      name: of its model.
      address: HOST:PORT of gRPC.
      rest: URL of REST.
      pid: of its process.
    """

    name: str
    address: str
    rest: str
    pid: int

    def resident_mib(self) -> float:
        """Memory that it holds now."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
        return int(kib) / 1024

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        text = requests.get(f"{self.rest}/metrics", timeout=_TIMEOUT_S).text
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(value)

    def request(self, image: bytes) -> Any:
        """A Predict request of one image."""
        asked = predict_pb2.PredictRequest(model_spec={"name": self.name})
        tensor = tf.make_tensor_proto([image], dtype=tf.string)
        asked.inputs[contract.IMAGE_BYTES].CopyFrom(tensor)
        return asked


@contextlib.contextmanager
def serve(model_dir: Path, log: Path) -> Iterator[Served]:
    """Runs the command on free ports until the block ends; then it must end with 0."""
    command = [
        *(sys.executable, "-m", "captionbeam", "serve", "--model", str(model_dir)),
        *("--port", "0", "--rest_port", "0"),
    ]
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            name, address = _line(process.stdout, r"serving (\S+) version \d+ on (\S+)", log)
            (rest,) = _line(process.stdout, r"REST on (\S+)", log)
            yield Served(name, address, rest, process.pid)
        finally:
            process.terminate()
            try:
                code = process.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if code != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {code}; see {log}")


@contextlib.contextmanager
def predicting(served: Served) -> Iterator[Any]:
    """A stub of its PredictionService."""
    with grpc.insecure_channel(served.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _line(stream: IO[str], pattern: str, log: Path) -> tuple[str, ...]:
    line = stream.readline()
    match = re.fullmatch(pattern, line.strip())
    if match is None:
        raise RuntimeError(f"the server says {line!r}; see {log}")
    return match.groups()
