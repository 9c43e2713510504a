"""The three ways of acting on codes, with a temperature: against plain loops."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.policy.storage import PolicyError, load_policy, save_policy
from saqrl.quantizers.binary import BinaryDimensions
from saqrl.registry import AGENTS
from saqrl.training.settings import Settings
from tests.policy.test_policy import ACT, CHUNK, OBSERVATION
from tests.policy.test_policy import make_lively_policy as make_policy

OBSERVATIONS = np.random.default_rng(4).normal(size=(32, OBSERVATION)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(2), len(OBSERVATIONS))
# The last action dimension takes two values, each step of the chunk others.
LOW = np.linspace(-0.9, -0.3, CHUNK * ACT).astype(np.float32)
HIGH = np.linspace(0.2, 0.8, CHUNK * ACT).astype(np.float32)
GRIPPER = np.arange(CHUNK * ACT) % ACT == ACT - 1


def gripping(policy):
    binary = BinaryDimensions(jnp.asarray(LOW), jnp.asarray(HIGH), jnp.asarray(GRIPPER))
    controller = eqx.tree_at(lambda c: c.quantizer.codec.binary, policy.controller, binary)
    return dataclasses.replace(policy, controller=controller)


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_mean_action_is_the_sum_over_codes_and_grippers_go_with_the_majority(temperature):
    policy = gripping(make_policy("quantized", "iql")).acting("mean", temperature)
    controller = policy.controller
    planned = policy.plan(OBSERVATIONS, KEYS, act="mean")
    sides = set()
    for row, chunk in zip(policy.observation_scaling(OBSERVATIONS), planned, strict=True):
        logits = controller.actor.logits(row, controller.quantizer.log_prior(row))
        probabilities = softmax(np.asarray(logits, np.float64) / temperature)
        mean, mass = np.zeros(CHUNK * ACT), np.zeros(CHUNK * ACT)
        for code, probability in enumerate(probabilities):
            decoded = np.asarray(controller.quantizer.decode(row, code), np.float64)
            mean += probability * decoded
            mass += probability * (decoded == HIGH)
        sides |= set(mass[GRIPPER] > 0.5)
        expected = np.where(GRIPPER, np.where(mass > 0.5, HIGH, LOW), mean)
        expected = policy.action_range.from_unit(expected.reshape(CHUNK, ACT).astype(np.float32))
        np.testing.assert_allclose(chunk, expected, atol=1e-5)
        exact = policy.action_range.from_unit(np.stack([LOW, HIGH]).reshape(2, CHUNK, ACT))
        assert ((chunk == exact[0]) | (chunk == exact[1]))[:, ACT - 1].all()
    assert sides == {True, False}


def test_a_mean_of_one_certain_code_is_its_action():
    policy = gripping(make_policy("quantized", "bc"))
    quantizer = policy.controller.quantizer
    row = jnp.asarray(policy.observation_scaling(OBSERVATIONS)[0])
    for code in range(quantizer.num_codes):
        certain = jax.nn.one_hot(code, quantizer.num_codes)
        np.testing.assert_allclose(
            quantizer.mean(row, certain), quantizer.decode(row, jnp.asarray(code)), atol=1e-6
        )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_codes_follow_the_tempered_probabilities(temperature):
    controller = make_policy("quantized", "bc").controller
    features = jnp.asarray([0.3, -0.2, 0.8, 0.1])
    prior = np.exp(np.asarray(controller.quantizer.log_prior(features), np.float64))
    expected = prior ** (1 / temperature) / (prior ** (1 / temperature)).sum()
    scores = controller.scores(features, temperature=temperature)
    np.testing.assert_allclose(jax.nn.softmax(scores), expected, rtol=1e-4)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(
        lambda key: controller.choose(features, key, act="sample", temperature=temperature)
    )(keys)
    share = np.bincount(drawn, minlength=len(expected)) / len(drawn)
    # Four standard deviations of a share of 4000 draws.
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / np.sqrt(4000))


def test_a_greedy_policy_knows_no_temperature_and_a_cold_one_is_greedy():
    policy = make_policy("quantized", "iql")
    greedy = policy.plan(OBSERVATIONS, KEYS, act="greedy")
    hot, cold = policy.acting(temperature=1e6), policy.acting(temperature=1e-6)
    np.testing.assert_array_equal(hot.plan(OBSERVATIONS, KEYS, act="greedy"), greedy)
    for act in ("sample", "mean"):
        np.testing.assert_allclose(cold.plan(OBSERVATIONS, KEYS, act=act), greedy, atol=1e-5)
        assert np.abs(hot.plan(OBSERVATIONS, KEYS, act=act) - greedy).max() > 0.1


def test_a_continuous_policy_plays_its_mean_greedily():
    policy = make_policy("continuous", "gmm")
    greedy = policy.plan(OBSERVATIONS, KEYS, act="greedy")
    np.testing.assert_array_equal(policy.plan(OBSERVATIONS, KEYS, act="mean"), greedy)
    cold = policy.acting(temperature=0.1)
    sampled = policy.plan(OBSERVATIONS, KEYS, act="sample")
    np.testing.assert_array_equal(cold.plan(OBSERVATIONS, KEYS, act="sample"), sampled)


def test_the_way_of_acting_is_kept_on_disk(tmp_path):
    policy = make_policy("quantized", "bc").acting("mean", 0.5)
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert (again.default_act, again.act_temperature) == ("mean", 0.5)
    np.testing.assert_array_equal(again.act(OBSERVATIONS[0]), policy.act(OBSERVATIONS[0]))


@pytest.mark.parametrize("temperature", [0, -1, 1e-9, 1e9, float("nan")])
def test_a_temperature_that_divides_nothing_is_refused(temperature, tmp_path):
    with pytest.raises(ValueError, match=r"act-temperature is .* must be from"):
        make_policy("quantized", "bc").acting("sample", temperature)
    save_policy(make_policy("quantized", "bc"), tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    described["act_temperature"] = temperature
    (tmp_path / "policy.json").write_text(json.dumps(described))
    with pytest.raises(PolicyError, match=r"act.temperature"):
        load_policy(tmp_path)


def test_a_policy_of_before_keeps_the_temperature_that_its_agent_had(tmp_path):
    save_policy(make_policy("quantized", "bc"), tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text())
    del described["act_temperature"]
    for part in ("agent", "prior"):
        described["controller"][part]["temperature"] = 0.5
    (tmp_path / "policy.json").write_text(json.dumps(described))
    assert load_policy(tmp_path).act_temperature == 0.5


def test_settings_of_before_keep_the_temperature_that_their_agent_had():
    from saqrl.training.presets import settings_from

    described = settings_from({"dataset": "walk.npz"}).to_json()
    del described["evaluation"]["act_temperature"]
    described["agent"]["temperature"] = 0.25
    described["prior"]["temperature"] = 1.0
    assert Settings.from_json(described).evaluation.act_temperature == 0.25
    assert "temperature" not in AGENTS.describe(Settings.from_json(described).agent)


def test_the_agents_older_flag_is_the_same_choice():
    from saqrl.training.presets import settings_from

    data = {"dataset": "walk.npz"}
    older = settings_from(data | {"agent.temperature": "0.5"})
    assert older == settings_from(data | {"act_temperature": 0.5})
    assert older.evaluation.act_temperature == 0.5
    own = settings_from(data | {"agent": "iql", "agent.temperature": 0.5})
    assert (own.agent.temperature, own.evaluation.act_temperature) == (0.5, 1.0)
    with pytest.raises(ValueError, match="act-temperature is 0"):
        settings_from(data | {"act_temperature": 0})
