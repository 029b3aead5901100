"""The settings of a model reach the search that writes its captions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from model import evaluation
from model.captioner import Captioner
from model.checkpoints import Trained
from model.config import Config
from model.dataset import Split
from model.decoding import CaptionWriter, search_captions
from model.hypotheses import Hypotheses
from model.records import Manifest
from tests import tiny

SIZES = [("hidden_size", 8), ("embedding_size", 8), ("attention_size", 8), ("max_length", 8)]


@pytest.fixture(scope="module", name="captioner")
def fixture_captioner() -> Captioner:
    """One that likes to end early and to say things twice."""
    keras.utils.set_random_seed(2)
    vocabulary = tiny.make_vocabulary()
    captioner = Captioner(Config().updated(SIZES).decoder, len(vocabulary), tiny.GRID_SHAPE)
    for variable in captioner.trainable_variables:
        variable.assign(variable * 3.0)
    bias = next(v for v in captioner.trainable_variables if v.path.endswith("output/bias"))
    bias.assign(5.0 * tf.one_hot(vocabulary.end_id, len(vocabulary)))
    return captioner


def search(captioner: Captioner, **rules: Any) -> Hypotheses:
    config = Config().updated([*SIZES, *rules.items()]).search
    grid = np.random.default_rng(1).normal(size=(6, *tiny.GRID_SHAPE)).astype(np.float16)
    vocabulary = tiny.make_vocabulary()
    return search_captions(captioner, vocabulary, config, tf.constant(grid), best_only=False)


def captions(found: Hypotheses) -> Iterator[list[int]]:
    rows = zip(found.tokens.numpy().reshape(-1, 8), found.length.numpy().ravel(), strict=True)
    return (row[:length].tolist() for row, length in rows)


def test_min_length_reaches_the_search(captioner: Captioner) -> None:
    assert search(captioner).length.numpy().min() < 5
    assert search(captioner, min_length=5).length.numpy().min() == 5


def test_block_ngrams_reaches_the_search(captioner: Captioner) -> None:
    plain = list(captions(search(captioner, min_length=8)))
    assert any(len(set(words)) < len(words) for words in plain)
    blocked = list(captions(search(captioner, min_length=8, block_ngrams=1)))
    assert all(len(set(words)) == len(words) for words in blocked)


def test_length_penalty_reaches_the_search(captioner: Captioner) -> None:
    found = search(captioner, length_penalty=1.5, min_length=2)
    penalty = ((5 + found.length.numpy() + 1) / 6) ** 1.5
    np.testing.assert_allclose(found.score, found.log_prob / penalty, rtol=1e-5)
    assert (np.diff(found.score.numpy(), axis=1) <= 0).all()


def test_another_beam_width_leaves_the_other_settings_as_they_are(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tiny.make_records(tmp_path / "records")
    config = Config().updated([*SIZES, ("min_length", 6)])
    manifest = Manifest.load(records)
    trained = Trained(captioner, tiny.make_vocabulary(), config, manifest, step=1)
    monkeypatch.setattr(evaluation, "load_trained", lambda _: trained)
    # Scores are not asked for here, and take Java where it is.
    monkeypatch.setattr(
        evaluation, "_judge", lambda found, *_: {"captions": [row.caption for row in found]}
    )
    report = evaluation.evaluate(records, [tmp_path], "val", beam_width=2)
    assert report["beam_width"] == report["search"]["beam_width"] == 2
    assert report["search"]["min_length"] == 6
    vocabulary = trained.vocabulary
    lengths = [len(vocabulary.encode(caption)) for caption in report["captions"]]
    assert min(lengths) == 6


class Reciter:
    """Writes one sentence, and looks at another cell for each word that it writes."""

    def __init__(self, sentence: list[int], vocabulary_size: int) -> None:
        following = np.full(vocabulary_size, sentence[-1])
        following[sentence[:-1]] = sentence[1:]
        self._following = tf.constant(following)
        self._places = tf.constant([sentence.index(word) for word in following])
        self._size = vocabulary_size

    def look(self, grid: tf.Tensor) -> "Reciter":
        del grid
        return self

    def rows(self, image_index: tf.Tensor) -> "Reciter":
        del image_index
        return self

    def initial_state(self, rows: tf.Tensor | int) -> tuple[tf.Tensor]:
        return (tf.zeros([rows, 1]),)

    def step(self, tokens: tf.Tensor, state: Any, memory: Any) -> tuple[tf.Tensor, Any, tf.Tensor]:
        del memory
        logits = 9.0 * tf.one_hot(tf.gather(self._following, tokens), self._size)
        cells = tf.gather(self._places, tokens) % tiny.GRID_SHAPE[0]
        return logits, state, tf.one_hot(cells, tiny.GRID_SHAPE[0])


def test_the_attention_of_a_word_is_that_which_wrote_it(tmp_path: Path) -> None:
    records = tiny.make_records(tmp_path)
    vocabulary = tiny.make_vocabulary()
    words = vocabulary.encode("a red bird in the tall tree")
    reciter = Reciter([vocabulary.start_id, *words, vocabulary.end_id], len(vocabulary))
    writer = CaptionWriter(reciter, vocabulary, Config().updated(SIZES).search)
    split = Split(records, Manifest.load(records), "val")
    for prediction in writer.predictions(split, 4):
        assert prediction.tokens == tuple(words)
        # The first word stands behind `<start>`, in place 1.
        assert prediction.attention.argmax(axis=1).tolist() == [1, 2, 3, 0, 1, 2, 3]
        assert prediction.attention.shape == (len(words), tiny.GRID_SHAPE[0])
