"""Preprocessing with an encoder that costs nothing, as a process of its own.

    python -m benchmarks.stub ANNOTATIONS IMAGES OUTPUT \\
      [--read_threads N] [--shard_size N] [Beam flags]

What is left is everything else: reading, decoding, writing.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.peak import say_peak
from model.encoder import EncoderSettings
from pipelines.coco import Source
from pipelines.records_job import PreprocessSettings, preprocess


class StubEncoder:
    """Grids of ResNet50's shape and size, made of the image's mean."""

    digest = "stub"
    grid_shape = (49, 2048)
    batch_size, concurrency = 8, 1

    def __call__(self, images: np.ndarray, extents: np.ndarray) -> np.ndarray:
        """float32 [N, S, S, 3] → float32 [N, P, F]."""
        del extents
        means = np.abs(images[:, ::32, ::32]).mean(axis=(1, 2, 3), keepdims=True)
        return np.broadcast_to(means[..., 0], (len(images), *self.grid_shape)).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    """Preprocess; every argument that is not ours goes to Beam."""
    parser = argparse.ArgumentParser()
    parser.add_argument("annotations")
    parser.add_argument("images")
    parser.add_argument("output")
    parser.add_argument("--read_threads", type=int, default=PreprocessSettings.read_threads)
    parser.add_argument("--shard_size", type=int, default=PreprocessSettings.shard_size)
    args, beam_args = parser.parse_known_args(argv)
    settings = PreprocessSettings(
        (Source("train", args.annotations, args.images),),
        args.output,
        encoder=EncoderSettings("random:0"),
        shard_size=args.shard_size,
        min_word_count=1,
        read_threads=args.read_threads,
    )
    preprocess(settings, beam_args, StubEncoder)
    say_peak()
    return 0


if __name__ == "__main__":
    sys.exit(main())
