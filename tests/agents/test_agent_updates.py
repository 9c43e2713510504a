"""One gradient step of each agent, its targets and its actor against float64 loops.

Two critics, and a target that differs from the online network: fixed points (test_tabular_truth)
tell neither the target from the online critics nor one critic from two.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import agents
from saqrl.agents import CodedTransitions
from saqrl.agents.bc import BC
from saqrl.agents.brac import BRAC
from saqrl.agents.cql import CQL
from saqrl.agents.iql import IQL
from tests.golden import assert_gradient, assert_moved, assert_same, doubles, linear, shaken, step

ROWS, FEATURES, CODES = 6, 2, 4
LINEAR = {"hidden": (), "layer_norm": False, "steps": 8, "batch_size": ROWS, "weight_decay": 0.0}
CRITICS = {**LINEAR, "critics": 2, "target_rate": 0.1}
KEY = jax.random.key(3)
# Between a code of the log-priors below and the others.
FLOOR, THRESHOLD = -2.0, 0.1


@pytest.fixture(scope="module")
def batch() -> CodedTransitions:
    generator = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    return CodedTransitions(
        observations=normal(ROWS, FEATURES),
        codes=jnp.asarray(generator.integers(0, CODES, ROWS), jnp.int32),
        rewards=normal(ROWS),
        next_observations=normal(ROWS, FEATURES),
        discounts=jnp.asarray([0.9, 0.0, 0.9, 0.81, 0.9, 0.9]),
        log_prior=jax.nn.log_softmax(2 * normal(ROWS, CODES)),
        next_log_prior=jax.nn.log_softmax(2 * normal(ROWS, CODES)),
        num_codes=CODES,
    )


def rows_of(batch):
    """(observation, code, reward, next observation, discount, log-prior, next log-prior)."""
    for o, code, *rest in zip(*jax.tree.leaves(batch), strict=True):
        yield np.float64(o), int(code), *map(np.float64, rest)


def heads(leaves, observation) -> list[np.ndarray]:
    """Q(s, .) of both critics; the leaves are weight and bias of each."""
    return [linear(leaves[i : i + 2], observation) for i in (0, 2)]


def least(leaves, observation) -> np.ndarray:
    return np.minimum(*heads(leaves, observation))


def softmax(logits) -> np.ndarray:
    weights = np.exp(logits - np.max(logits))
    return weights / weights.sum()


def floored(log_prior) -> np.ndarray:
    """The prior whose log is clipped below at the floor, normalised again."""
    return softmax(np.maximum(log_prior, FLOOR))


def allowed(log_prior) -> np.ndarray:
    return np.exp(log_prior) >= min(THRESHOLD, np.exp(log_prior).max())


def probabilities(agent, state, observation, log_prior, actions=None) -> np.ndarray:
    """Of the codes, which decode to the actions."""
    logits = agents.logits(agent.actor(state), observation, log_prior, lambda: actions)
    return np.asarray(jax.nn.softmax(logits), np.float64)


def test_bc_follows_the_cross_entropy(batch):
    before, after, metrics = step(BC(**LINEAR), batch, KEY)

    def loop(leaves):
        shares = [softmax(linear(leaves, o))[code] for o, code, *_ in rows_of(batch)]
        return -np.mean(np.log(shares))

    right = [linear(doubles(before.model), o).argmax() == k for o, k, *_ in rows_of(batch)]
    np.testing.assert_allclose(metrics["cross_entropy"], loop(doubles(before.model)), rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(right))
    assert 0 < np.mean(right) < 1
    assert_gradient(after, loop, before.model)


def test_bc_acts_by_the_behaviour_itself():
    prior = np.array([0.5, 0.3, 0.15, 0.05])
    found = probabilities(BC(), None, jnp.zeros(FEATURES), jnp.log(jnp.asarray(prior)))
    np.testing.assert_allclose(found, prior, rtol=1e-5)


def test_cql_follows_bellman_error_and_conservative_gap(batch):
    agent = CQL(**CRITICS, alpha=2.0, threshold=THRESHOLD)
    before, after, metrics = step(agent, batch, KEY)
    online, target = doubles(before.critics.model), doubles(before.target)
    targets = []
    masked, doubled = 0, 0
    for _, _, r, o2, d, _, log_prior in rows_of(batch):
        q = least(online, o2)
        best = np.where(allowed(log_prior), q, -np.inf).argmax()
        targets.append(r + d * least(target, o2)[best])
        masked += best != q.argmax()
        doubled += best != np.where(allowed(log_prior), least(target, o2), -np.inf).argmax()
    assert masked  # by the prior's mask
    assert doubled  # by the online critics, not by the target's

    def loop(leaves, alpha=2.0):
        total = 0.0
        for (o, code, *_), y in zip(rows_of(batch), targets, strict=True):
            for q in heads(leaves, o):
                total += (q[code] - y) ** 2 + alpha * (np.log(np.exp(q).sum()) - q[code])
        return total / ROWS

    np.testing.assert_allclose(agent.targets(before, batch), targets, rtol=1e-5)
    np.testing.assert_allclose(metrics["bellman_error"], loop(online, 0.0), rtol=1e-4)
    gap = (loop(online, 1.0) - loop(online, 0.0)) / 2
    np.testing.assert_allclose(metrics["gap"], gap, rtol=1e-4)
    data_q = np.mean([q[code] for o, code, *_ in rows_of(batch) for q in heads(online, o)])
    np.testing.assert_allclose(metrics["data_q"], data_q, rtol=1e-4)
    assert_gradient(after.critics, loop, before.critics.model)
    assert_moved(after.target, before.target, after.critics.model, rate=0.1)


def test_cql_moves_its_target_once_in_a_period(batch):
    agent = CQL(**CRITICS, target_period=3)
    state = shaken(agent.init(jax.random.key(1), batch))
    moved = []
    for _ in range(7):
        before, state, _ = step(agent, batch, KEY, start=state)
        moved.append(
            any(
                (a != b).any()
                for a, b in zip(doubles(before.target), doubles(state.target), strict=True)
            )
        )
        if moved[-1]:
            assert_moved(state.target, before.target, state.critics.model, rate=0.1)
    assert moved == [False, False, True, False, False, True, False]
    assert state.step == 7


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_cql_acts_by_the_least_q_of_the_codes_that_the_prior_allows(batch, temperature):
    agent = CQL(**CRITICS, threshold=THRESHOLD, temperature=temperature)
    state = shaken(agent.init(jax.random.key(1), batch))
    critics = doubles(state.critics.model)
    for o, *_, log_prior, _ in rows_of(batch):
        expected = softmax(np.where(allowed(log_prior), least(critics, o) / temperature, -np.inf))
        found = probabilities(agent, state, jnp.float32(o), jnp.float32(log_prior))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_iql_follows_the_expectile_and_the_bellman_error(batch):
    agent = IQL(**CRITICS, expectile=0.8)
    before, after, metrics = step(agent, batch, KEY)
    model, target = before.networks.model, doubles(before.target)
    frozen = doubles(model)  # four leaves of critics, two of V

    def parts(leaves):
        value_loss = bellman = 0.0
        advantages = []
        for o, code, r, o2, d, *_ in rows_of(batch):
            advantage = least(target, o)[code] - linear(leaves[4:], o)[0]
            value_loss += abs(0.8 - (advantage < 0)) * advantage**2 / ROWS
            y = r + d * linear(frozen[4:], o2)[0]
            bellman += sum((q[code] - y) ** 2 for q in heads(leaves[:4], o)) / ROWS
            advantages.append(advantage)
        return value_loss, bellman, advantages

    value_loss, bellman, advantages = parts(frozen)
    assert min(advantages) < 0 < max(advantages)
    np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["bellman_error"], bellman, rtol=1e-4)
    np.testing.assert_allclose(metrics["advantage"], np.mean(advantages), rtol=1e-4)
    values = [linear(frozen[4:], o)[0] for o, *_ in rows_of(batch)]
    np.testing.assert_allclose(metrics["value"], np.mean(values), rtol=1e-4)
    assert_gradient(after.networks, lambda leaves: sum(parts(leaves)[:2]), model)
    assert_moved(after.target, before.target, after.networks.model.critics, rate=0.1)


def test_iql_reweights_the_floored_prior_by_the_least_q(batch):
    agent = IQL(**CRITICS, temperature=0.5, prior_floor=FLOOR)
    state = shaken(agent.init(jax.random.key(1), batch))
    critics, below = doubles(state.networks.model.critics), 0
    for o, *_, log_prior, _ in rows_of(batch):
        expected = softmax(np.maximum(log_prior, FLOOR) + least(critics, o) / 0.5)
        found = probabilities(agent, state, jnp.float32(o), jnp.float32(log_prior))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        below += (log_prior < FLOOR).any()
    assert below


def test_brac_follows_the_value_that_a_floored_divergence_penalises(batch):
    agent = BRAC(**CRITICS, alpha=0.7, prior_floor=FLOOR)
    before, after, metrics = step(agent, batch, KEY)
    online, target = doubles(before.critics.model), doubles(before.target)
    frozen = doubles(before.policy.model)

    def value_and_divergence(policy, critics, observation, log_prior):
        ours, theirs = softmax(linear(policy, observation)), floored(log_prior)
        return ours @ least(critics, observation), ours @ np.log(ours / theirs)

    targets = []
    for _, _, r, o2, d, _, log_prior in rows_of(batch):
        value, divergence = value_and_divergence(frozen, target, o2, log_prior)
        targets.append(r + d * (value - 0.7 * divergence))

    def critic_loop(leaves):
        return sum(
            (q[code] - y) ** 2 / ROWS
            for (o, code, *_), y in zip(rows_of(batch), targets, strict=True)
            for q in heads(leaves, o)
        )

    def estimates(policy):
        return np.array(
            [value_and_divergence(policy, online, o, prior) for o, *_, prior, _ in rows_of(batch)]
        ).mean(0)

    def policy_loop(leaves):
        value, divergence = estimates(leaves)
        return 0.7 * divergence - value

    np.testing.assert_allclose(agent.targets(before, batch), targets, rtol=1e-4)
    np.testing.assert_allclose(metrics["bellman_error"], critic_loop(online), rtol=1e-4)
    found = [metrics["policy_value"], metrics["divergence"]]
    np.testing.assert_allclose(found, estimates(frozen), rtol=1e-4)
    data_q = np.mean([q[code] for o, code, *_ in rows_of(batch) for q in heads(online, o)])
    np.testing.assert_allclose(metrics["data_q"], data_q, rtol=1e-4)
    assert_gradient(after.critics, critic_loop, before.critics.model)
    assert_gradient(after.policy, policy_loop, before.policy.model)
    assert_moved(after.target, before.target, after.critics.model, rate=0.1)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_brac_acts_by_its_own_policy(batch, temperature):
    agent = BRAC(**CRITICS, temperature=temperature)
    state = shaken(agent.init(jax.random.key(1), batch))
    observation = batch.observations[0]
    logits = linear(doubles(state.policy.model), np.float64(observation))
    found = probabilities(agent, state, observation, batch.log_prior[0])
    np.testing.assert_allclose(found, softmax(logits / temperature), rtol=1e-4)


@pytest.mark.parametrize("agent", [CQL(**CRITICS), IQL(**CRITICS), BRAC(**CRITICS)])
def test_an_agent_begins_with_two_critics_that_differ_and_a_target_that_does_not(batch, agent):
    state = agent.init(jax.random.key(1), batch)
    critics = state.networks.model.critics if isinstance(agent, IQL) else state.critics.model
    assert_same(state.target, critics)
    first, second = critics.heads
    assert (first.weights[0] != second.weights[0]).all()
