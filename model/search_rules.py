"""What a caption may say next, and what its length is worth."""

import numpy as np
import tensorflow as tf

from model.hypotheses import Drafts, SearchSettings

NEVER = -float("inf")


def allowed(logits: tf.Tensor, drafts: Drafts, settings: SearchSettings) -> tf.Tensor:
    """Logits with -inf for words that must not follow; at least one other is left.

    `<end>` is never blocked, save in a caption shorter than `min_length` that can go on.

    Args:
      logits: float32 [N·K, V].
      drafts: hypotheses so far; what is said of finished ones has no meaning.
      settings: special ids and rules.
    """
    logits = without_blocked(logits, settings)
    if settings.block_ngrams > 0:
        logits = _without_repeats(logits, drafts, settings)
    if settings.min_length > 0:
        logits = _without_early_end(logits, drafts.time, settings)
    return logits


def without_blocked(logits: tf.Tensor, settings: SearchSettings) -> tf.Tensor:
    """Logits float32 [..., V], -inf for the words that are never written."""
    blocked = [settings.pad_id, settings.start_id, *settings.blocked_ids]
    penalty = tf.reduce_max(tf.one_hot(blocked, logits.shape[-1], 1.0, 0.0), axis=0)
    return tf.where(penalty > 0, NEVER, logits)


def penalised(log_prob: tf.Tensor, length: tf.Tensor, settings: SearchSettings) -> tf.Tensor:
    """Score of a caption: log P / ((5 + |Y|) / 6)^alpha (Wu et al. 2016, eq. 14).

    Args:
      log_prob: float32 [...].
      length: |Y|, words and `<end>`, int32 that broadcasts; 0 to T + 1.
      settings: alpha and T.
    """
    if settings.length_penalty == 0.0:
        return log_prob
    # A table, so that penalties are the same on every device and never fall with the length.
    lengths = np.arange(settings.max_length + 2)
    table = ((5 + lengths) / 6) ** settings.length_penalty
    return log_prob / tf.gather(tf.constant(table, tf.float32), length)


def written_length(drafts: Drafts, settings: SearchSettings) -> tf.Tensor:
    """Words and `<end>` of each draft so far, int32 [N, K]."""
    return tf.reduce_sum(tf.cast(drafts.tokens != settings.pad_id, tf.int32), axis=-1)


def scores(drafts: Drafts, settings: SearchSettings) -> tf.Tensor:
    """What the drafts would score as captions if they ended here, float32 [N, K]."""
    return penalised(drafts.log_prob, written_length(drafts, settings), settings)


def repeating_words(tokens: tf.Tensor, time: tf.Tensor, size: int, pad_id: int) -> tf.Tensor:
    """The words that would make the last `size` words an n-gram that is there already.

    Args:
      tokens: words, int32 [M, S].
      time: how many of each row are written, int32 [].
      size: n; with 1 no word is written twice.
      pad_id: stands where there is no such word.

    Returns:
      At each place, the word there if the n - 1 words before it equal the row's last n - 1,
      int32 [M, S].
    """
    places = tf.range(tokens.shape[1])
    same = (places >= size - 1) & (places < time)
    for back in range(1, size):
        before = tf.pad(tokens, [[0, 0], [back, 0]])[:, : tokens.shape[1]]
        last = tf.gather(tokens, tf.maximum(time - back, 0), axis=1)
        same &= before == last[:, tf.newaxis]
    return tf.where(same, tokens, pad_id)


def _without_repeats(logits: tf.Tensor, drafts: Drafts, settings: SearchSettings) -> tf.Tensor:
    tokens = tf.reshape(drafts.tokens, [-1, settings.max_length + 1])
    # The padding stands for none; it is blocked anyhow.
    words = repeating_words(tokens, drafts.time, settings.block_ngrams, settings.pad_id)
    rows = tf.broadcast_to(tf.range(tf.shape(words)[0])[:, tf.newaxis], tf.shape(words))
    return tf.tensor_scatter_nd_update(
        logits, tf.stack([rows, words], axis=-1), tf.fill(tf.shape(words), NEVER)
    )


def _without_early_end(logits: tf.Tensor, time: tf.Tensor, settings: SearchSettings) -> tf.Tensor:
    endless = tf.where(tf.range(logits.shape[-1]) == settings.end_id, NEVER, logits)
    can_go_on = tf.reduce_max(endless, axis=-1, keepdims=True) > NEVER
    return tf.where(can_go_on & (time < settings.min_length), endless, logits)
