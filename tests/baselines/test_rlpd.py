"""The opponent of fine-tuning: what every baseline promises, and its targets."""

import jax
import numpy as np
import pytest

import saqrl
from benchmarks.rlpd import RLPD
from saqrl import testing
from saqrl.baselines.cql import sample
from saqrl.baselines.critics import q_values


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_promises_of_a_baseline(check, registries):
    saqrl.register("baseline", "rlpd", RLPD)
    check("baseline", "rlpd")


def test_targets_are_the_minimum_of_two_drawn_critics_with_an_entropy_bonus():
    agent, batch = RLPD(hidden=(8, 8), critics=4), testing.table("baseline")
    state = agent.init(jax.random.key(0), batch)
    key = jax.random.key(1)
    y = np.asarray(agent.targets(state, batch, key), np.float64)
    action_key, _ = jax.random.split(key)
    actions, density = sample(state.policy.model, batch.next_observations, action_key)
    q = np.asarray(q_values(state.target, batch.next_observations, actions), np.float64)
    entropy = -float(np.exp(state.log_temperature.model)) * np.asarray(density, np.float64)
    fits = []
    for one in range(4):
        for other in range(one):
            lowest = np.minimum(q[one], q[other])
            wanted = batch.rewards + np.asarray(batch.discounts) * (lowest + entropy)
            fits.append(np.allclose(y, wanted, rtol=1e-5, atol=1e-5))
    assert sum(fits) == 1


def test_a_subset_of_more_critics_than_there_are_is_refused():
    with pytest.raises(ValueError, match="subset is 3; from 1 to 2 critics"):
        RLPD(critics=2, subset=3)
