"""Batch normalisation folded into the convolutions: the same grids, from a graph without it."""

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

from model import resnet50, runtimes
from model.encoder import Encoder, EncoderSettings
from model.folding import FoldedConvolution, fold, weights

SIZE = 64
CONVOLUTIONS = 53
IMAGES = np.random.default_rng(0).normal(0, 65, (3, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module", name="network")
def fixture_network() -> keras.Model:
    """With statistics, scales, offsets and biases that all matter."""
    network = resnet50.build("random:0", SIZE, "float32")
    generator = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, *_ = layer.get_weights()
            size = gamma.shape
            layer.set_weights(
                [
                    gamma * generator.uniform(0.5, 1.5, size),
                    generator.normal(0, 0.1, size),
                    generator.normal(0, 0.1, size),
                    generator.uniform(0.5, 2, size),
                ]
            )
        elif isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, generator.normal(0, 0.1, bias.shape)])
    return network


def test_one_convolution_by_hand() -> None:
    convolution = keras.layers.Conv2D(1, 1)
    convolution.build((None, 1, 1, 1))
    convolution.set_weights([np.full((1, 1, 1, 1), 3.0), np.array([2.0])])
    normalisation = keras.layers.BatchNormalization(epsilon=1.0)
    normalisation.build((None, 1, 1, 1))
    # (3 x + 2 - 1) · 4 / √(8 + 1) + 5 of 6
    normalisation.set_weights([np.array([value]) for value in (4.0, 5.0, 1.0, 8.0)])
    folded = FoldedConvolution(convolution, normalisation)
    assert float(tf.squeeze(folded(tf.fill([1, 1, 1, 1], 6.0)))) == pytest.approx(19 * 4 / 3 + 5)


def test_grids_are_those_of_the_network(network: keras.Model) -> None:
    expected = network(IMAGES, training=False).numpy()
    found = runtimes.TensorFlowRuntime(network)(IMAGES).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).mean()
    assert np.abs(expected[0] - expected[1]).mean() > 0.01 * np.abs(expected).mean()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_graph_has_convolutions_and_no_normalisation(
    network: keras.Model, frozen: bool
) -> None:
    runtime = runtimes.TensorFlowRuntime(network)
    compute = runtimes.freeze(network) if frozen else runtime._compute
    kinds = Counter(node.op for node in compute.graph.as_graph_def().node)
    assert kinds["Conv2D"] == kinds["BiasAdd"] == CONVOLUTIONS
    rest = {"Placeholder", "Const", "Conv2D", "BiasAdd", "Relu", "AddV2", "Pad", "MaxPool"}
    # Weights are variables, except for OpenVINO.
    assert kinds["ReadVariableOp"] == (0 if frozen else 2 * CONVOLUTIONS)
    assert set(kinds) <= rest | {"Identity", "NoOp", "ReadVariableOp"}
    # Of the residual blocks.
    assert kinds["AddV2"] == 16


def test_the_network_itself_stays(network: keras.Model) -> None:
    before = [weight.numpy() for weight in network.weights]
    folded = fold(network)
    assert len(weights(folded)) == 2 * CONVOLUTIONS
    assert not any(variable.trainable for variable in weights(folded))
    for weight, then in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), then)


def test_it_may_be_folded_first_in_a_graph_that_is_traced() -> None:
    """As an export does it: such a graph may make no variables."""
    encoder = Encoder(EncoderSettings("random:0", SIZE, 2))
    found = tf.function(lambda images: encoder(images))(tf.constant(IMAGES))
    expected = Encoder(EncoderSettings("random:0", SIZE, 2))(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_folded_too(network: keras.Model) -> None:
    half = resnet50.architecture(SIZE, "mixed_float16")
    half.set_weights(network.get_weights())
    expected = network(IMAGES, training=False).numpy()
    assert {variable.dtype for variable in weights(fold(half))} == {tf.float16}
    found = runtimes.TensorFlowRuntime(half)(IMAGES).numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).mean()
