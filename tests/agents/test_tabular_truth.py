"""On a small random MDP the agents' fixed points are what the papers say they are.

Observations are one-hot states and the networks have no hidden layer, so every function of state
and code can be represented and the only thing under test is the update rule.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.agents import CodedTransitions
from saqrl.agents.bc import BC
from saqrl.agents.brac import BRAC
from saqrl.agents.cql import CQL
from saqrl.agents.iql import IQL
from saqrl.training import engine

STATES, CODES, DISCOUNT = 5, 3, 0.8
LINEAR = {"hidden": (), "layer_norm": False, "critics": 1, "discount": DISCOUNT}


@pytest.fixture(scope="module")
def mdp():
    """Deterministic transitions, random rewards, one terminal pair; every pair equally often."""
    generator = np.random.default_rng(3)
    following = generator.integers(0, STATES, (STATES, CODES))
    rewards = generator.uniform(-1, 1, (STATES, CODES))
    terminated = np.zeros((STATES, CODES), bool)
    terminated[2, 1] = True
    return following, rewards, terminated


def transitions(mdp, log_prior: np.ndarray | None = None) -> CodedTransitions:
    following, rewards, terminated = mdp
    state, code = (grid.ravel() for grid in np.indices((STATES, CODES)))
    eye = np.eye(STATES, dtype=np.float32)
    if log_prior is None:
        log_prior = np.full((STATES, CODES), -np.log(CODES))
    next_state = following[state, code]
    return CodedTransitions(
        observations=jnp.asarray(eye[state]),
        codes=jnp.asarray(code, jnp.int32),
        rewards=jnp.asarray(rewards[state, code], jnp.float32),
        next_observations=jnp.asarray(eye[next_state]),
        discounts=jnp.asarray(DISCOUNT * ~terminated[state, code], jnp.float32),
        log_prior=jnp.asarray(log_prior[state], jnp.float32),
        next_log_prior=jnp.asarray(log_prior[next_state], jnp.float32),
        num_codes=CODES,
    )


def learn(agent, data):
    """The state after training, the rate falling to zero so that it settles."""
    agent = dataclasses.replace(
        agent, steps=3000, batch_size=64, learning_rate=0.03, schedule="cosine", weight_decay=0.0
    )
    (interval,) = engine.intervals(agent, data, jax.random.key(0), pauses=[agent.steps])
    return agent, interval.state


def iterate(mdp, value_of):
    """Q with Q = r + g (1 - d) value_of(Q)[next state], by repetition."""
    following, rewards, terminated = mdp
    q = np.zeros((STATES, CODES))
    for _ in range(500):
        q = rewards + DISCOUNT * ~terminated * value_of(q)[following]
    return q


def learned_q(critics) -> np.ndarray:
    return np.asarray(critics.pessimistic(jnp.eye(STATES)))


def test_cql_with_alpha_zero_is_value_iteration(mdp):
    _, state = learn(CQL(alpha=0.0, threshold=0.0, target_rate=0.05, **LINEAR), transitions(mdp))
    expected = iterate(mdp, lambda q: q.max(1))
    np.testing.assert_allclose(learned_q(state.critics.model), expected, atol=0.02)


def test_cql_with_the_prior_mask_is_value_iteration_over_the_allowed_codes(mdp):
    log_prior = np.log(np.tile([0.6, 0.399, 0.001], (STATES, 1)))
    agent = CQL(alpha=0.0, threshold=0.01, target_rate=0.05, **LINEAR)
    _, state = learn(agent, transitions(mdp, log_prior))
    expected = iterate(mdp, lambda q: q[:, :2].max(1))
    np.testing.assert_allclose(learned_q(state.critics.model), expected, atol=0.02)


def test_cql_without_rewards_and_discount_gives_the_closed_form():
    """Minimise (q_0 - 1)^2 + alpha (logsumexp q - q_0): one state, data on code 0 only."""
    alpha = 0.5
    one = jnp.ones((1, 1))
    data = CodedTransitions(
        one, jnp.zeros(1, jnp.int32), jnp.ones(1), one, jnp.zeros(1), None, None, 2
    )
    agent = CQL(hidden=(), layer_norm=False, critics=1, alpha=alpha, threshold=0.0)
    _, state = learn(agent, data)
    q = np.asarray(state.critics.model.pessimistic(one))[0]
    share = np.exp(q - np.log(np.exp(q).sum()))
    # Stationary in code 0: 2 (q_0 - 1) + alpha (softmax_0 - 1) = 0; code 1 is only pushed down.
    assert 2 * (q[0] - 1) + alpha * (share[0] - 1) == pytest.approx(0, abs=0.02)
    assert q[1] < q[0]


def expectile(values: np.ndarray, tau: float) -> np.ndarray:
    """The tau-expectile of each row, by bisection of sum |tau - 1(x < v)| (x - v) = 0."""
    low, high = values.min(1), values.max(1)
    for _ in range(60):
        middle = (low + high) / 2
        gaps = values - middle[:, None]
        above = (np.where(gaps < 0, 1 - tau, tau) * gaps).sum(1) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return low


@pytest.mark.parametrize("tau", [0.7, 0.99])
def test_iql_is_value_iteration_with_the_expectile_for_the_maximum(mdp, tau):
    _, state = learn(IQL(expectile=tau, target_rate=0.05, **LINEAR), transitions(mdp))
    expected = iterate(mdp, lambda q: expectile(q, tau))
    np.testing.assert_allclose(learned_q(state.networks.model.critics), expected, atol=0.04)


def test_iql_approaches_value_iteration_as_tau_approaches_one(mdp):
    best = iterate(mdp, lambda q: q.max(1))
    data = transitions(mdp)
    errors = []
    for tau in (0.9, 0.99, 0.998):
        _, state = learn(IQL(expectile=tau, target_rate=0.05, **LINEAR), data)
        errors.append(np.abs(learned_q(state.networks.model.critics) - best).max())
    assert errors[0] > errors[1] > errors[2]
    # Each tenfold step towards 1 leaves about a tenth; Adam settles to a few hundredths.
    assert errors[2] < 0.1


def test_iql_with_tau_half_evaluates_the_behaviour(mdp):
    _, state = learn(IQL(expectile=0.5, target_rate=0.05, **LINEAR), transitions(mdp))
    expected = iterate(mdp, lambda q: q.mean(1))
    np.testing.assert_allclose(learned_q(state.networks.model.critics), expected, atol=0.03)


def test_iql_acts_by_the_reweighted_prior(mdp):
    agent, state = learn(IQL(temperature=0.5, target_rate=0.05, **LINEAR), transitions(mdp))
    actor = agent.actor(state)
    log_prior = jnp.log(jnp.asarray([0.2, 0.5, 0.3]))
    for index, q in enumerate(learned_q(state.networks.model.critics)):
        weights = np.array([0.2, 0.5, 0.3]) * np.exp(q / 0.5)
        policy = np.exp(actor.logits(jnp.eye(STATES)[index], log_prior))
        np.testing.assert_allclose(policy, weights / weights.sum(), rtol=1e-4)


def test_brac_is_soft_value_iteration_with_the_prior(mdp):
    """E_pi Q - alpha KL(pi || pi_b) is largest, alpha log Z, at pi_b exp(Q / alpha) / Z."""
    alpha = 0.3
    generator = np.random.default_rng(5)
    log_prior = np.log(generator.dirichlet(np.ones(CODES), STATES))
    brac = BRAC(alpha=alpha, target_rate=0.05, prior_floor=-50.0, **LINEAR)
    agent, state = learn(brac, transitions(mdp, log_prior))

    def soft_value(q):
        return alpha * np.log((np.exp(log_prior) * np.exp(q / alpha)).sum(1))

    expected = iterate(mdp, soft_value)
    np.testing.assert_allclose(learned_q(state.critics.model), expected, atol=0.04)
    policy = np.exp(log_prior + expected / alpha)
    policy /= policy.sum(1, keepdims=True)
    learned = np.exp([agent.actor(state).logits(row, jnp.zeros(CODES)) for row in jnp.eye(STATES)])
    np.testing.assert_allclose(learned, policy, atol=0.04)


def test_bc_is_the_frequency_of_the_codes():
    counts = {0: 6, 1: 3, 2: 1}
    codes = np.repeat(list(counts), list(counts.values()))
    ones = jnp.ones((len(codes), 1))
    zeros = jnp.zeros(len(codes))
    data = CodedTransitions(
        ones, jnp.asarray(codes, jnp.int32), zeros, ones, zeros, None, None, CODES
    )
    agent, state = learn(BC(hidden=()), data)
    prior = np.asarray(jax.nn.softmax(agent.prior(state)(jnp.ones(1))))
    np.testing.assert_allclose(prior, [0.6, 0.3, 0.1], atol=0.02)
