"""Free-running decoding: the one path from grids to captions.

Validation, evaluation and the exported graph all decode through `search_captions`.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import tensorflow as tf

from model.captioner import Captioner
from model.config import SearchConfig
from model.dataset import Split, images
from model.hypotheses import Hypotheses, SearchSettings
from model.progress import Progress
from model.search import beam
from model.vocabulary import Vocabulary


@dataclass(frozen=True)
class Prediction:
    """A caption that was written, and those people wrote.

    Attributes:
      key: of the image.
      caption: written, detokenised.
      log_prob: of the caption and its end, in nats.
      references: raw captions of the annotations.
    """

    key: str
    caption: str
    log_prob: float
    references: tuple[str, ...]


def search_captions(
    captioner: Captioner,
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
    settings = SearchSettings(
        width=config.beam_width,
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
    """

    def __init__(self, captioner: Captioner, vocabulary: Vocabulary, config: SearchConfig) -> None:
        self._vocabulary = vocabulary
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
        found = self._search(batch["grid"])
        best = found.tokens[:, 0].numpy()
        log_probs = found.log_prob[:, 0].numpy()
        references = batch["captions"].to_list()
        for row, key in enumerate(batch["key"].numpy()):
            yield Prediction(
                key.decode(),
                self._vocabulary.decode(best[row]),
                float(log_probs[row]),
                tuple(caption.decode() for caption in references[row]),
            )
