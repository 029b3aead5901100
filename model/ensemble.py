"""Several captioners that write one caption together."""

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from model.captioner import Captioner, Memory
from model.decoder import State


@dataclass(frozen=True)
class EnsembleMemory:
    """What each member sees of the images.

    Attributes:
      members: in the order of the captioners.
    """

    members: tuple[Memory, ...]

    def rows(self, image_index: tf.Tensor) -> "EnsembleMemory":
        """Repeat or pick rows: int32 [M] → a memory of M rows."""
        return EnsembleMemory(tuple(member.rows(image_index) for member in self.members))


class Ensemble:
    """Captioners of one vocabulary and one kind of grid; looks and steps as one Captioner does.

    Each reads the same words and keeps a state of its own. What they predict is the mean of
    their log-probabilities, that is the geometric mean of their probabilities up to a factor:
    a word that one of them holds impossible is not written. A search divides by that factor.

    Args:
      captioners: one or more, of any sizes.
    """

    def __init__(self, captioners: Sequence[Captioner]) -> None:
        self._captioners = tuple(captioners)

    def look(self, grid: tf.Tensor) -> EnsembleMemory:
        """Let every member look at float16 or float32 [N, P, F]."""
        return EnsembleMemory(tuple(captioner.look(grid) for captioner in self._captioners))

    def initial_state(self, rows: tf.Tensor | int) -> tuple[State, ...]:
        """The members' states before the first word."""
        return tuple(captioner.initial_state(rows) for captioner in self._captioners)

    def step(
        self, tokens: tf.Tensor, state: tuple[State, ...], memory: EnsembleMemory
    ) -> tuple[tf.Tensor, tuple[State, ...], tf.Tensor]:
        """Read one word, predict the next.

        Args:
          tokens: the word read, int32 [M]; `<start>` first.
          state: of each member, after the words before.
          memory: of M rows.

        Returns:
          Mean log-probabilities [M, V], the new states, mean attention weights [M, P].
        """
        members = zip(self._captioners, state, memory.members, strict=True)
        answers = [captioner.step(tokens, own, seen) for captioner, own, seen in members]
        return (
            _mean([tf.nn.log_softmax(logits) for logits, _, _ in answers]),
            tuple(own for _, own, _ in answers),
            _mean([weights for _, _, weights in answers]),
        )


def _mean(tensors: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n(tensors) / len(tensors)
