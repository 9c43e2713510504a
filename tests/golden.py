"""One gradient step against plain float64 loops.

With no hidden layer every network is one matrix and one bias, and after Adam's first step its first
moment is a tenth of the gradient: what is compared is the gradient that `update` really follows.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from saqrl import nn


def doubles(tree) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def rows_of(batch):
    return zip(*(np.asarray(column, np.float64) for column in jax.tree.leaves(batch)), strict=True)


def linear(leaves, *inputs) -> np.ndarray:
    """The network whose leaves are one weight and one bias."""
    weight, bias = leaves
    return np.concatenate(inputs) @ weight + bias


def network(mlp: nn.MLP, inputs) -> np.ndarray:
    """A ReLU network without normalisation in plain float64."""
    signal = np.asarray(inputs, np.float64)
    for layer, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        signal = signal @ np.asarray(weight, np.float64) + np.asarray(bias, np.float64)
        if layer < len(mlp.weights) - 1:
            signal = np.maximum(signal, 0)
    return signal


def shaken(state, seed: int = 5):
    """The state with noise on every parameter, so that no two networks agree.

    Before the first step a target is its online network: a test that begins there cannot tell
    which of them was asked.
    """
    generator = np.random.default_rng(seed)

    def shake(path, leaf):
        if any(getattr(key, "name", None) == "moments" for key in path):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(generator.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(shake, state)


def step(algorithm, batch, key, *, start=None):
    """(state before the first gradient step, state after it, its metrics)."""
    state = shaken(algorithm.init(jax.random.key(1), batch)) if start is None else start
    after, metrics = jax.jit(type(algorithm).update, static_argnums=0)(algorithm, state, batch, key)
    return state, after, metrics


def assert_gradient(
    state: nn.TrainState, loop: Callable[[list[np.ndarray]], float], model: object
) -> None:
    """What the first step followed is the loop's gradient at `model`, the model before it."""
    leaves = doubles(model)
    for array, moment in zip(leaves, doubles(state.moments[0].mu), strict=True):
        expected = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + 1e-6
            above = loop(leaves)
            array[index] = kept - 1e-6
            expected[index] = (above - loop(leaves)) / 2e-6
            array[index] = kept
        # Float32 against float64 differences.
        np.testing.assert_allclose(moment / 0.1, expected, rtol=2e-3, atol=2e-4)


def assert_moved(new, old, online, *, rate: float) -> None:
    """Every leaf of the target went this share of the way to the online network."""
    for moved, before, ahead in zip(doubles(new), doubles(old), doubles(online), strict=True):
        np.testing.assert_allclose(moved, before + rate * (ahead - before), rtol=1e-4, atol=1e-6)


def assert_same(one, other) -> None:
    for left, right in zip(doubles(one), doubles(other), strict=True):
        np.testing.assert_array_equal(left, right)
