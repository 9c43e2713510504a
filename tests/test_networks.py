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
