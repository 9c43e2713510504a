"""Fitted Q evaluation: the value that the policy has, on an MDP where it is known exactly."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.agents.bc import BehaviourActor
from saqrl.policy import CodeController
from saqrl.studies.fitted_q import (
    EvaluatedTransitions,
    FittedQ,
    PolicyValue,
    State,
    evaluated,
    log_policy_of,
    policy_value,
    returns_to_go,
    state_values,
)
from saqrl.training import engine
from saqrl.training.preparation import fit_scaling
from tests.agents.test_tabular_truth import CODES, DISCOUNT, STATES
from tests.deploy.test_export import make_policy


@pytest.fixture(scope="module")
def problem():
    """A random MDP with one terminal pair, a random policy, and every pair once."""
    generator = np.random.default_rng(3)
    following = generator.integers(0, STATES, (STATES, CODES))
    rewards = generator.uniform(-1, 1, (STATES, CODES))
    terminated = np.zeros((STATES, CODES), bool)
    terminated[2, 1] = True
    policy = generator.dirichlet(np.ones(CODES), STATES)
    q = np.zeros((STATES, CODES))
    for _ in range(500):
        q = rewards + DISCOUNT * ~terminated * (policy * q).sum(1)[following]
    state, code = (grid.ravel() for grid in np.indices((STATES, CODES)))
    eye = np.eye(STATES, dtype=np.float32)
    next_state = following[state, code]
    table = EvaluatedTransitions(
        observations=jnp.asarray(eye[state]),
        codes=jnp.asarray(code, jnp.int32),
        rewards=jnp.asarray(rewards[state, code], jnp.float32),
        next_observations=jnp.asarray(eye[next_state]),
        discounts=jnp.asarray(DISCOUNT * ~terminated[state, code], jnp.float32),
        next_log_policy=jnp.asarray(np.log(policy[next_state]), jnp.float32),
        # Where the fit starts must not show in where it ends.
        returns=jnp.asarray(generator.normal(size=len(state)), jnp.float32),
    )
    return table, policy, q


def test_fitted_q_evaluation_is_exact_policy_evaluation(problem):
    table, policy, q = problem
    algorithm = FittedQ(
        hidden=(), layer_norm=False, critics=2, steps=3000, batch_size=64, learning_rate=0.03,
        target_rate=0.05,
    )  # fmt: skip
    (interval,) = engine.intervals(algorithm, table, jax.random.key(0), pauses=[3000])
    states = jnp.eye(STATES)
    for head in interval.state.critics.model(states):
        np.testing.assert_allclose(head, q, atol=0.02)
    log_policy = jnp.log(jnp.asarray(policy))
    values = state_values(interval.state.critics.model, states, log_policy)
    np.testing.assert_allclose(values, np.tile((policy * q).sum(1), (2, 1)), atol=0.02)


def test_targets_and_gradients_agree_with_a_loop(problem):
    table, _, _ = problem
    algorithm = FittedQ(hidden=(4,), critics=2, batch_size=15)
    state = jax.jit(algorithm.init)(jax.random.key(1), table)
    # Targets that differ from the online networks, so that mixing them up shows.
    target = jax.tree.map(lambda leaf: leaf + 0.1, state.target)
    warm = jax.jit(algorithm.targets)(State(state.critics, target, state.step), table)
    np.testing.assert_array_equal(warm, np.tile(table.returns, (2, 1)))
    after_warm_up = jnp.asarray(algorithm.warm_up * algorithm.steps, jnp.int32)
    state = State(state.critics, target, after_warm_up)
    found = jax.jit(algorithm.targets)(state, table)
    q = np.asarray(target(table.next_observations), np.float64)
    pi = np.exp(np.asarray(table.next_log_policy, np.float64))
    for head in range(2):
        for row in range(len(table.codes)):
            value = sum(pi[row, k] * q[head, row, k] for k in range(CODES))
            expected = float(table.rewards[row]) + float(table.discounts[row]) * value
            assert float(found[head, row]) == pytest.approx(expected, abs=1e-5)
    # One step of plain Adam moves each output bias against the sign of its gradient, which only
    # sees the data's codes; targets carry none.
    after, _ = jax.jit(algorithm.update)(state, table, jax.random.key(0))
    online = np.asarray(state.critics.model(table.observations), np.float64)
    for head in range(2):
        gradient = np.zeros(CODES)
        for row, code in enumerate(np.asarray(table.codes)):
            error = online[head, row, code] - float(found[head, row])
            gradient[code] += 2 * error / len(table.codes)
        before = state.critics.model.heads[head].biases[-1]
        moved = after.critics.model.heads[head].biases[-1] - before
        np.testing.assert_allclose(moved, -algorithm.learning_rate * np.sign(gradient), rtol=1e-3)


def test_a_greedy_policy_counts_only_its_best_code():
    policy = make_policy("quantized", "cql")
    features = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
    greedy = np.exp(log_policy_of(policy, features, act="greedy"))
    sampled = np.exp(log_policy_of(policy, features, act="sample"))
    np.testing.assert_array_equal(greedy.sum(1), 1)
    np.testing.assert_array_equal(greedy.argmax(1), sampled.argmax(1))
    np.testing.assert_allclose(sampled.sum(1), 1, rtol=1e-5)
    assert (sampled.max(1) < 1).all()
    with pytest.raises(ValueError, match="needs a quantized policy"):
        log_policy_of(make_policy("continuous", "bc"), features, act="greedy")


def test_a_chunk_that_is_played_in_part_is_worth_what_its_part_brings(real_data):
    """Rewards, successors and discounts are those of the action horizon, by a loop over steps."""
    from saqrl.datasets import load_dataset
    from saqrl.training.flags import changed
    from saqrl.training.presets import build_settings

    data = load_dataset(str(real_data / "npz/pusht-human.npz"), episodes=2)
    chunk, played, discount = 4, 3, 0.9
    settings = changed(build_settings("default", agent="iql"), {"chunk": chunk})
    settings = changed(settings, {"agent.discount": discount})
    policy = make_policy("quantized", "cql")
    width = chunk * data.actions.shape[1]
    codec = BinsOfTheFirst(width)
    scaling = fit_scaling(data, settings)
    quantizer = dataclasses.replace(policy.controller.quantizer, codec=codec)
    prior = nn.MLP(jax.random.key(0), data.observations.shape[1], (), codec.num_codes)
    quantizer = dataclasses.replace(quantizer, prior=prior)
    controller = CodeController(quantizer, BehaviourActor())
    policy = dataclasses.replace(
        policy, controller=controller, observation_scaling=scaling, action_horizon=played
    )
    table = evaluated(data, settings, policy, act="sample", factor=1.0)
    for start, end in zip(data.episode_starts, data.episode_ends, strict=True):
        for row in range(start, end):
            steps = range(row, min(row + played, end))
            reward = sum(discount**i * float(data.rewards[t]) for i, t in enumerate(steps))
            assert float(table.rewards[row]) == pytest.approx(reward, rel=1e-4)
            kept = not data.terminated[steps[-1]]
            assert float(table.discounts[row]) == pytest.approx(kept * discount ** len(steps))
            after = scaling(data.next_observations[steps[-1]])
            np.testing.assert_allclose(table.next_observations[row], after, atol=1e-5)


class BinsOfTheFirst(eqx.Module):
    """A codec of two codes: the sign of the chunk's first number."""

    width: int = eqx.field(static=True)
    num_codes = 2

    def encode(self, observation, action):
        return (action[0] > 0).astype(jnp.int32)

    def decode(self, observation, code):
        return jnp.where(code == 1, 0.5, -0.5) * jnp.ones(self.width)


def test_the_interval_covers_the_mean_of_the_states():
    generator = np.random.default_rng(0)
    values = 5 + generator.normal(size=(3, 400))
    found = policy_value(values, np.array([1.0, 3.0]), seed=0)
    assert isinstance(found, PolicyValue)
    deviation = values.mean(0).std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    # A bootstrap quantile of 2,000 draws is good to a few percent of the deviation.
    assert found.low == pytest.approx(found.value - 1.96 * deviation, abs=0.2 * deviation)
    assert found.high == pytest.approx(found.value + 1.96 * deviation, abs=0.2 * deviation)
    assert found.spread == pytest.approx(values.mean(1).std())
    assert (found.data_value, found.initial_states) == (2.0, 400)


def test_returns_to_go_stay_within_their_episode(real_data):
    from saqrl.datasets import load_dataset

    data = load_dataset(str(real_data / "npz/pusht-human.npz"), episodes=3)
    found = returns_to_go(data, discount=0.9)
    for start, end in zip(data.episode_starts, data.episode_ends, strict=True):
        expected = 0.0
        for row in reversed(range(start, end)):
            expected = float(data.rewards[row]) + 0.9 * expected
            assert found[row] == pytest.approx(expected, rel=1e-5)
