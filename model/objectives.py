"""What a step of training minimises, before penalties: a sum, and what it is the mean of."""

from typing import NamedTuple, Protocol

import tensorflow as tf

from model.captioner import Captioner
from model.losses import masked_cross_entropy
from model.schedules import sampling_share
from model.training_config import TrainingConfig

Batch = dict[str, tf.Tensor]


class Aim(NamedTuple):
    """One replica's share of what is minimised, in sums and counts.

    Attributes:
      loss: sum over the words, float32 [].
      words: that count, float32 [].
      labels: the words of each caption, `<end>` last, padded, int32 [M, T].
      attention: weights of each word, float32 [M, T, P].
      measured: sum of the objective's `measure`, float32 [].
      measured_count: what `measured` is divided by, float32 [].
    """

    loss: tf.Tensor
    words: tf.Tensor
    labels: tf.Tensor
    attention: tf.Tensor
    measured: tf.Tensor
    measured_count: tf.Tensor


class Objective(Protocol):
    """A stage of training.

    Attributes:
      measure: name of what it reports besides the loss.
    """

    measure: str

    def __call__(self, batch: Batch, seed: tf.Tensor, step: tf.Tensor) -> Aim:
        """Judge the captioner on a replica's batch.

        Args:
          batch: see dataset.training_batches.
          seed: of all that is drawn, int32 [2]; no two replicas or steps share it.
          step: the first is 0, int32 [].
        """


class CrossEntropy:
    """Teacher forcing: the words of the captions, one after the other.

    Args:
      captioner: to be trained.
      config: smoothing and sampling.
      pad_id: padding's id.
      steps_per_epoch: of the sampling's ramp.
    """

    measure = "cross_entropy"

    def __init__(
        self, captioner: Captioner, config: TrainingConfig, pad_id: int, steps_per_epoch: int
    ) -> None:
        self._captioner, self._config = captioner, config
        self._pad_id, self._steps_per_epoch = pad_id, steps_per_epoch

    def __call__(self, batch: Batch, seed: tf.Tensor, step: tf.Tensor) -> Aim:
        """The cross-entropy in nats, over the words."""
        config = self._config
        sampled = None
        if config.scheduled_sampling:
            sampled = sampling_share(config, self._steps_per_epoch, step)
        labels = batch["labels"]
        # XLA wants to know how many there are.
        counting = None if config.xla else labels != self._pad_id
        logits, attention = self._captioner(
            batch["grid"],
            batch["inputs"],
            batch["image_index"],
            seed=seed,
            sampling_share=sampled,
            precision=config.precision,
            places=counting,
        )
        wanted = labels if counting is None else tf.boolean_mask(labels, counting)
        entropy, words = masked_cross_entropy(logits, wanted, self._pad_id, config.label_smoothing)
        return Aim(entropy, words, labels, attention, entropy, words)
