"""Bulk captioning with a model that costs nothing, as a process of its own.

    python -m benchmarks.bulk_stub INPUT OUTPUT [--shard_size N] [Beam flags]

What is left is everything else: listing, reading, decoding, accounting, writing.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.peak import run_alone, say_peak
from pipelines.bulk_job import BulkConfig, caption_all
from pipelines.clients import Clients, Target
from pipelines.columns import Columns
from serving import contract
from serving.answers import Answer
from serving.client import Client
from serving.metadata import ModelMetadata, Signature, TensorSpec
from serving.retry import Retries

_VERSION, _TOKENS, _HYPOTHESES = 1, 2, 1
_SIZES = {"K": _HYPOTHESES}


class _Transport:
    """Says the same of every image."""

    def predict(self, signature: str, image_bytes: Sequence[bytes], timeout_s: float) -> Answer:
        del signature, timeout_s
        count = len(image_bytes)
        outputs = {
            contract.STATUS: np.zeros(count, np.int32),
            contract.CAPTION: np.full(count, b"a photograph", object),
            contract.LOG_PROB: np.full(count, -1, np.float32),
            contract.TOKEN_IDS: np.ones((count, _TOKENS), np.int32),
            contract.LENGTH: np.full(count, _TOKENS, np.int32),
        }
        return Answer(outputs, _VERSION)

    def metadata(self, timeout_s: float) -> ModelMetadata:
        del timeout_s
        signatures = {
            name: Signature(_specs(contract.INPUTS), _specs(outputs))
            for name, outputs in contract.OUTPUTS.items()
        }
        return ModelMetadata("stub", _VERSION, signatures)

    def close(self) -> None:
        pass


def _specs(tensors: Mapping[str, contract.Tensor]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(tensor.dtype, tuple(_SIZES.get(letter) for letter in tensor.dims))
        for name, tensor in tensors.items()
    }


def _connect(target: Target) -> Client:
    del target
    return Client(_Transport(), retries=Retries(attempts=1))


@dataclass(frozen=True)
class Cost:
    """Of one run as a process of its own: seconds, and the most memory that it held."""

    seconds: float
    peak_mib: float


def measure(where: str, output: str, *flags: str) -> Cost:
    """Run this file over an input; raises RuntimeError where it fails."""
    started_s = time.perf_counter()
    peak_mib = run_alone("benchmarks.bulk_stub", (where, output, *flags))
    return Cost(time.perf_counter() - started_s, peak_mib)


def main(argv: Sequence[str] | None = None) -> int:
    """Caption; every argument that is not ours goes to Beam."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--shard_size", type=int, default=BulkConfig.shard_size)
    args, beam_args = parser.parse_known_args(argv)
    clients = Clients(Target("models/stub", None, "stub"), _connect)
    config = BulkConfig(args.output, shard_size=args.shard_size)
    print(caption_all(args.input, Columns(), clients, config, beam_args))
    say_peak()
    return 0


if __name__ == "__main__":
    sys.exit(main())
