"""Dynamic loss scaling (Micikevicius et al. 2018, section 3.2): small gradients fit float16."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from model.training_config import FLOAT16

# As keras.optimizers.LossScaleOptimizer, which is not used: it takes the scale from gradients
# when it applies them, and ours are clipped before.
_FIRST = 2.0**15
_GROWTH_STEPS = 2000
# A gradient that overflows without a scale is lost in earnest.
LEAST = 1.0


class LossScale(tf.Module):
    """The scale of the loss, 1 for good but in float16; part of the run's checkpoints.

    It is halved when a gradient overflows and doubled after 2,000 steps in which none did.
    A power of two: it takes no digit from a gradient.

    Make it in the scope of the strategy, so that each replica has a copy.

    Args:
      precision: of training_config.PRECISIONS.
    """

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._dynamic = precision == FLOAT16
        if self._dynamic:
            self._scale = tf.Variable(_FIRST, trainable=False, name="loss_scale")
            self._good_steps = tf.Variable(0, trainable=False, name="good_steps")

    @property
    def value(self) -> tf.Tensor:
        """By which the loss is multiplied now, float32 []."""
        return tf.convert_to_tensor(self._scale) if self._dynamic else tf.constant(LEAST)

    def unscaled(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients of the loss, from those of the scaled loss."""
        if not self._dynamic:
            return list(gradients)
        return [gradient / self._scale for gradient in gradients]

    def take(self, norm: tf.Tensor, step: Callable[[], None]) -> None:
        """Take a step unless its gradient overflowed, and set the next one's scale.

        Called outside of the replicas, which then all do the same.

        Args:
          norm: of the gradient, over all replicas, float32 [].
          step: changes weights and optimiser.
        """
        if not self._dynamic:
            step()
            return

        def taken() -> None:
            step()
            grows = self._good_steps + 1 == _GROWTH_STEPS
            self._scale.assign(self._scale * tf.where(grows, 2.0, 1.0))
            self._good_steps.assign(tf.where(grows, 0, self._good_steps + 1))

        def skipped() -> None:
            self._scale.assign(tf.maximum(self._scale / 2.0, LEAST))
            self._good_steps.assign(0)

        tf.cond(tf.math.is_finite(norm), taken, skipped)
