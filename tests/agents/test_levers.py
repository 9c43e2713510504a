"""Levers of value learning against plain float64 loops: bins, support, pessimism, closed forms."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.agents import operators
from saqrl.agents.brac import BRAC
from saqrl.agents.cql import CQL
from saqrl.agents.iql import IQL
from saqrl.agents.values import SPREAD
from tests.agents.test_agent_updates import (
    CODES,
    CRITICS,
    FLOOR,
    KEY,
    batch,  # noqa: F401
    floored,
    heads,
    least,
    probabilities,
    rows_of,
    softmax,
)
from tests.golden import assert_gradient, assert_moved, doubles, linear, shaken, step

LOW, HIGH, BINS = -3.0, 4.0, 8
CLASSIFIED = {**CRITICS, "hidden": (3,), "bins": BINS, "value_range": (LOW, HIGH)}


def histogram(value: float) -> np.ndarray:
    """The mass of a Gaussian around `value` between the edges of the bins, normalised."""
    width = (HIGH - LOW) / (BINS - 1)
    edges = LOW - width / 2 + width * np.arange(BINS + 1)
    value = min(max(value, LOW), HIGH)
    below = [0.5 * (1 + math.erf((e - value) / (SPREAD * width * math.sqrt(2)))) for e in edges]
    return np.diff(below) / (below[-1] - below[0])


def classified(leaves, observation) -> np.ndarray:
    """The bins' probabilities (codes, bins) of one critic: trunk, gates, weight, offsets."""
    weight, bias, gates, last, offsets = leaves
    signal = np.maximum(linear((weight, bias), observation), 0)
    return np.array([softmax((signal * g) @ last + o) for g, o in zip(gates, offsets, strict=True)])


def classified_heads(leaves, observation) -> list[np.ndarray]:
    return [classified(leaves[i : i + 5], observation) for i in (0, 5)]


CENTRES = np.linspace(LOW, HIGH, BINS)


@pytest.mark.parametrize("value", [-9.0, LOW, -0.2, 1.0, 3.9, 50.0])
def test_a_value_becomes_the_mass_of_a_gaussian_between_the_edges(value):
    found = operators.gaussian_histogram(
        jnp.float32(value), low=LOW, high=HIGH, bins=BINS, spread=SPREAD
    )
    np.testing.assert_allclose(found, histogram(value), rtol=1e-4, atol=1e-6)
    assert found.sum() == pytest.approx(1.0, abs=1e-5)


def test_the_expectation_of_a_histogram_inside_the_range_is_its_value():
    values = jnp.linspace(-1.5, 2.5, 9)
    mass = operators.gaussian_histogram(values, low=LOW, high=HIGH, bins=BINS, spread=SPREAD)
    np.testing.assert_allclose(mass @ jnp.asarray(CENTRES, jnp.float32), values, atol=0.02)


def test_iql_with_bins_follows_cross_entropies_of_the_data_s_codes(batch):  # noqa: F811
    agent = IQL(**CLASSIFIED, expectile=0.8)
    before, after, metrics = step(agent, batch, KEY)
    model, target = before.networks.model, doubles(before.target)
    v = model.value

    def v_of(observation):
        hidden = np.maximum(observation @ np.float64(v.weights[0]) + np.float64(v.biases[0]), 0)
        return (hidden @ np.float64(v.weights[1]) + np.float64(v.biases[1]))[0]

    def critic_loop(leaves):
        total = 0.0
        for o, code, r, o2, d, *_ in rows_of(batch):
            wanted = histogram(r + d * v_of(o2))
            for probability in classified_heads(leaves, o):
                total -= wanted @ np.log(probability[code])
        return total / len(batch.codes)

    adam, *others = after.networks.moments
    moments = (adam._replace(mu=adam.mu.critics), *others)
    trained = nn.TrainState(after.networks.model.critics, moments)
    assert_gradient(trained, critic_loop, model.critics)
    advantages = []
    for o, code, *_ in rows_of(batch):
        q = np.minimum(*(p @ CENTRES for p in classified_heads(target, o)))
        advantages.append(q[code] - v_of(o))
    np.testing.assert_allclose(metrics["advantage"], np.mean(advantages), rtol=1e-3, atol=1e-4)
    assert_moved(after.target, before.target, after.networks.model.critics, rate=0.1)


def test_q_of_all_codes_is_q_of_each(batch):  # noqa: F811
    agent = CQL(**{**CLASSIFIED, "layer_norm": True})
    critics = shaken(agent.init(jax.random.key(1), batch)).critics.model
    observations = batch.observations
    every = critics(observations)
    for code in range(CODES):
        codes = jnp.full(len(observations), code)
        own = jnp.stack([head.of_codes(observations, codes) for head in critics.heads])
        np.testing.assert_allclose(own, every[..., code], rtol=1e-4, atol=1e-5)
        believed = agent.values_of(critics, observations, codes)
        np.testing.assert_allclose(believed, every.min(0)[:, code], rtol=1e-4, atol=1e-5)


def test_cql_with_bins_adds_its_gap_on_the_expectations(batch):  # noqa: F811
    agent = CQL(**CLASSIFIED, alpha=2.0, threshold=0.0)
    before, after, metrics = step(agent, batch, KEY)
    targets = np.float64(agent.targets(before, batch))

    def loop(leaves, alpha=2.0):
        total = 0.0
        for (o, code, *_), y in zip(rows_of(batch), targets, strict=True):
            for probability in classified_heads(leaves, o):
                q = probability @ CENTRES
                total -= histogram(y) @ np.log(probability[code])
                total += alpha * (np.log(np.exp(q).sum()) - q[code])
        return total / len(batch.codes)

    assert_gradient(after.critics, loop, before.critics.model)
    outside = np.mean((targets < LOW) | (targets > HIGH))
    assert metrics["outside_bins"] == pytest.approx(outside)


def test_a_mean_minus_deviations_is_believed_where_asked(batch):  # noqa: F811
    agent = IQL(**{**CRITICS, "critics": 3}, deviations=0.5)
    state = shaken(agent.init(jax.random.key(1), batch))
    critics = state.networks.model.critics
    every = np.float64(critics(batch.observations))
    expected = every.mean(0) - 0.5 * every.std(0)
    np.testing.assert_allclose(critics.pessimistic(batch.observations), expected, rtol=1e-4)
    least_of_all = replace(critics, deviations=None).pessimistic(batch.observations)
    np.testing.assert_allclose(least_of_all, every.min(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        (operators.Support(), [1, 1, 1, 1]),
        (operators.Support(threshold=0.2), [1, 1, 0, 0]),
        (operators.Support(share=0.5), [1, 1, 1, 0]),  # 0.5 / 4 codes = 0.125
        (operators.Support(mass=0.5), [1, 0, 0, 0]),
        (operators.Support(mass=0.6), [1, 1, 0, 0]),
        (operators.Support(mass=0.9), [1, 1, 1, 0]),
        (operators.Support(threshold=0.2, mass=0.95), [1, 1, 0, 0]),
        (operators.Support(threshold=0.99), [1, 0, 0, 0]),
    ],
)
def test_the_support_is_what_its_three_bounds_leave(support, expected):
    log_prior = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    np.testing.assert_array_equal(support.allowed(log_prior), np.array(expected, bool))


def test_codes_as_probable_as_each_other_are_allowed_together():
    log_prior = jnp.log(jnp.asarray([0.25, 0.25, 0.25, 0.25]))
    assert operators.nucleus(log_prior, mass=0.3).all()


def test_a_share_of_an_even_prior_follows_the_number_of_codes():
    support = operators.Support(share=0.5)
    for codes in (4, 64):
        prior = np.full(codes, 1.0)
        prior[-1] = 0.4
        log_prior = jnp.log(jnp.asarray(prior / prior.sum()))
        np.testing.assert_array_equal(support.allowed(log_prior), prior == 1.0)


def test_iql_takes_the_best_code_that_the_data_supports(batch):  # noqa: F811
    agent = IQL(**CRITICS, extraction="supported", support=1.0, temperature=0.5)
    state = shaken(agent.init(jax.random.key(1), batch))
    critics, ruled_out = doubles(state.networks.model.critics), 0
    for o, *_, log_prior, _ in rows_of(batch):
        q = least(critics, o)
        fits = np.exp(log_prior) >= min(1.0 / CODES, np.exp(log_prior).max())
        found = probabilities(agent, state, jnp.float32(o), jnp.float32(log_prior))
        np.testing.assert_allclose(
            found, softmax(np.where(fits, q / 0.5, -np.inf)), rtol=1e-4, atol=1e-7
        )
        ruled_out += q.argmax() != np.where(fits, q, -np.inf).argmax()
    assert ruled_out


def test_iql_whose_q_reads_actions_values_codes_by_what_they_decode_to(batch):  # noqa: F811
    agent = IQL(**CRITICS, q_of="actions", expectile=0.8, temperature=0.5, prior_floor=FLOOR)
    done, decoded = jax.random.normal(jax.random.key(5), (2, len(batch.codes), CODES, 3))
    own = replace(batch, actions=done[:, 0])
    before, after, metrics = step(agent, own, KEY)
    model = before.networks.model
    target, value = doubles(before.target), doubles(model.value)
    pairs = [(row, np.float64(a)) for row, a in zip(rows_of(batch), own.actions, strict=True)]

    def q_of(leaves, observation, action):
        return [q[0] for q in heads(leaves, np.concatenate([observation, action]))]

    def critic_loop(leaves):
        total = 0.0
        for (o, _, r, o2, d, *_), a in pairs:
            total += sum((q - r - d * linear(value, o2)[0]) ** 2 for q in q_of(leaves, o, a))
        return total / len(pairs)

    advantages = [min(q_of(target, o, a)) - linear(value, o)[0] for (o, *_), a in pairs]
    assert min(advantages) < 0 < max(advantages)

    def value_loop(leaves):
        total = 0.0
        for (o, *_), a in pairs:
            u = min(q_of(target, o, a)) - linear(leaves, o)[0]
            total += (0.8 if u > 0 else 0.2) * u**2
        return total / len(pairs)

    np.testing.assert_allclose(metrics["advantage"], np.mean(advantages), rtol=1e-4)
    adam, *others = after.networks.moments
    for name, loop in (("critics", critic_loop), ("value", value_loop)):
        moments = (adam._replace(mu=getattr(adam.mu, name)), *others)
        trained = nn.TrainState(getattr(after.networks.model, name), moments)
        assert_gradient(trained, loop, getattr(model, name))
    assert_moved(after.target, before.target, after.networks.model.critics, rate=0.1)
    critics = doubles(model.critics)
    for (o, *_, log_prior, _), choices in zip(rows_of(batch), decoded, strict=True):
        q = np.array([min(q_of(critics, o, np.float64(a))) for a in choices])
        found = probabilities(agent, before, jnp.float32(o), jnp.float32(log_prior), choices)
        expected = softmax(np.log(floored(log_prior)) + q / 0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_iql_whose_q_reads_actions_needs_them(batch):  # noqa: F811
    with pytest.raises(ValueError, match="needs the actions in its transitions"):
        IQL(**CRITICS, q_of="actions").init(KEY, batch)


def test_iql_weights_the_cross_entropy_of_its_own_prior_by_advantage(batch):  # noqa: F811
    agent = IQL(**CRITICS, prior_temperature=0.2, temperature=0.5)
    before, after, metrics = step(agent, batch, KEY)
    model, target = before.networks.model, doubles(before.target)
    value = doubles(model.value)
    weights = []
    for o, code, *_ in rows_of(batch):
        advantage = least(target, o)[code] - linear(value, o)[0]
        weights.append(min(np.exp(advantage / 0.2), 100.0))
    assert max(weights) == 100.0 > min(weights)

    def loop(leaves):
        shares = [softmax(linear(leaves, o))[code] for o, code, *_ in rows_of(batch)]
        return -np.mean(np.array(weights) * np.log(shares))

    found = metrics["weighted_cross_entropy"]
    np.testing.assert_allclose(found, loop(doubles(model.prior)), rtol=1e-3)
    adam, *others = after.networks.moments
    moments = (adam._replace(mu=adam.mu.prior), *others)
    assert_gradient(nn.TrainState(after.networks.model.prior, moments), loop, model.prior)
    critics, prior = (doubles(part) for part in (model.critics, model.prior))
    for o, *_, log_prior, _ in rows_of(batch):
        own = np.log(softmax(linear(prior, o)))
        expected = softmax(np.maximum(own, agent.prior_floor) + least(critics, o) / 0.5)
        found = probabilities(agent, before, jnp.float32(o), jnp.float32(log_prior))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_brac_in_closed_form_is_the_maximum_that_its_policy_looks_for(batch):  # noqa: F811
    agent = BRAC(**CRITICS, alpha=0.7, prior_floor=FLOOR, closed_form=True)
    before, after, metrics = step(agent, batch, KEY)
    target = doubles(before.target)
    targets = []
    for _, _, r, o2, d, _, log_prior in rows_of(batch):
        prior, q = floored(log_prior), least(target, o2)
        best = softmax(np.log(prior) + q / 0.7)
        value = best @ q - 0.7 * (best @ np.log(best / prior))
        assert value == pytest.approx(0.7 * np.log(prior @ np.exp(q / 0.7)))
        targets.append(r + d * value)
    np.testing.assert_allclose(agent.targets(before, batch), targets, rtol=1e-4)

    def critic_loop(leaves):
        return sum(
            (q[code] - y) ** 2 / len(batch.codes)
            for (o, code, *_), y in zip(rows_of(batch), targets, strict=True)
            for q in heads(leaves, o)
        )

    assert after.policy is None
    assert "divergence" not in metrics
    assert_gradient(after.critics, critic_loop, before.critics.model)
    for o, *_, log_prior, _ in rows_of(batch):
        q = least(doubles(after.critics.model), o)
        found = probabilities(agent, after, jnp.float32(o), jnp.float32(log_prior))
        np.testing.assert_allclose(found, softmax(np.log(floored(log_prior)) + q / 0.7), rtol=1e-4)


@pytest.mark.parametrize("agent", [IQL, CQL, BRAC])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bins": 1}, r"agent.bins is 1; it must be 0 \(regression\) or at least 2"),
        ({"value_range": (1.0, 1.0)}, r"agent.value-range is \(1.0, 1.0\)"),
        ({"value_range": (1.0,)}, r"expected two numbers, the lower first"),
    ],
)
def test_bins_that_hold_nothing_are_refused(agent, given, message):
    with pytest.raises(ValueError, match=message):
        agent(**given)
