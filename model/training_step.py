"""One step of training, on every replica."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf

from model import xla
from model.averages import WeightAverages
from model.captioner import Captioner
from model.dataset import stored_grids
from model.fine_tuning import TunedEncoder
from model.loss_scale import LossScale
from model.losses import count_labels, doubly_stochastic_penalty, l2_penalty
from model.objectives import Batch, Objective
from model.split_optimizer import SplitOptimizer
from model.summation import keep_order
from model.training_config import TrainingConfig


class Taken(NamedTuple):
    """What a step says of itself, over all replicas.

    Attributes:
      loss: what was minimised, penalties included, float32 [].
      measured: mean of the objective's measure, float32 [].
      gradient_norm: global norm before clipping, float32 [].
      loss_scale: at which the gradient was computed, float32 [].
      captions: that were read, float32 [].
      stopping: whether any process wants to stop, bool [].
    """

    loss: tf.Tensor
    measured: tf.Tensor
    gradient_norm: tf.Tensor
    loss_scale: tf.Tensor
    captions: tf.Tensor
    stopping: tf.Tensor


class Counts(NamedTuple):
    """What a step's sums are divided by, and who ends it; float32 [].

    Attributes:
      words: that the loss is the mean over.
      captions: rows of the batch.
      measured: what the objective's measure is divided by.
      stops: processes that want to stop.
    """

    words: tf.Tensor
    captions: tf.Tensor
    measured: tf.Tensor
    stops: tf.Tensor


class Gradients(NamedTuple):
    """A replica's share of a step, before the replicas' gradients meet.

    Attributes:
      loss: its share of the global mean loss, float32 [].
      measured: of the objective's measure, float32 [].
      counts: of all replicas.
      scaled: gradients of the loss times its scale.
    """

    loss: tf.Tensor
    measured: tf.Tensor
    counts: Counts
    scaled: list[tf.Tensor]


@dataclass(frozen=True)
class Fitted:
    """What a step changes.

    Attributes:
      captioner: its weights.
      optimizer: its state.
      averages: of the weights.
      loss_scale: of the next step.
      encoder: its weights, where it is fine-tuned.
    """

    captioner: Captioner
    optimizer: keras.optimizers.Optimizer | SplitOptimizer
    averages: WeightAverages
    loss_scale: LossScale
    encoder: TunedEncoder | None = None

    @property
    def trained(self) -> list[keras.Variable]:
        """Variables that the optimiser changes: the captioner's, then the encoder's."""
        encoder = [] if self.encoder is None else self.encoder.trained
        return [*self.captioner.trainable_variables, *encoder]

    def grids(self, batch: Batch) -> tf.Tensor:
        """What the captioner looks at, float16 or float32 [N, P, F]."""
        if self.encoder is None:
            return stored_grids(batch)
        return self.encoder(batch["image"], batch["extent"])


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
        self._xla_gradients = xla.compiled(self._gradients_by)

    def compiled(self, batch_spec: object) -> Callable[[Batch, tf.Tensor, tf.Tensor], Taken]:
        """One trace for batches of any length."""
        keep_order()
        number = tf.TensorSpec([], tf.int32)
        return tf.function(self, input_signature=[batch_spec, number, number])

    def __call__(self, batch: Batch, step: tf.Tensor, stop: tf.Tensor) -> Taken:
        """Take a step on all replicas."""
        taken, gradients = self._strategy.run(self._on_replica, args=(batch, step, stop))
        total, first = tf.distribute.ReduceOp.SUM, self._strategy.experimental_local_results
        shares = (self._strategy.reduce(total, share, axis=None) for share in taken[:2])
        # The others are the same on every replica.
        taken = Taken(*shares, *(first(value)[0] for value in taken[2:]))

        def apply() -> None:
            self._strategy.run(self._apply, args=(gradients,))
            self._fitted.averages.update(step)

        self._fitted.loss_scale.take(taken.gradient_norm, apply)
        return taken

    def _on_replica(
        self, batch: Batch, step: tf.Tensor, stop: tf.Tensor
    ) -> tuple[Taken, list[tf.Tensor]]:
        """One replica's share of the global mean loss, and the clipped global gradient."""
        scale = self._fitted.loss_scale
        share = self._gradients(batch, step, stop, scale.value)
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, share.scaled)
        gradients, norm = self._clipped(scale.unscaled(gradients))
        counts = share.counts
        taken = Taken(
            share.loss, share.measured, norm, scale.value, counts.captions, counts.stops > 0
        )
        return taken, gradients

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        """Change the weights on one replica, which has the clipped global gradient already."""
        # Keras sums over replicas once more.
        replicas = float(tf.distribute.get_replica_context().num_replicas_in_sync)
        variables = self._fitted.trained
        self._fitted.optimizer.apply([gradient / replicas for gradient in gradients], variables)

    def _gradients(
        self, batch: Batch, step: tf.Tensor, stop: tf.Tensor, scale: tf.Tensor
    ) -> Gradients:
        """One replica's share; the replicas meet once for all that they count."""
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
        seed = replica_seed(self._config.seed, replica, context.num_replicas_in_sync, step)
        stops = tf.cast(stop, tf.float32)
        if not self._config.xla:
            return self._gradients_of(
                batch, seed, step, scale, lambda own: _over_replicas(own._replace(stops=stops))
            )
        # Inside of what XLA compiles they cannot meet, so labels are counted before.
        words, captions = count_labels(batch["labels"], self._pad_id)
        counts = _over_replicas(Counts(words, captions, words, stops))
        return self._xla_gradients(xla.padded(batch, self._pad_id), seed, step, scale, counts)

    def _gradients_by(
        self, batch: Batch, seed: tf.Tensor, step: tf.Tensor, scale: tf.Tensor, counts: Counts
    ) -> Gradients:
        """As `_gradients_of`, by counts over all replicas that are known before."""
        return self._gradients_of(batch, seed, step, scale, lambda _: counts)

    def _gradients_of(
        self,
        batch: Batch,
        seed: tf.Tensor,
        step: tf.Tensor,
        scale: tf.Tensor,
        meet: Callable[[Counts], Counts],
    ) -> Gradients:
        """As `_gradients`; `meet` makes counts over all replicas of this one's, its stops 0."""
        config = self._config
        variables = self._fitted.trained
        with tf.GradientTape() as tape:
            batch = {**batch, "grid": self._fitted.grids(batch)}
            aim = self._objective(batch, seed, step)
            _, captions = count_labels(aim.labels, self._pad_id)
            counts = meet(Counts(aim.words, captions, aim.measured_count, tf.constant(0.0)))
            loss = aim.loss / counts.words
            if config.attention_penalty:
                penalty, _ = doubly_stochastic_penalty(aim.attention, aim.labels, self._pad_id)
                loss += config.attention_penalty * penalty / counts.captions
            scaled = loss * scale
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(scaled, variables)]
        if config.l2:
            # An encoder's pretrained kernels would be pulled to 0.
            decayed = self._fitted.captioner.trainable_variables
            weight = config.l2 / self._strategy.num_replicas_in_sync
            penalty, l2_gradients = l2_penalty(decayed)
            loss += weight * penalty
            # Beside the tape: a weight that is used twice would get a third term of it.
            gradients[: len(decayed)] = [
                gradient if own is None else gradient + scale * weight * own
                for gradient, own in zip(gradients[: len(decayed)], l2_gradients, strict=True)
            ]
        return Gradients(loss, aim.measured / counts.measured, counts, gradients)

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


def _over_replicas(own: Counts) -> Counts:
    """A replica's counts, summed over all of them."""
    context = tf.distribute.get_replica_context()
    counts = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(own))
    return Counts(*tf.unstack(counts))


def replica_seed(seed: int, replica: tf.Tensor, replicas: int, step: tf.Tensor) -> tf.Tensor:
    """What a replica draws with in a step, int32 [2]; no two replicas, seeds or steps share it."""
    return tf.stack([seed * replicas + replica, step])
