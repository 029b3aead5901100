"""Free-running decoding: the one path from grids to captions.

Validation, evaluation and the exported graph all decode through `search_captions`.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from model.config import SearchConfig
from model.dataset import Grids, Split, images, stored_grids
from model.hypotheses import Hypotheses, SearchSettings
from model.progress import Progress
from model.search import beam
from model.vocabulary import Vocabulary


class Memory(Protocol):
    """What a word model sees of the images, once it has looked; see captioner.Memory."""

    def rows(self, image_index: tf.Tensor) -> "Memory":
        """Repeat or pick rows: int32 [M] → a Memory of M rows."""


class WordModel(Protocol):
    """What writes captions word by word: a Captioner, or several as an Ensemble."""

    def look(self, grid: tf.Tensor) -> Memory:
        """Compute once an image what every word will use; grid float16 [N, P, F]."""

    def initial_state(self, rows: tf.Tensor | int) -> Any:
        """Nested tensors of M rows, before the first word."""

    def step(self, tokens: tf.Tensor, state: Any, memory: Any) -> tuple[tf.Tensor, Any, tf.Tensor]:
        """Read words int32 [M]; returns logits [M, V], state, attention weights [M, P]."""


@dataclass(frozen=True)
class Prediction:
    """A caption that was written, and those people wrote.

    Attributes:
      key: of the image.
      caption: written, detokenised.
      log_prob: of the caption and its end, in nats.
      references: raw captions of the annotations.
      tokens: ids of the caption's words.
      attention_entropy: see `attention_entropy`.
      attention: cells looked at when each word was written, float32 [T, P].
    """

    key: str
    caption: str
    log_prob: float
    references: tuple[str, ...]
    tokens: tuple[int, ...]
    attention_entropy: float | None
    attention: np.ndarray = field(repr=False, compare=False)


def by_key(
    predictions: Sequence[Prediction],
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Captions and references by the key of their image, as metrics take them."""
    captions = {prediction.key: prediction.caption for prediction in predictions}
    return captions, {prediction.key: prediction.references for prediction in predictions}


def search_settings(
    config: SearchConfig,
    vocabulary: Vocabulary,
    *,
    width: int | None = None,
    best_only: bool = False,
) -> SearchSettings:
    """Rules of a search in a vocabulary's ids; `<unk>` is never written.

    Args:
      config: width, length and rules.
      vocabulary: special ids.
      width: instead of the config's.
      best_only: see SearchSettings.
    """
    return SearchSettings(
        width=config.beam_width if width is None else width,
        max_length=config.max_length,
        start_id=vocabulary.start_id,
        end_id=vocabulary.end_id,
        pad_id=vocabulary.pad_id,
        blocked_ids=(vocabulary.unk_id,),
        best_only=best_only,
        length_penalty=config.length_penalty,
        min_length=config.min_length,
        block_ngrams=config.block_ngrams,
    )


def search_captions(
    captioner: WordModel,
    vocabulary: Vocabulary,
    config: SearchConfig,
    grid: tf.Tensor,
    *,
    best_only: bool = True,
) -> Hypotheses:
    """Write captions for a batch of grids, in a graph or eagerly.

    Args:
      captioner: the model.
      vocabulary: special ids.
      config: width K, length T and rules.
      grid: float16 [N, P, F], as records store it.
      best_only: the best caption of each image will do, which takes fewer steps.

    Returns:
      Hypotheses, best first.
    """
    settings = search_settings(config, vocabulary, best_only=best_only)
    batch = tf.shape(grid)[0]
    rows = tf.repeat(tf.range(batch), settings.width)
    memory = captioner.look(grid).rows(rows)
    return beam(
        lambda tokens, state: captioner.step(tokens, state, memory),
        captioner.initial_state(batch * settings.width),
        batch,
        grid.shape[1],
        settings,
    )


class CaptionWriter:
    """A compiled `search_captions` for splits of records.

    Args:
      captioner: the model.
      vocabulary: of the model.
      config: how to search.
      grids: of a batch of records, float16 [N, P, F].
    """

    def __init__(
        self,
        captioner: WordModel,
        vocabulary: Vocabulary,
        config: SearchConfig,
        grids: Grids = stored_grids,
    ) -> None:
        self._vocabulary, self._grids = vocabulary, grids
        self._search = tf.function(
            lambda grid: search_captions(captioner, vocabulary, config, grid),
            reduce_retracing=True,
        )

    def predictions(self, split: Split, batch_size: int, limit: int = 0) -> Iterator[Prediction]:
        """Caption every image of a split once, in shard order.

        Args:
          split: what to caption.
          batch_size: images at once.
          limit: most images; 0 is all.
        """
        total = min(limit or split.num_images, split.num_images)
        with closing(Progress("caption", total, "images")) as line:
            for batch in images(split, batch_size, limit):
                yield from self._batch(batch)
                line.advance(len(batch["key"]))

    def _batch(self, batch: dict[str, tf.Tensor]) -> Iterator[Prediction]:
        found = self._search(self._grids(batch))
        best = found.tokens[:, 0].numpy()
        log_probs = found.log_prob[:, 0].numpy()
        lengths = found.length[:, 0].numpy()
        attention = found.attention[:, 0].numpy()
        references = batch["captions"].to_list()
        for row, key in enumerate(batch["key"].numpy()):
            words = slice(0, lengths[row])
            # A copy, so that a caption does not keep the whole batch's attention.
            weights = attention[row, words].copy()
            yield Prediction(
                key.decode(),
                self._vocabulary.decode(best[row]),
                float(log_probs[row]),
                tuple(caption.decode() for caption in references[row]),
                tuple(best[row, words].tolist()),
                attention_entropy(weights),
                weights,
            )


def attention_entropy(weights: np.ndarray) -> float | None:
    """How far a caption's attention is spread: 0 on one cell, log P over all alike.

    Args:
      weights: float32 [T, P], a row a word, each summing to 1.

    Returns:
      Mean over the words of their weights' entropy, in nats; None without a word.
    """
    if len(weights) == 0:
        return None
    weights = weights.astype(np.float64)
    # A weight of 0 adds nothing.
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return float(-(weights * logs).sum(axis=-1).mean())
