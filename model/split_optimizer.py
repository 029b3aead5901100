"""One optimiser a part of a model: each with a learning rate of its own."""

from collections.abc import Sequence

import keras
import tensorflow as tf

Part = tuple[keras.optimizers.Optimizer, Sequence[keras.Variable]]


class SplitOptimizer(tf.Module):
    """Applies gradients by part; part of the run's checkpoints.

    Adam's steps do not depend on the scale of a gradient, so that a smaller one would not slow a
    part down.

    Args:
      parts: optimisers and what each changes; together they change a model's variables, in order.
    """

    def __init__(self, *parts: Part) -> None:
        super().__init__()
        self._sizes = [len(variables) for _, variables in parts]
        self._optimizers = [optimizer for optimizer, _ in parts]
        for optimizer, variables in parts:
            optimizer.build(variables)

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """The state of all parts."""
        return tuple(each for optimizer in self._optimizers for each in optimizer.variables)

    @property
    def iterations(self) -> keras.Variable:
        """Steps taken; all parts have taken as many."""
        return self._optimizers[0].iterations

    def apply(self, gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable]) -> None:
        """Take a step: one gradient for each variable, in order."""
        start = 0
        for optimizer, size in zip(self._optimizers, self._sizes, strict=True):
            part = slice(start, start + size)
            optimizer.apply(gradients[part], variables[part])
            start += size
