"""The learning rate of each step."""

from collections.abc import Callable

import keras
import tensorflow as tf

from model.training_config import COSINE, PLATEAU, STEP, TrainingConfig

# Where a cosine ends, as a share of the learning rate.
_COSINE_FLOOR = 0.01


class Plateau(tf.Module):
    """Lowers the learning rate when validations stop getting better.

    Its state is part of the run's checkpoints.

    Args:
      config: decay_rate and patience.
    """

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        self._config = config
        self.scale = tf.Variable(1.0, trainable=False)
        self.stale = tf.Variable(0, dtype=tf.int64, trainable=False)

    def validated(self, better: bool) -> None:
        """Take note of a validation: whether its score was the best so far."""
        if self._config.schedule != PLATEAU:
            return
        stale = 0 if better else int(self.stale) + 1
        if stale == self._config.patience:
            self.scale.assign(self.scale * self._config.decay_rate)
            stale = 0
        self.stale.assign(stale)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then one of `training_config.SCHEDULES`.

    Args:
      config: rate, schedule and warm-up.
      total_steps: of which the last has the cosine's least rate.
      steps_per_epoch: of the step schedule's epochs.
      scale: factor of every step's rate, a plateau's.
    """

    def __init__(
        self,
        config: TrainingConfig,
        total_steps: int,
        steps_per_epoch: int,
        scale: tf.Variable | float = 1.0,
    ) -> None:
        # A run shorter than its warm-up still reaches its rate.
        self._warmup = min(config.warmup_steps, max(total_steps - 1, 0))
        self._peak, self._scale = config.learning_rate, scale
        last = total_steps - 1 - self._warmup
        self._rate = _after_warmup(config, last, steps_per_epoch)

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The rate of a step, float32 []; the first is 0."""
        step = tf.cast(step, tf.float32)
        rising = self._peak * step / max(self._warmup, 1)
        rate = tf.where(
            step < self._warmup, rising, self._rate(tf.maximum(step - self._warmup, 0.0))
        )
        return rate * self._scale


def _after_warmup(
    config: TrainingConfig, last: int, steps_per_epoch: int
) -> Callable[[tf.Tensor], tf.Tensor]:
    if config.schedule == COSINE:
        # A cosine over no steps stays where it starts; Keras wants at least one.
        return keras.optimizers.schedules.CosineDecay(
            config.learning_rate, max(last, 1), alpha=_COSINE_FLOOR
        )
    if config.schedule == STEP:
        return keras.optimizers.schedules.ExponentialDecay(
            config.learning_rate,
            config.decay_epochs * steps_per_epoch,
            config.decay_rate,
            staircase=True,
        )
    return lambda step: tf.fill(tf.shape(step), config.learning_rate)


def sampling_share(config: TrainingConfig, steps_per_epoch: int, step: tf.Tensor) -> tf.Tensor:
    """Share of input words drawn from the model at a step, float32 [] (Bengio et al. 2015).

    Args:
      config: the ramp.
      steps_per_epoch: of its epochs.
      step: int32 [].
    """
    ramp = config.scheduled_sampling_epochs * steps_per_epoch
    grown = tf.minimum(tf.cast(step, tf.float32) / ramp, 1.0) if ramp else 1.0
    return tf.constant(config.scheduled_sampling) * grown
