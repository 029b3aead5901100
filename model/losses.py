"""Masked sparse cross-entropy, summed; the caller divides by the global number of tokens."""

import tensorflow as tf


def masked_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, pad_id: int, label_smoothing: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum the cross-entropy of the labels that are words.

    A mean per replica would weigh a token of a short caption more than one of a long
    caption elsewhere; so sum and count are returned apart, to be added over all replicas.

    Args:
      logits: float32 [M, T, V].
      labels: the word to be predicted, `<end>` last, int32 [M, T]; padding is masked by
        the label, never by the input.
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
