"""Ensembles: members of their own, one quantizer, probabilities that are averaged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.agents import CodedTransitions, Members
from saqrl.agents.bc import BC
from saqrl.policy.storage import controller_skeleton, load_policy, save_policy
from saqrl.training.members import ensemble, states_of
from saqrl.training.summary import method_name
from tests.policy.test_policy import OBSERVATION, described, enlivened, make_policy
from tests.walking import killed, outcome, run, small

COUNT = 3
OBSERVATIONS = np.random.default_rng(4).normal(size=(32, OBSERVATION)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(2), len(OBSERVATIONS))


def together(kind, name):
    description = described(kind, name) | {"members": COUNT}
    controller = enlivened(jax.jit(lambda: controller_skeleton(description))())
    policy = make_policy(kind, name)
    return dataclasses.replace(policy, controller=controller, description=description)


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("name", ["bc", "iql"])
def test_members_average_their_probabilities(name):
    policy = together("quantized", name)
    controller, quantizer = policy.controller, policy.controller.quantizer
    assert isinstance(controller.actor, Members)
    # BC's networks are the prior; value agents have critics of their own on one prior.
    assert isinstance(quantizer.prior, nn.Ensemble if name == "bc" else nn.MLP)
    for row in policy.observation_scaling(OBSERVATIONS)[:2]:
        for temperature in (0.5, 1.0):
            total = 0.0
            for member, actor in enumerate(controller.actor.actors):
                own = quantizer.prior.heads[member] if name == "bc" else quantizer.prior
                log_prior = jax.nn.log_softmax(own(jnp.asarray(row)))
                logits = np.asarray(actor.logits(row, log_prior), np.float64)
                total = total + softmax(logits / temperature) / COUNT
            found = jax.nn.softmax(controller.scores(row, temperature=temperature))
            np.testing.assert_allclose(found, total, rtol=1e-4, atol=1e-7)
            greedy = controller.choose(row, KEYS[0], act="greedy", temperature=temperature)
            assert greedy == total.argmax()
            if name == "bc" and temperature == 1:
                np.testing.assert_allclose(np.exp(quantizer.log_prior(row)), total, rtol=1e-4)


def test_continuous_members_play_the_mean_of_their_actions_or_one_of_them():
    policy = together("continuous", "gmm")
    actors = policy.controller.actor.actors
    row = jnp.asarray(policy.observation_scaling(OBSERVATIONS)[0])
    mean = np.mean([actor.act(row, KEYS[0], greedy=True) for actor in actors], 0)
    np.testing.assert_allclose(
        policy.controller.decide(row, KEYS[0], act="greedy"), mean, rtol=1e-5
    )
    choices = np.stack([means for actor in actors for means in actor.mixture(row)[1]])
    for key in KEYS[:8]:
        drawn = policy.controller.decide(row, key, act="sample")
        assert np.abs(choices - drawn).max(1).min() < 1e-6


@pytest.mark.parametrize(("kind", "name"), [("quantized", "bc"), ("continuous", "bc")])
def test_an_ensemble_is_stored_and_exported(kind, name, tmp_path):
    pytest.importorskip("onnxruntime")
    from tests.deploy.test_export import write

    policy = together(kind, name).acting("mean", 0.5)
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert again.members == COUNT
    assert f"{COUNT} members" in repr(again)
    np.testing.assert_array_equal(again.act(OBSERVATIONS[0]), policy.act(OBSERVATIONS[0]))
    for act in ("greedy", "sample", "mean") if kind == "quantized" else ("greedy",):
        for suffix in ("onnx", "npz"):
            checked = write(policy, tmp_path / f"{act}.{suffix}", act=act)
            assert checked.largest_difference <= 1e-5
    described = json.loads((tmp_path / "policy.json").read_text())
    described["controller"]["members"] = 10**6
    (tmp_path / "policy.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="members is 1000000"):
        load_policy(tmp_path)


def test_members_learn_as_each_would_alone_on_its_rows():
    draw = np.random.default_rng(0)
    agent = BC(hidden=(8,), batch_size=4, steps=10)
    columns = jnp.asarray(draw.normal(size=(12, 2)), jnp.float32), jnp.arange(12) % 5
    zeros = jnp.zeros(12)
    batch = CodedTransitions(*columns, zeros, columns[0], zeros, None, None, 5)
    several = ensemble(agent, COUNT)
    assert several.batch_size == 12
    state = several.init(jax.random.key(0), batch)
    after, metrics = jax.jit(several.update)(state, batch, jax.random.key(1))
    update = jax.jit(agent.update)
    losses = []
    for member, (before, own) in enumerate(
        zip(states_of(several, state), states_of(several, after), strict=True)
    ):
        rows = jax.tree.map(lambda c, m=member: c[4 * m : 4 * m + 4], batch)
        alone, found = update(before, rows, jax.random.key(1))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, own)
        losses.append(float(found["cross_entropy"]))
    assert len(set(losses)) == COUNT
    np.testing.assert_allclose(metrics["cross_entropy"], np.mean(losses), rtol=1e-5)


def test_one_member_is_the_agent_itself():
    agent = BC()
    assert ensemble(agent, 1) is agent
    assert states_of(agent, "state") == ["state"]


@pytest.mark.parametrize(
    ("agent", "blow"), [("bc", 6), pytest.param("iql", 9, marks=pytest.mark.slow)]
)
def test_a_killed_and_resumed_ensemble_equals_an_uninterrupted_one(
    dataset, tmp_path, monkeypatch, agent, blow
):
    settings = small(dataset, agent, members=2, act="mean", act_temperature=0.5)
    result = run(settings, tmp_path / "whole")
    assert (result["members"], result["act"], result["act_temperature"]) == (2, "mean", 0.5)
    assert method_name(result) == f"SAQ-{agent.upper()}, 2 members"
    lines = (tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()
    assert all(json.loads(line)["act_temperature"] == 0.5 for line in lines)
    killed(settings, tmp_path / "killed", monkeypatch, blow=blow)
    run(settings, tmp_path / "killed", resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    policy = load_policy(tmp_path / "whole")
    assert policy.members == 2
    assert np.isfinite(policy.quantizer.log_prior(np.zeros(2, np.float32))).all()


@pytest.mark.parametrize("members", [0, 65])
def test_an_ensemble_of_none_or_of_very_many_is_refused(members):
    with pytest.raises(ValueError, match=f"members is {members}; it must be 1 to 64"):
        small("walk.npz", members=members)
