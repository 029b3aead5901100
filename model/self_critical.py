"""Self-critical sequence training (Rennie et al. 2017): CIDEr-D of what the model writes itself.

A step draws captions with the units dropped that its gradient drops, scores them, and makes each
likelier or less likely by how far its reward lies from the baseline: mean of the image's other
samples (Luo 2020), or the greedy caption. The reward is plain Python, outside of the graph; it is
computed while the graph reads the same captions once more for their gradient.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from model.captioner import Captioner, Kept, Memory
from model.cider import CiderD
from model.config import Config, SearchConfig
from model.dataset import Split
from model.decoding import search_settings
from model.hypotheses import Hypotheses
from model.objectives import Aim, Batch
from model.sampling import SamplingSettings, sample
from model.search import greedy
from model.search_rules import without_blocked
from model.training_captions import captions_by_image
from model.training_config import GREEDY
from model.vocabulary import Vocabulary

# Sets the samples' draws apart from the step's others.
_SAMPLES = 0x5C5


class _Drawn(NamedTuple):
    """Captions as the gradient reads them.

    Attributes:
      inputs: `<start>` and the words before each, int32 [M, T].
      labels: words and `<end>`, padded, int32 [M, T].
    """

    inputs: tf.Tensor
    labels: tf.Tensor


class SelfCritical:
    """Policy gradient on CIDEr-D.

    Args:
      captioner: to be trained.
      config: number of samples, baseline, longest caption.
      vocabulary: of the captioner.
      split: the training split, whose captions weigh the n-grams.
    """

    measure = "reward"

    def __init__(
        self, captioner: Captioner, config: Config, vocabulary: Vocabulary, split: Split
    ) -> None:
        self._captioner, self._vocabulary = captioner, vocabulary
        self._samples = config.training.samples
        self._precision = config.training.precision
        self._greedy = config.training.baseline == GREEDY
        # What decides between captions is the reward's business, not a rule's.
        plain = SearchConfig(max_length=config.search.max_length)
        settings = search_settings(plain, vocabulary, width=self._samples)
        self._settings = SamplingSettings(**vars(settings))
        end = vocabulary.end_id
        self._cider = CiderD(
            [[*ids.tolist(), end] for ids in captions] for captions in captions_by_image(split)
        )

    def __call__(self, batch: Batch, seed: tf.Tensor, step: tf.Tensor) -> Aim:
        """−Σ (reward − baseline) log p over the words; the step's number has no meaning here."""
        del step
        captioner, settings = self._captioner, self._settings
        grid = batch["grid"]
        images = tf.shape(grid)[0]
        rows = images * self._samples
        memory = captioner.look(grid, seed, self._precision)
        memory = memory.rows(tf.repeat(tf.range(images), self._samples))
        kept = captioner.kept(rows, settings.max_length + 1, seed)
        drawn = self._cut(self._draw(memory, kept, images, grid.shape[1], seed))
        advantage, rewards = self._judge(batch, drawn.labels)
        written = drawn.labels != settings.pad_id
        units = kept.until(tf.shape(drawn.labels)[1])
        logits, attention = captioner.read(drawn.inputs, memory, units, written)
        # Nats, of the distribution that was drawn from.
        surprise = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.boolean_mask(drawn.labels, written),
            logits=without_blocked(logits, settings),
        )
        loss = tf.reduce_sum(tf.gather(advantage, tf.where(written)[:, 0]) * surprise)
        return Aim(
            loss=loss,
            words=tf.reduce_sum(tf.cast(written, tf.float32)),
            labels=drawn.labels,
            attention=attention,
            measured=tf.reduce_sum(rewards),
            measured_count=tf.cast(rows, tf.float32),
        )

    def _draw(
        self, memory: Memory, kept: Kept, images: tf.Tensor, cells: int, seed: tf.Tensor
    ) -> Hypotheses:
        """Captions of a batch, N × samples."""

        def advance(words: tf.Tensor, carried: tuple) -> tuple:
            state, times = carried
            logits, state, weights = self._captioner.practise(words, times[0], state, memory, kept)
            return logits, (state, times + 1), weights

        rows = images * self._samples
        start = (self._captioner.initial_state(rows), tf.zeros([rows], tf.int32))
        draws = tf.random.experimental.stateless_fold_in(seed, _SAMPLES)
        return sample(advance, start, images, cells, self._settings, draws)

    def _cut(self, found: Hypotheses) -> _Drawn:
        """To the longest of them; a caption that reached the greatest length has no `<end>`."""
        settings = self._settings
        words = tf.reshape(found.tokens, [-1, settings.max_length])
        length = tf.reshape(found.length, [-1, 1])
        ends = tf.range(settings.max_length) == length
        labels = tf.where(ends, settings.end_id, words)
        labels = labels[:, : tf.reduce_max(length) + 1]
        start = tf.fill([tf.shape(labels)[0], 1], settings.start_id)
        return _Drawn(tf.concat([start, labels[:, :-1]], axis=1), labels)

    def _judge(self, batch: Batch, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """How far each caption's reward lies from its baseline, and the reward, float32 [M]."""
        rewards = self._rewards(batch, labels, self._samples)
        if self._greedy:
            written = self._cut(self._write_greedily(batch["grid"])).labels
            baseline = tf.repeat(self._rewards(batch, written, 1), self._samples)
        else:
            each = tf.reshape(rewards, [-1, self._samples])
            others = tf.reduce_sum(each, axis=1, keepdims=True) - each
            baseline = tf.reshape(others / (self._samples - 1), [-1])
        return rewards - baseline, rewards

    def _write_greedily(self, grid: tf.Tensor) -> Hypotheses:
        """The captions that serve as baseline, no unit dropped."""
        images = tf.shape(grid)[0]
        memory = self._captioner.look(grid)
        return greedy(
            lambda words, state: self._captioner.step(words, state, memory),
            self._captioner.initial_state(images),
            images,
            grid.shape[1],
            self._settings,
        )

    def _rewards(self, batch: Batch, labels: tf.Tensor, samples: int) -> tf.Tensor:
        """CIDEr-D, `<end>` included, of captions int32 [N · samples, T] → float32 [N · samples]."""

        def score(
            labels: np.ndarray, references: np.ndarray, image_index: np.ndarray
        ) -> np.ndarray:
            captions = self._words(labels)
            truths: list[list[list[int]]] = [[] for _ in range(len(captions) // samples)]
            for image, ids in zip(image_index.tolist(), self._words(references), strict=True):
                truths[image].append(ids)
            written = [captions[i : i + samples] for i in range(0, len(captions), samples)]
            return self._cider.scores(written, truths).reshape(-1)

        # Not stateful: TensorFlow may compute it beside whatever does not wait for it.
        rewards = tf.numpy_function(
            score, [labels, batch["labels"], batch["image_index"]], tf.float32, stateful=False
        )
        return tf.ensure_shape(rewards, [None])

    def _words(self, labels: np.ndarray) -> list[list[int]]:
        pad = self._settings.pad_id
        return [[word for word in row if word != pad] for row in labels.tolist()]
