"""The exported graph, its encoder folded, ÷ the same graph around the Keras network.

Both read image files, search with the default sizes and say the same; the network of the plain side
has its batch normalisation as layers. The captioner is untrained, so
that every caption runs to the mean length of coco80's captions.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from benchmarks.bare import BATCH
from benchmarks.bulk import MEAN_LENGTH, make_untrained
from benchmarks.photographs import lay_out
from benchmarks.ratio import compare, rate, report
from export import saved_model
from export.module import CaptionModule
from model.encoder import Encoder
from serving import contract

COUNT = 2 * BATCH
TARGET = 1.0


class PlainEncoder(Encoder):
    """Asks the Keras network itself."""

    @property
    def variables(self) -> list[tf.Variable]:
        """The network's own."""
        return [weight.value for weight in self.network.weights]

    def __call__(self, images: tf.Tensor, extents: tf.Tensor | None = None) -> tf.Tensor:
        """As Encoder's."""
        return self.pool(self.network(images, training=False), extents)


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photographs = lay_out(root / "photographs", COUNT)
        images = [path.read_bytes() for path in sorted(photographs.images.iterdir())]
        trained, encoder = make_untrained(root / "model", MEAN_LENGTH)
        plain = PlainEncoder(encoder.settings, encoder.network)
        module = CaptionModule(trained, plain)
        sides = [_side(module.signatures()[contract.SERVING_DEFAULT], images)]
        module = CaptionModule(trained, encoder)
        saved_model.write(module, root / "model", root / "1", "captioner")
        loaded = tf.saved_model.load(str(root / "1"))
        sides.append(_side(loaded.signatures[contract.SERVING_DEFAULT], images))
        value, detail = compare(sides[1], sides[0])
    report(
        "exported_folded_to_plain",
        value,
        f">{TARGET}",
        f"images/s of serving_default, batch {BATCH}, captions of {MEAN_LENGTH} words, encoder "
        f"folded / Keras' own, {COUNT} images: {detail}",
    )


def _side(serve: Callable[..., dict[str, tf.Tensor]], images: list[bytes]) -> Callable[[], float]:
    """Images a second of a signature over image files."""
    batches = [tf.constant(images[start : start + BATCH]) for start in range(0, COUNT, BATCH)]

    def work() -> None:
        for batch in batches:
            serve(**{contract.IMAGE_BYTES: batch})[contract.CAPTION].numpy()

    # The first call optimises the graph.
    serve(**{contract.IMAGE_BYTES: batches[0]})
    return lambda: rate(work, COUNT)
