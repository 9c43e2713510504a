"""Densities against float64 loops and quadratures, values and gradients."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.baselines import distributions as density

# Float32 arithmetic on numbers of order 10.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def loop_tanh_gaussian(action, mean, log_deviation, reach=1.0) -> float:
    total = 0.0
    for a, m, log_s in zip(action, mean, log_deviation, strict=True):
        u, s = math.atanh(a / reach), math.exp(log_s)
        normal = -0.5 * ((u - m) / s) ** 2 - log_s - 0.5 * math.log(2 * math.pi)
        total += normal - math.log(reach * (1 - (a / reach) ** 2))
    return total


def loop_mixture(action, logits, means, deviations) -> float:
    weights = np.exp(logits) / np.exp(logits).sum()
    total = 0.0
    for weight, mean, deviation in zip(weights, means, deviations, strict=True):
        product = float(weight)
        for a, m, s in zip(action, mean, deviation, strict=True):
            product *= math.exp(-0.5 * ((a - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
        total += product
    return math.log(total)


def loop_logsumexp(values, log_densities) -> float:
    ratios = [math.exp(v) / math.exp(d) for v, d in zip(values, log_densities, strict=True)]
    return math.log(sum(ratios) / len(ratios))


def slopes(function, *arguments):
    """Central differences in float64, one array per argument."""
    arguments = [np.array(a, np.float64) for a in arguments]
    found = [np.zeros_like(a) for a in arguments]
    for array, slope in zip(arguments, found, strict=True):
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + 1e-5
            above = function(*arguments)
            array[index] = kept - 1e-5
            slope[index] = (above - function(*arguments)) / 2e-5
            array[index] = kept
    return found


def check(ours, loop, *arguments):
    """Value and gradient in every argument."""
    floats = [jnp.asarray(a, jnp.float32) for a in arguments]
    value, gradient = jax.value_and_grad(ours, tuple(range(len(floats))))(*floats)
    np.testing.assert_allclose(value, loop(*arguments), **TOLERANCE)
    for got, expected in zip(gradient, slopes(loop, *arguments), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_tanh_gaussian_log_density_is_the_change_of_variables(seed):
    generator = np.random.default_rng(seed)
    action = generator.uniform(-0.9, 0.9, 3)
    mean, log_deviation = generator.normal(size=3), generator.uniform(-1, 0.5, 3)
    check(density.tanh_gaussian_log_density, loop_tanh_gaussian, action, mean, log_deviation)


@pytest.mark.parametrize("action", [(1.0, -1.0, 0.3), (-0.97, 0.0, 0.99)])
def test_a_reach_above_one_takes_actions_on_the_bounds_as_they_are(action):
    ours = partial(density.tanh_gaussian_log_density, reach=1.1)
    loop = partial(loop_tanh_gaussian, reach=1.1)
    check(ours, loop, action, (0.5, -2.0, 0.1), (-0.3, 0.2, -1.0))


@pytest.mark.parametrize("reach", [1.0, 1.1, 3.0])
def test_tanh_gaussian_density_integrates_to_one(reach):
    actions = np.linspace(-reach, reach, 40_001)[1:-1]
    log_density = partial(
        density.tanh_gaussian_log_density,
        mean=jnp.asarray([0.3]),
        log_deviation=jnp.asarray([-0.7]),
        reach=reach,
    )
    values = jax.vmap(log_density)(jnp.asarray(actions[:, None], jnp.float32))
    # The moved bounds and float32 cost a few 1e-4.
    assert np.trapezoid(np.exp(values), actions) == pytest.approx(1, abs=1e-3)


@given(st.floats(-80, 80, width=32))
def test_log_slope_of_tanh_is_right_where_the_naive_form_is_minus_infinity(value):
    ours = density.log_tanh_slope(jnp.float32(value))
    exact = 2 * (math.log(2) - abs(value) - math.log1p(math.exp(-2 * abs(value))))
    np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
    slope = jax.grad(density.log_tanh_slope)(jnp.float32(value))
    np.testing.assert_allclose(slope, -2 * math.tanh(value), rtol=1e-4, atol=1e-5)


def test_actions_on_the_bounds_have_a_finite_density_and_gradient():
    value, slope = jax.value_and_grad(density.tanh_gaussian_log_density, 1)(
        jnp.asarray([1.0, -1.0]), jnp.zeros(2), jnp.zeros(2)
    )
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_a_samples_log_density_is_that_of_its_action():
    generator = np.random.default_rng(0)
    noise = jnp.asarray(generator.normal(size=(20, 3)), jnp.float32)
    mean, log_deviation = jnp.asarray([0.2, -0.5, 0.0]), jnp.asarray([-1.0, -0.3, -2.0])
    sample = jax.vmap(density.tanh_gaussian_sample, (0, None, None))
    actions, densities = sample(noise, mean, log_deviation)
    again = jax.vmap(density.tanh_gaussian_log_density, (0, None, None))(
        actions, mean, log_deviation
    )
    np.testing.assert_allclose(densities, again, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_mixture_log_density_is_the_weighted_sum(seed):
    generator = np.random.default_rng(seed)
    arguments = (
        generator.uniform(-1, 1, 2),
        generator.normal(size=5),
        generator.uniform(-1, 1, (5, 2)),
        generator.uniform(0.3, 1, (5, 2)),
    )
    check(density.mixture_log_density, loop_mixture, *arguments)


def test_mixture_density_integrates_to_one():
    line = np.linspace(-6, 6, 241)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    generator = np.random.default_rng(0)
    logits, means = generator.normal(size=5), generator.uniform(-1, 1, (5, 2))
    deviations = generator.uniform(0.3, 0.8, (5, 2))
    values = jax.vmap(density.mixture_log_density, (0, None, None, None))(
        *(jnp.asarray(a, jnp.float32) for a in (grid, logits, means, deviations))
    )
    cell = (line[1] - line[0]) ** 2
    assert float(np.exp(values).sum() * cell) == pytest.approx(1, abs=1e-4)


def test_importance_logsumexp_is_the_mean_ratio():
    generator = np.random.default_rng(0)
    check(
        density.importance_logsumexp,
        loop_logsumexp,
        generator.normal(size=9),
        generator.normal(size=9),
    )


def test_importance_logsumexp_converges_to_the_quadrature():
    """In one dimension, with half of the samples uniform and half from a tanh-Gaussian."""

    def q(action):
        return 2 * jnp.sin(3 * action) - action

    line = np.linspace(-1, 1, 20_001)
    exact = math.log(np.trapezoid(np.exp(q(line)), line))
    generator = np.random.default_rng(0)
    count = 50_000
    uniform = jnp.asarray(generator.uniform(-1, 1, count), jnp.float32)
    noise = jnp.asarray(generator.normal(size=(count, 1)), jnp.float32)
    drawn, log_density = jax.vmap(density.tanh_gaussian_sample, (0, None, None))(
        noise, jnp.asarray([0.2]), jnp.asarray([0.0])
    )
    actions = jnp.concatenate([uniform, drawn[:, 0]])
    densities = jnp.concatenate([jnp.full(count, -jnp.log(2.0)), log_density])
    # Relative error of the mean ratio: about one over the root of the number of samples.
    assert float(density.importance_logsumexp(q(actions), densities)) == pytest.approx(
        exact, abs=0.02
    )
