"""XLA for the training step: it compiles a function anew for each shape, so shapes are few."""

from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

# Batches differ in captions and in the longest one's words. COCO's, cut at 16 words, have two or
# three sizes of each then; a multiple of more would compute padding, of less compile more.
_CAPTIONS, _WORDS = 8, 4


_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """The function, compiled by XLA for each shape of its arguments.

    Replicas cannot meet inside.
    """
    return tf.function(function, jit_compile=True)


def padded(batch: dict[str, tf.Tensor], pad_id: int) -> dict[str, tf.Tensor]:
    """A batch of a size that other batches have too.

    Args:
      batch: as `dataset.training_batches` yields it.
      pad_id: of words; a row and a column that are added hold nothing else.

    Returns:
      The batch with M a multiple of 8 and T one of 4. The added captions look at the first image.
    """
    rows, words = tf.unstack(tf.shape(batch["labels"]))
    more = [[0, -rows % _CAPTIONS], [0, -words % _WORDS]]
    fill = {
        name: tf.pad(batch[name], more, constant_values=pad_id) for name in ("inputs", "labels")
    }
    return batch | fill | {"image_index": tf.pad(batch["image_index"], more[:1])}
