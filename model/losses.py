"""What training minimises, summed; the caller divides by the global number of what counts."""

from collections.abc import Sequence

import keras
import tensorflow as tf


def count_labels(labels: tf.Tensor, pad_id: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Words and captions of labels int32 [M, T]: what the losses below are means over, float32."""
    words = tf.reduce_sum(tf.cast(labels != pad_id, tf.float32))
    return words, tf.cast(tf.shape(labels)[0], tf.float32)


def masked_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, pad_id: int, label_smoothing: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum the cross-entropy of the labels that are words.

    A mean per replica would weigh a token of a short caption more than one of a long
    caption elsewhere; so sum and count are returned apart, to be added over all replicas.

    Args:
      logits: float32 [..., V], of M captions at T places or of the words alone.
      labels: the word to be predicted, `<end>` last, int32 [...]; padding is masked by the
        label, never by the input.
      pad_id: padding's id.
      label_smoothing: share of the probability spread evenly over the V words
        (Szegedy et al. 2016, section 7).

    Returns:
      Sum of the losses in nats, float32 []; number of labels that count, float32 [].
    """
    mask = tf.cast(labels != pad_id, logits.dtype)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if label_smoothing:
        uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    return tf.reduce_sum(losses * mask), tf.reduce_sum(mask)


def doubly_stochastic_penalty(
    weights: tf.Tensor, labels: tf.Tensor, pad_id: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum over captions of how unevenly each looked at its image (Xu et al. 2015, eq. 14).

    Xu et al. want the attention that a cell gets to add up to 1 over a caption's T words. T words
    have no more than T to give to P cells, so the target that can be reached is T/P.

    Args:
      weights: attention, float32 [M, T, P].
      labels: int32 [M, T]; padding looks nowhere.
      pad_id: padding's id.

    Returns:
      Sum over captions of Σ_p (T/P − Σ_t weights)², float32 []; number of captions, float32 [].
    """
    mask = tf.cast(labels != pad_id, weights.dtype)
    attended = tf.einsum("mt,mtp->mp", mask, weights)
    target = tf.reduce_sum(mask, axis=1, keepdims=True) / tf.cast(
        tf.shape(weights)[2], weights.dtype
    )
    each = tf.reduce_sum(tf.square(attended - target), axis=1)
    return tf.reduce_sum(each), tf.cast(tf.shape(labels)[0], weights.dtype)


def l2_penalty(variables: Sequence[keras.Variable]) -> tuple[tf.Tensor, list[tf.Tensor | None]]:
    """Half the sum of the squares of every weight matrix; biases are left alone.

    Returns:
      The penalty, float32 []; its gradient with respect to each variable, None where it has none.
    """
    matrices = [variable.value if len(variable.shape) > 1 else None for variable in variables]
    squares = [tf.nn.l2_loss(matrix) for matrix in matrices if matrix is not None]
    return tf.reduce_sum(tf.stack(squares)), matrices
