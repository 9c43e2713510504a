"""Every operator against a plain float64 loop over the codes: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl import nn
from saqrl.agents import operators

CODES = 5
# Float32 sums of five terms of size at most 50: a few units in the last place.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def vectors(low: float = -5, high: float = 5) -> st.SearchStrategy[np.ndarray]:
    numbers = st.floats(low, high, width=32)
    return st.lists(numbers, min_size=CODES, max_size=CODES).map(np.array)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def gradient(function, at: np.ndarray) -> np.ndarray:
    """Central differences in float64."""
    step = 1e-5
    slopes = []
    for index in range(len(at)):
        move = np.zeros(len(at))
        move[index] = step
        slopes.append((function(at + move) - function(at - move)) / (2 * step))
    return np.array(slopes)


def loop_expectation(logits: np.ndarray, values: np.ndarray) -> float:
    weights = np.exp(log_softmax(logits))
    return sum(float(weight * value) for weight, value in zip(weights, values, strict=True))


def loop_kl(logits: np.ndarray, prior_logits: np.ndarray) -> float:
    policy, prior = np.exp(log_softmax(logits)), np.exp(log_softmax(prior_logits))
    return sum(float(p * np.log(p / b)) for p, b in zip(policy, prior, strict=True))


def loop_gap(q: np.ndarray, code: int) -> float:
    return float(np.log(sum(np.exp(value) for value in q)) - q[code])


def loop_reweighted(prior: np.ndarray, q: np.ndarray, temperature: float, floor: float):
    weights = np.array(
        [np.exp(max(b, floor)) * np.exp(v / temperature) for b, v in zip(prior, q, strict=True)]
    )
    return weights / weights.sum()


@given(vectors(), vectors())
def test_expectation_is_the_sum_over_codes(logits, values):
    def ours(logits):
        return operators.expectation(jax.nn.log_softmax(logits), jnp.asarray(values))

    value, slope = jax.value_and_grad(ours)(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(value, loop_expectation(logits, values), **TOLERANCE)
    expected = gradient(lambda x: loop_expectation(x, values), logits)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)


@given(vectors(), vectors())
def test_kl_divergence_is_the_sum_over_codes_and_never_negative(logits, prior_logits):
    log_prior = jnp.asarray(log_softmax(prior_logits), jnp.float32)

    def ours(logits):
        return operators.kl_divergence(jax.nn.log_softmax(logits), log_prior)

    value, slope = jax.value_and_grad(ours)(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(value, loop_kl(logits, prior_logits), **TOLERANCE)
    assert value >= -1e-5
    expected = gradient(lambda x: loop_kl(x, prior_logits), logits)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4)


@given(vectors())
def test_kl_divergence_of_a_distribution_from_itself_is_zero(logits):
    log_policy = jax.nn.log_softmax(jnp.asarray(logits))
    assert operators.kl_divergence(log_policy, log_policy) == 0


@given(vectors(), st.integers(0, CODES - 1))
def test_conservative_gap_and_its_golden_gradient(q, code):
    value, slope = jax.value_and_grad(operators.conservative_gap)(
        jnp.asarray(q, jnp.float32), jnp.asarray(code)
    )
    np.testing.assert_allclose(value, loop_gap(q, code), **TOLERANCE)
    # A stop_gradient around the log-sum-exp would leave only -onehot here.
    golden = np.exp(log_softmax(q)) - np.eye(CODES)[code]
    np.testing.assert_allclose(slope, golden, **TOLERANCE)


@given(st.floats(-10, 10, width=32), st.floats(0.05, 0.95))
def test_expectile_loss_weighs_the_two_sides(advantage, tau):
    value, slope = jax.value_and_grad(nn.expectile_loss)(jnp.float32(advantage), expectile=tau)
    weight = 1 - tau if advantage < 0 else tau
    np.testing.assert_allclose(value, weight * advantage**2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, 2 * weight * advantage, rtol=1e-5, atol=1e-6)


def test_expectile_of_a_sample_is_where_the_losses_balance():
    sample = jnp.asarray([0.0, 1.0, 5.0])

    def loss(value):
        return jax.vmap(lambda x: nn.expectile_loss(x - value, expectile=0.9))(sample).sum()

    values = jnp.linspace(0, 5, 5001)
    best = values[jnp.argmin(jax.vmap(loss)(values))]
    # 0.1 v + 0.1 (v - 1) = 0.9 (5 - v)
    assert best == pytest.approx(4.6 / 1.1, abs=2e-3)


@given(vectors(), st.floats(0, 1))
def test_allowed_codes_hold_the_threshold_and_keep_the_most_probable(logits, threshold):
    log_prior = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    allowed = np.asarray(operators.allowed_codes(log_prior, threshold=threshold))
    prior = np.asarray(jnp.exp(log_prior))
    bar = min(np.float32(threshold), prior.max())
    np.testing.assert_array_equal(allowed, prior >= bar)
    assert allowed[prior.argmax()]


def test_threshold_zero_allows_every_code():
    log_prior = jnp.asarray([0.0, -200.0, -1000.0])
    assert operators.allowed_codes(log_prior, threshold=0.0).all()


@given(vectors(-12, 0), vectors(), st.floats(0.3, 5))
def test_reweighted_prior_is_the_normalised_product(prior_logits, q, temperature):
    prior = log_softmax(prior_logits)

    def ours(q):
        log_policy = operators.reweighted_prior(
            jnp.asarray(prior, jnp.float32), q, temperature=temperature, floor=-8.0
        )
        return log_policy[0], jnp.exp(log_policy)

    (_, policy), slope = jax.value_and_grad(ours, has_aux=True)(jnp.asarray(q, jnp.float32))
    expected = loop_reweighted(prior, q, temperature, -8.0)
    np.testing.assert_allclose(policy, expected, rtol=1e-4, atol=1e-6)
    golden = gradient(lambda x: np.log(loop_reweighted(prior, x, temperature, -8.0)[0]), q)
    np.testing.assert_allclose(slope, golden, rtol=2e-3, atol=1e-4)


@given(vectors(), vectors(), st.floats(-50, 50))
def test_the_value_of_a_state_cancels_in_the_reweighted_prior(prior_logits, q, value):
    log_prior = jax.nn.log_softmax(jnp.asarray(prior_logits))
    plain = operators.reweighted_prior(log_prior, jnp.asarray(q), temperature=1.0, floor=-8.0)
    shifted = operators.reweighted_prior(
        log_prior, jnp.asarray(q) - value, temperature=1.0, floor=-8.0
    )
    np.testing.assert_allclose(plain, shifted, atol=1e-4)


@given(vectors(), st.permutations(range(CODES)))
def test_operators_do_not_care_how_codes_are_numbered(q, order):
    order = np.array(order)
    log_prior = jax.nn.log_softmax(jnp.asarray(q[::-1].copy()))
    values = jnp.asarray(q)
    np.testing.assert_allclose(
        operators.kl_divergence(jax.nn.log_softmax(values)[order], log_prior[order]),
        operators.kl_divergence(jax.nn.log_softmax(values), log_prior),
        **TOLERANCE,
    )
    np.testing.assert_allclose(
        operators.conservative_gap(values[order], jnp.asarray(0)),
        operators.conservative_gap(values, jnp.asarray(order[0])),
        **TOLERANCE,
    )


@given(vectors())
def test_entropy_lies_between_zero_and_that_of_the_uniform(logits):
    value = operators.entropy(jax.nn.log_softmax(jnp.asarray(logits)))
    assert -1e-6 <= value <= np.log(CODES) + 1e-5
