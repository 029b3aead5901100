"""One step of training, on every replica."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf

from model.averages import WeightAverages
from model.captioner import Captioner
from model.losses import doubly_stochastic_penalty, l2_penalty
from model.objectives import Batch, Objective
from model.training_config import TrainingConfig


class Taken(NamedTuple):
    """What a step says of itself, over all replicas.

    Attributes:
      loss: what was minimised, penalties included, float32 [].
      measured: mean of the objective's measure, float32 [].
      gradient_norm: global norm before clipping, float32 [].
      captions: that were read, float32 [].
      stopping: whether any process wants to stop, bool [].
    """

    loss: tf.Tensor
    measured: tf.Tensor
    gradient_norm: tf.Tensor
    captions: tf.Tensor
    stopping: tf.Tensor


@dataclass(frozen=True)
class Fitted:
    """What a step changes.

    Attributes:
      captioner: its weights.
      optimizer: its state.
      averages: of the weights.
    """

    captioner: Captioner
    optimizer: keras.optimizers.Optimizer
    averages: WeightAverages


class TrainingStep:
    """Takes a batch, an int32 [] step (the first is 0) and whether to stop, int32 [].

    Args:
      fitted: what it changes.
      strategy: of tf.distribute.
      config: of the training.
      objective: what it minimises.
      pad_id: padding's id.
    """

    def __init__(
        self,
        fitted: Fitted,
        strategy: tf.distribute.Strategy,
        config: TrainingConfig,
        objective: Objective,
        pad_id: int,
    ) -> None:
        self._fitted, self._strategy, self._config = fitted, strategy, config
        self._objective, self._pad_id = objective, pad_id

    def compiled(self, batch_spec: object) -> Callable[[Batch, tf.Tensor, tf.Tensor], Taken]:
        """One trace for batches of any length."""
        number = tf.TensorSpec([], tf.int32)
        return tf.function(self, input_signature=[batch_spec, number, number])

    def __call__(self, batch: Batch, step: tf.Tensor, stop: tf.Tensor) -> Taken:
        """Take a step on all replicas."""
        taken = self._strategy.run(self._on_replica, args=(batch, step, stop))
        self._fitted.averages.update(step)
        total, first = tf.distribute.ReduceOp.SUM, self._strategy.experimental_local_results
        shares = (self._strategy.reduce(total, share, axis=None) for share in taken[:2])
        # The others are the same on every replica.
        return Taken(*shares, *(first(value)[0] for value in taken[2:]))

    def _on_replica(self, batch: Batch, step: tf.Tensor, stop: tf.Tensor) -> Taken:
        """One replica's share of the global mean loss; gradients are summed over replicas."""
        context = tf.distribute.get_replica_context()
        total = tf.distribute.ReduceOp.SUM
        variables = self._fitted.captioner.trainable_variables
        with tf.GradientTape() as tape:
            loss, measured, captions, stopping = self._loss(batch, step, stop)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        gradients, norm = self._clipped(context.all_reduce(total, gradients))
        # Keras sums over replicas once more; each has the clipped global gradient already.
        replicas = float(context.num_replicas_in_sync)
        self._fitted.optimizer.apply([gradient / replicas for gradient in gradients], variables)
        return Taken(loss, measured, norm, captions, stopping)

    def _loss(
        self, batch: Batch, step: tf.Tensor, stop: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """This replica's share of loss and measure; all captions; whether any stops."""
        config, context = self._config, tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync
        replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
        aim = self._objective(batch, replica_seed(config.seed, replica, replicas, step), step)
        penalty, captions = doubly_stochastic_penalty(aim.attention, aim.labels, self._pad_id)
        # One meeting of the replicas for all that they count.
        counts = tf.stack([aim.words, captions, aim.measured_count, tf.cast(stop, tf.float32)])
        counts = context.all_reduce(tf.distribute.ReduceOp.SUM, counts)
        words, captions, measured_count, stops = tf.unstack(counts)
        loss, measured = aim.loss / words, aim.measured / measured_count
        if config.attention_penalty:
            loss += config.attention_penalty * penalty / captions
        if config.l2:
            variables = self._fitted.captioner.trainable_variables
            loss += config.l2 * l2_penalty(variables) / replicas
        return loss, measured, captions, stops > 0

    def _clipped(self, gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients clipped by value, then by norm; the norm before."""
        config = self._config
        norm = tf.linalg.global_norm(gradients)
        if config.clip_value:
            gradients = [
                tf.clip_by_value(gradient, -config.clip_value, config.clip_value)
                for gradient in gradients
            ]
        if config.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm)
        return gradients, norm


def replica_seed(seed: int, replica: tf.Tensor, replicas: int, step: tf.Tensor) -> tf.Tensor:
    """What a replica draws with in a step, int32 [2]; no two replicas, seeds or steps share it."""
    return tf.stack([seed * replicas + replica, step])
