"""What the networks multiply, to which precision, value and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.agents import CodedTransitions
from saqrl.agents.bc import BC
from saqrl.training import engine
from tests.golden import shaken

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.normal(size=(5, 3)).astype(np.float32)
UPSTREAM = GENERATOR.normal(size=(2, 4, 3)).astype(np.float32)
INPUTS = GENERATOR.normal(size=(2, 4, 5)).astype(np.float32)


def rounded(array: np.ndarray) -> np.ndarray:
    """To bfloat16 and back, in float64."""
    return np.asarray(jnp.asarray(array).astype(jnp.bfloat16).astype(jnp.float32), np.float64)


def product_and_gradients(inputs, weight, upstream):
    return nn.multiply(inputs, weight), *jax.grad(
        lambda x, w: (nn.multiply(x, w) * upstream).sum(), argnums=(0, 1)
    )(inputs, weight)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_and_their_gradients_are_those_of_the_operands_in_that_precision(precision):
    seen = rounded if precision == "bfloat16" else (lambda array: array.astype(np.float64))
    x, w, g = seen(INPUTS), seen(WEIGHT), seen(UPSTREAM)
    expected = (
        np.einsum("abi,io->abo", x, w),
        np.einsum("abo,io->abi", g, w),
        np.einsum("abi,abo->io", x, g),
    )
    with jax.default_matmul_precision(precision):
        found = product_and_gradients(INPUTS, WEIGHT, UPSTREAM)
        one = jax.vmap(jax.vmap(nn.multiply, (0, None)), (0, None))(INPUTS, WEIGHT)
    for ours, theirs in zip((*found, one), (*expected, expected[0]), strict=True):
        assert ours.dtype == jnp.float32
        # What is left is the rounding of float32 sums of at most eight products.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_without_a_setting_products_are_float32():
    inputs, weight = jnp.asarray(INPUTS), jnp.asarray(WEIGHT)
    np.testing.assert_array_equal(nn.multiply(inputs, weight), inputs @ weight)


def test_training_in_bfloat16_keeps_float32_parameters_and_almost_the_path():
    generator = np.random.default_rng(1)
    observations = generator.normal(size=(64, 4)).astype(np.float32)
    codes = (observations[:, 0] > 0).astype(np.int32)
    column = jnp.zeros(64)
    data = CodedTransitions(
        jnp.asarray(observations), jnp.asarray(codes), column, jnp.asarray(observations),
        column, None, None, 2,
    )  # fmt: skip
    agent = BC(steps=200, batch_size=32, hidden=(16,), learning_rate=0.03)
    losses = {}
    for precision in ("float32", "bfloat16"):
        algorithm = dataclasses.replace(agent, precision=precision)
        *_, last = engine.intervals(algorithm, data, jax.random.key(0), pauses=[50])
        assert {leaf.dtype for leaf in jax.tree.leaves(last.state.model)} == {jnp.float32.dtype}
        losses[precision] = last.metrics["cross_entropy"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)
    assert losses["float32"] < 0.1


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_network_is_a_plain_loop_over_its_layers(layer_norm):
    network = shaken(nn.MLP(jax.random.key(0), 5, (4, 6), 3, layer_norm=layer_norm))
    layers = [np.asarray(leaf, np.float64) for leaf in (*network.weights, *network.biases)]
    norms = [np.asarray(leaf, np.float64) for leaf in (*network.norm_scales, *network.norm_offsets)]
    signal = INPUTS.astype(np.float64)
    for layer in range(3):
        signal = signal @ layers[layer] + layers[3 + layer]
        if layer == 2:
            break
        if layer_norm:
            mean, variance = signal.mean(-1, keepdims=True), signal.var(-1, keepdims=True)
            signal = (signal - mean) / np.sqrt(variance + 1e-5) * norms[layer] + norms[2 + layer]
        signal = np.maximum(signal, 0)
    np.testing.assert_allclose(network(INPUTS), signal, rtol=1e-4, atol=1e-4)


def test_what_hardly_varies_is_not_blown_up():
    """The 1e-5 under the root is as large as the variance here."""
    signal = np.sqrt(1e-5) * np.array([[1.0, -1.0], [3.0, 1.0]])
    expected = np.array([[1.0, -1.0], [1.0, -1.0]]) / np.sqrt(2)
    np.testing.assert_allclose(nn.normalize(jnp.asarray(signal)), expected, rtol=1e-4)
    np.testing.assert_array_equal(nn.normalize(jnp.full((2, 3), 7.0)), 0)


def test_a_network_begins_with_weights_of_variance_one_over_its_inputs_and_no_biases():
    network = nn.MLP(jax.random.key(0), 100, (400,), 50)
    for weight, inputs in zip(network.weights, (100, 400), strict=True):
        assert float(weight.var()) == pytest.approx(1 / inputs, rel=0.05)
        assert np.abs(weight).max() == pytest.approx(np.sqrt(3 / inputs), rel=0.01)
    assert not any(bias.any() for bias in network.biases)
    assert network.norm_scales == network.norm_offsets == ()


def test_an_ensemble_stacks_its_networks_and_is_as_pessimistic_as_the_lowest():
    training = nn.Training(hidden=(8,), layer_norm=True)
    ensemble = training.ensemble(jax.random.key(0), 5, 3, count=4)
    said = np.stack([head(INPUTS) for head in ensemble.heads])
    assert said.shape == (4, 2, 4, 3)
    np.testing.assert_allclose(ensemble(INPUTS), said, rtol=1e-6)
    np.testing.assert_allclose(ensemble.pessimistic(INPUTS), said.min(0), rtol=1e-6)
    assert len({said[head].tobytes() for head in range(4)}) == 4


def step_sizes(training: nn.Training, steps: int) -> list[float]:
    """How far a number of 1 moves under a gradient of 1: Adam's steps are the rate."""
    optimiser, number, sizes = training.optimiser(), jnp.ones(()), []
    moments = optimiser.init(number)
    for _ in range(steps):
        update, moments = optimiser.update(jnp.ones(()), moments, number)
        sizes.append(-float(update))
    return sizes


def test_the_rate_stays_or_falls_to_zero_as_a_cosine_at_the_last_step():
    constant = step_sizes(nn.Training(schedule="constant", learning_rate=0.1, steps=4), 6)
    np.testing.assert_allclose(constant, 0.1, rtol=1e-4)
    cosine = step_sizes(nn.Training(schedule="cosine", learning_rate=0.1, steps=4), 6)
    expected = 0.05 * (1 + np.cos(np.pi * np.minimum(np.arange(6), 4) / 4))
    np.testing.assert_allclose(cosine, expected, rtol=1e-4, atol=1e-7)


def test_weight_decay_is_decoupled():
    decayed = step_sizes(nn.Training(schedule="constant", learning_rate=0.1, weight_decay=0.3), 2)
    np.testing.assert_allclose(decayed, 0.1 + 0.1 * 0.3, rtol=1e-4)


def test_a_target_goes_its_share_of_the_way_and_a_rate_of_one_copies():
    target, online = {"a": jnp.asarray([1.0, 2.0])}, {"a": jnp.asarray([5.0, 0.0])}
    for rate, expected in ((0.25, [2, 1.5]), (1.0, [5, 0]), (0.0, [1, 2])):
        np.testing.assert_array_equal(nn.polyak_update(target, online, rate=rate)["a"], expected)


def test_the_bellman_error_is_summed_over_heads_with_targets_of_their_own_or_of_all():
    q = jnp.asarray([[1.0, 2.0], [3.0, 5.0]])
    assert nn.bellman_error(q, jnp.asarray([1.0, 1.0])) == (0 + 1) / 2 + (4 + 16) / 2
    assert nn.bellman_error(q, jnp.asarray([[1.0, 2.0], [3.0, 3.0]])) == 4 / 2
