"""The decoder against a NumPy float64 reference written from the equations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.captioner import Captioner
from model.config import DecoderConfig
from model.decoder import GruUpdate

CONFIG = DecoderConfig(embedding_size=5, hidden_size=6, attention_size=7, num_layers=3, dropout=0.0)
VOCABULARY, CELLS, FEATURES = 9, 4, 8


@pytest.fixture(name="captioner")
def fixture_captioner() -> Captioner:
    return make_captioner(CONFIG)


def make_captioner(config: DecoderConfig) -> Captioner:
    keras.utils.set_random_seed(3)
    captioner = Captioner(config, VOCABULARY, (CELLS, FEATURES))
    generator = np.random.default_rng(4)
    # Biases and statistics start at constants, which would hide a missing term.
    for variable in captioner.variables:
        if variable.path.endswith("grid_variance"):
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        else:
            variable.assign(generator.normal(0, 0.4, variable.shape))
    return captioner


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Reference:
    """One caption, one step at a time, in float64."""

    def __init__(self, captioner: Captioner, grid: np.ndarray) -> None:
        self.weights: dict[str, list[np.ndarray]] = {}
        for variable in captioner.variables:
            self.weights.setdefault(variable.path, []).append(variable.numpy().astype(np.float64))
        scale = 1 / np.sqrt(self["captioner/grid_variance"] + 1e-6)
        normalised = (grid.astype(np.float64) - self["captioner/grid_mean"]) * scale
        projected = normalised @ self["cell_projection/kernel"] + self["cell_projection/bias"]
        if captioner.config.normalise_cells:
            projected = projected / np.sqrt(np.mean(projected**2, axis=1, keepdims=True) + 1e-2)
        self.cells = np.maximum(projected + self["captioner/cell_position"], 0)
        self.state = [np.zeros(CONFIG.hidden_size)] * CONFIG.num_layers

    def __getitem__(self, path: str) -> np.ndarray:
        return self.weights[path][0]

    def gru(self, layer: int, projected: np.ndarray, state: np.ndarray) -> np.ndarray:
        kernel = self.weights["recurrent/kernel"][layer]
        recurrent = state @ kernel + self.weights["recurrent/bias"][layer]
        z_in, r_in, c_in = np.split(projected, 3)
        z, r, c = np.split(recurrent, 3)
        update, reset = sigmoid(z_in + z), sigmoid(r_in + r)
        candidate = np.tanh(c_in + reset * c)
        return update * state + (1 - update) * candidate

    def step(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        word = self["embedding/embeddings"][token]
        projected = word @ self["word_gates/kernel"] + self["word_gates/bias"]
        projected = projected + self.cells.mean(axis=0) @ self["mean_gates/kernel"]
        projected = projected + self.state[-1] @ self["top_gates/kernel"]
        query = self.gru(0, projected, self.state[0])
        keys = self.cells @ self["key/kernel"]
        hidden = np.tanh(keys + query @ self["query/kernel"] + self["query/bias"])
        scores = (hidden @ self["score/kernel"])[:, 0]
        weights = np.exp(scores) / np.exp(scores).sum()
        layer_input = np.concatenate([weights @ self.cells, query])
        state = [query]
        for layer in range(CONFIG.num_layers - 1):
            kernel = self[f"language_{layer}_gates/kernel"]
            gates = layer_input @ kernel + self[f"language_{layer}_gates/bias"]
            layer_input = self.gru(layer + 1, gates, self.state[layer + 1])
            state.append(layer_input)
        self.state = state
        return state[-1] @ self["output/kernel"] + self["output/bias"], weights


GRID = np.random.default_rng(1).normal(size=(2, CELLS, FEATURES)).astype(np.float16)
TOKENS = np.array([[1, 4, 5, 6], [1, 7, 8, 0], [1, 5, 5, 5]], np.int32)
IMAGE_INDEX = np.array([0, 1, 1], np.int32)


@pytest.mark.parametrize("normalise_cells", [False, True])
def test_teacher_forcing_equals_the_equations(normalise_cells: bool) -> None:
    captioner = make_captioner(replace(CONFIG, normalise_cells=normalise_cells))
    logits, weights = captioner(GRID, TOKENS, IMAGE_INDEX)
    for row, image in enumerate(IMAGE_INDEX):
        reference = Reference(captioner, GRID[image])
        for time, token in enumerate(TOKENS[row]):
            expected_logits, expected_weights = reference.step(token)
            np.testing.assert_allclose(logits[row, time], expected_logits, atol=1e-5)
            np.testing.assert_allclose(weights[row, time], expected_weights, atol=1e-5)


def test_steps_equal_the_unrolled_caption(captioner: Captioner) -> None:
    unrolled, _ = captioner(GRID, TOKENS, IMAGE_INDEX)
    memory = captioner.look(GRID).rows(IMAGE_INDEX)
    state = captioner.initial_state(3)
    for time in range(TOKENS.shape[1]):
        logits, state, weights = captioner.step(TOKENS[:, time], state, memory)
        np.testing.assert_allclose(logits, unrolled[:, time], atol=1e-6)
        np.testing.assert_allclose(tf.reduce_sum(weights, axis=1), 1.0, rtol=1e-5)


def test_a_word_sees_no_word_after_it(captioner: Captioner) -> None:
    changed = TOKENS.copy()
    changed[:, 2] = 3
    before, _ = captioner(GRID, TOKENS, IMAGE_INDEX)
    after, _ = captioner(GRID, changed, IMAGE_INDEX)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.abs(before[:, 2:] - after[:, 2:]).min(axis=-1).max() > 0


def test_attention_differs_between_words(captioner: Captioner) -> None:
    _, weights = captioner(GRID, TOKENS, IMAGE_INDEX)
    assert np.abs(weights[0, 0] - weights[0, 1]).max() > 1e-3


def test_gradients_agree_with_finite_differences(captioner: Captioner) -> None:
    labels = tf.constant([[4, 5, 6, 2], [7, 8, 2, 0], [5, 5, 5, 2]])

    def loss() -> tf.Tensor:
        logits, _ = captioner(GRID, TOKENS, IMAGE_INDEX)
        return tf.reduce_sum(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, captioner.trainable_variables)
    for variable, gradient in zip(captioner.trainable_variables, gradients, strict=True):
        dense = tf.convert_to_tensor(gradient).numpy()
        place = np.unravel_index(np.abs(dense).argmax(), dense.shape)
        original, step = variable.numpy(), 1e-2
        slopes = []
        for sign in (1, -1):
            moved = original.copy()
            moved[place] += sign * step
            variable.assign(moved)
            slopes.append(float(loss()))
        variable.assign(original)
        slope = (slopes[0] - slopes[1]) / (2 * step)
        assert slope == pytest.approx(float(dense[place]), rel=2e-2), variable.path


def test_gru_update_equals_keras() -> None:
    update = GruUpdate(4, "gru")
    cell = keras.layers.GRUCell(4, reset_after=True)
    cell.build((None, 3))
    generator = np.random.default_rng(2)
    kernel = generator.normal(size=(3, 12))
    recurrent, bias = generator.normal(size=(4, 12)), generator.normal(size=(2, 12))
    cell.set_weights([kernel, recurrent, bias])
    update.set_weights([recurrent, bias[1]])
    inputs, state = generator.normal(size=(5, 3)), generator.normal(size=(5, 4))
    projected = tf.constant(inputs @ kernel + bias[0], tf.float32)
    expected, _ = cell(tf.constant(inputs, tf.float32), [tf.constant(state, tf.float32)])
    found = update(projected, tf.constant(state, tf.float32))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dropout_is_a_function_of_its_seed() -> None:
    keras.utils.set_random_seed(0)
    config = DecoderConfig(8, 8, 8, 2, dropout=0.5)
    captioner = Captioner(config, VOCABULARY, (CELLS, FEATURES))

    def logits(seed: list[int] | None) -> np.ndarray:
        drawn = None if seed is None else tf.constant(seed)
        return captioner(GRID, TOKENS, IMAGE_INDEX, seed=drawn)[0].numpy()

    np.testing.assert_array_equal(logits([0, 7]), logits([0, 7]))
    np.testing.assert_array_equal(logits(None), logits(None))
    for other in ([0, 8], [1, 7], None):
        assert np.abs(logits([0, 7]) - logits(other)).max() > 1e-3


def test_grid_statistics_normalise_each_channel() -> None:
    keras.utils.set_random_seed(0)
    captioner = Captioner(CONFIG, VOCABULARY, (CELLS, FEATURES))
    plain = captioner.look(GRID).cells
    shift = np.linspace(-3, 3, FEATURES, dtype=np.float32)
    scale = np.linspace(1, 4, FEATURES, dtype=np.float32)
    captioner.set_grid_statistics(shift, scale**2 - 1e-6)
    moved = captioner.look(GRID.astype(np.float32) * scale + shift).cells
    np.testing.assert_allclose(moved, plain, atol=1e-5)


def test_a_checkpoint_of_the_captioner_holds_every_weight(
    captioner: Captioner, tmp_path: Path
) -> None:
    path = tf.train.Checkpoint(captioner=captioner).write(str(tmp_path / "checkpoint"))
    other = Captioner(CONFIG, VOCABULARY, (CELLS, FEATURES))
    tf.train.Checkpoint(captioner=other).read(path).assert_consumed()
    assert len(other.variables) == len(captioner.variables) > 20
    for one, two in zip(captioner.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


@pytest.mark.parametrize("embedding_size", [5, CONFIG.hidden_size])
def test_tied_output_has_the_embeddings_for_weights(embedding_size: int) -> None:
    keras.utils.set_random_seed(3)
    config = replace(CONFIG, embedding_size=embedding_size, tie_embeddings=True)
    captioner = Captioner(config, VOCABULARY, (CELLS, FEATURES))
    weights = {variable.path: variable for variable in captioner.variables}
    assert not any(path.startswith("output/") for path in weights)
    weights["tied_output/bias"].assign(np.arange(VOCABULARY))
    state = np.random.default_rng(0).normal(size=(2, 3, CONFIG.hidden_size)).astype(np.float32)
    projected = state
    if embedding_size != CONFIG.hidden_size:
        projected = state @ weights["projection/kernel"].numpy()
    table = weights["embedding/embeddings"].numpy()
    expected = projected @ table.T + np.arange(VOCABULARY)
    np.testing.assert_allclose(
        captioner._logits(tf.constant(state), captioner.look(GRID)), expected, atol=1e-5
    )
    unrolled, _ = captioner(GRID, TOKENS, IMAGE_INDEX)
    memory = captioner.look(GRID).rows(IMAGE_INDEX)
    first, _, _ = captioner.step(TOKENS[:, 0], captioner.initial_state(3), memory)
    np.testing.assert_allclose(first, unrolled[:, 0], atol=1e-5)


def sample_the_most_probable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tf.random,
        "stateless_categorical",
        lambda logits, *_, **__: tf.argmax(logits, -1, tf.int32)[:, tf.newaxis],
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_sampled_words_are_what_the_model_says_of_the_words_before(
    dropout: float, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the units dropped that the training pass drops."""
    # Fresh weights say much the same whatever was read before the last word.
    for variable in captioner.trainable_variables:
        variable.assign(variable * 3.0)
    sample_the_most_probable(monkeypatch)
    captioner.config = replace(CONFIG, dropout=dropout)
    seed, share, read = tf.constant([0, 7]), tf.constant(1.0), []
    sampled = captioner._partly_sampled

    def note(*args: Any) -> tf.Tensor:
        read.append(sampled(*args))
        return read[-1]

    monkeypatch.setattr(captioner, "_partly_sampled", note)
    logits, _ = captioner(GRID, TOKENS, IMAGE_INDEX, seed=seed, sampling_share=share)
    words = read[0].numpy()
    np.testing.assert_array_equal(words[:, 0], TOKENS[:, 0])
    np.testing.assert_array_equal(words[:, 1:], logits.numpy().argmax(-1)[:, :-1])
    # Otherwise the captions happen to be the model's own.
    assert (words[:, 1:] != TOKENS[:, 1:]).any()


def test_a_share_of_the_words_is_sampled(captioner: Captioner) -> None:
    tokens = np.full((200, 11), VOCABULARY - 1, np.int32)
    rows = captioner.look(GRID).rows(tf.zeros([200], tf.int32))
    # The model never says this word, so each that differs was drawn.
    bias = next(v for v in captioner.variables if v.path == "output/bias")
    bias.assign(tf.tensor_scatter_nd_update(bias.value, [[VOCABULARY - 1]], [-1e9]))

    def partly(share: float, seed: int) -> np.ndarray:
        drawn = captioner._partly_sampled(
            tf.constant(tokens), rows, tf.constant([0, seed]), tf.constant(share)
        )
        return drawn.numpy()

    differ = partly(0.3, 1) != tokens
    assert not differ[:, 0].any()
    assert differ[:, 1:].mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(partly(0.3, 1), partly(0.3, 1))
    assert (partly(0.3, 1) != partly(0.3, 2)).any()
    np.testing.assert_array_equal(partly(0.0, 1), tokens)
    # Words are drawn, not the most probable taken: equal rows get unequal words.
    assert len({tuple(row) for row in partly(1.0, 1)}) > 100


def test_the_vocabulary_is_projected_where_it_is_asked_for(captioner: Captioner) -> None:
    generator = np.random.default_rng(6)
    grid = generator.normal(size=(2, CELLS, FEATURES)).astype(np.float16)
    tokens = generator.integers(0, VOCABULARY, (3, 5)).astype(np.int32)
    places = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
    rows = tf.constant([0, 1, 1])
    whole, _ = captioner(grid, tokens, rows)
    asked, weights = captioner(grid, tokens, rows, places=tf.constant(places))
    np.testing.assert_allclose(asked, whole.numpy()[places], atol=1e-6)
    assert weights.shape == (3, 5, CELLS)
