"""Hyperparameters that would train nonsense are refused where the agent is made."""

import jax
import jax.numpy as jnp
import pytest

from saqrl.agents import AGENTS, CodedTransitions
from saqrl.agents.cql import CQL
from saqrl.baselines import BASELINES
from saqrl.baselines.rebrac import ReBRAC
from saqrl.quantizers.vqvae import VQVAE


# That of bc is how it acts, `Evaluation.act_temperature`.
@pytest.mark.parametrize("name", [name for name in AGENTS if name != "bc"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(name, value):
    with pytest.raises(ValueError, match=r"agent\.temperature is .*; it must be above 0"):
        AGENTS.load(name)(temperature=value)


@pytest.mark.parametrize(
    ("make", "field"),
    [(lambda: CQL(target_period=0), "target-period"), (lambda: ReBRAC(policy_period=0), "policy")],
)
def test_a_period_of_no_steps_is_refused(make, field):
    with pytest.raises(ValueError, match=field):
        make()


@pytest.mark.parametrize("registry", [AGENTS, BASELINES])
def test_the_expectile_may_be_called_tau_as_in_the_paper(registry):
    assert registry.rebuild({"name": "iql", "tau": 0.8}).expectile == 0.8
    described = registry.describe(registry.load("iql")(expectile=0.6))
    assert described["expectile"] == 0.6
    assert "tau" not in described


def test_cql_with_a_threshold_does_not_go_on_without_the_prior():
    table = CodedTransitions(
        jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), jnp.zeros(2), jnp.zeros((2, 3)), jnp.ones(2),
        None, None, 4,
    )  # fmt: skip
    agent = CQL(hidden=(4,))
    state = agent.init(jax.random.key(0), table)
    with pytest.raises(ValueError, match="needs the behaviour's log-probabilities"):
        agent.targets(state, table)
    assert CQL(hidden=(4,), threshold=0).targets(state, table).shape == (2,)


def test_codes_that_follow_their_loss_cannot_be_revived():
    with pytest.raises(ValueError, match="revive-below 0"):
        VQVAE(codebook="gradient")
    assert VQVAE(codebook="gradient", revive_below=0.0).codes == 64
