"""The encoder as training changes it: its upper convolutions alone."""

import re
from collections.abc import Callable

import keras
import tensorflow as tf

from model.dataset import Grids, stored_grids
from model.encoder import Encoder
from model.encoder_config import FIRST_STAGES, NONE, EncoderConfig
from model.errors import InvalidInput
from model.records import GRID_DTYPE, IMAGES, Manifest

_STAGE = re.compile(r"conv(\d)_block")


class NetworkWeights(tf.Module):
    """All weights of a network, by their Keras path, as checkpoints keep them.

    A fine-tuned model so needs no weights file of the encoder that it began with.

    Args:
      network: whose weights.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.weights = {weight.path: weight.value for weight in network.weights}


class TunedEncoder(NetworkWeights):
    """An encoder whose upper convolutions are trained; images → grid.

    Batch normalisation is frozen: statistics, scales and offsets stay, and it always computes as
    in inference. What lies below the first trained stage gets no gradient.

    Make it in the scope of the strategy, like the encoder.

    Args:
      encoder: to begin with; its network is changed.
      config: from which stage on.
    """

    def __init__(self, encoder: Encoder, config: EncoderConfig) -> None:
        super().__init__(encoder.network)
        self._encoder = encoder
        _unfreeze(encoder.network, FIRST_STAGES[config.trainable])

    @property
    def trained(self) -> list[keras.Variable]:
        """Variables that training changes."""
        # No attribute: a checkpoint would hold them twice.
        variables: list[keras.Variable] = self._encoder.network.trainable_variables
        return variables

    def assign(self, network: keras.Model) -> None:
        """Take another network's weights."""
        for weight in network.weights:
            self.weights[weight.path].assign(weight)

    def __call__(self, images: tf.Tensor, extents: tf.Tensor) -> tf.Tensor:
        """Encode a batch as `Encoder` does, with a gradient.

        Not rounded through float16 as records and exported graphs do: that loses at most 2⁻¹¹ of
        a value, and the gradient would be rounded with it.

        Args:
          images: float32 [N, S, S, 3].
          extents: int32 [N, 2].

        Returns:
          float32 [N, P, F].
        """
        return self._encoder.pool(self._encoder.network(images, training=False), extents)


def grids_by(encode: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None) -> Grids:
    """The grids of records of images, as records of grids store them.

    Args:
      encode: an Encoder or a TunedEncoder; None for records of grids.
    """
    if encode is None:
        return stored_grids
    return lambda batch: tf.cast(encode(batch["image"], batch["extent"]), GRID_DTYPE)


def _unfreeze(network: keras.Model, first_stage: int) -> None:
    """Train the convolutions of a stage and of those above it."""
    network.trainable = True
    for layer in network.layers:
        stage = _STAGE.match(layer.name)
        is_above = stage is not None and int(stage[1]) >= first_stage
        layer.trainable = is_above and isinstance(layer, keras.layers.Conv2D)


def check_content(manifest: Manifest, config: EncoderConfig, source: str) -> None:
    """Refuse records that do not hold what training needs: images to train an encoder, or grids.

    Raises:
      InvalidInput: naming both and the way out.
    """
    holds_images = manifest.content == IMAGES
    if holds_images == config.is_trained:
        return
    got = f"{source}: records of {manifest.content} with encoder.trainable {config.trainable}"
    if holds_images:
        raise InvalidInput(
            f"{got}, expected one of {', '.join(FIRST_STAGES)}; to train on grids of a frozen "
            "encoder, run `captionbeam preprocess` without --content images"
        )
    raise InvalidInput(
        f"{got}, expected records of images; make them with `captionbeam preprocess … --content "
        f"images`, or take encoder.trainable {NONE}"
    )
