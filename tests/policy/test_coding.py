"""Codes of a policy in the robot's units."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.deploy.test_export import make_policy
from tests.policy.test_policy import ACT, CHUNK, OBSERVATION

generator = np.random.default_rng(0)
OBSERVATIONS = generator.normal(size=(20, OBSERVATION))
ACTIONS = generator.uniform([0, -1], [10, 1], (20, CHUNK, ACT))


@pytest.fixture(scope="module")
def policy():
    return make_policy("quantized", "bc")


def test_codes_are_those_of_the_networks_units(policy):
    quantizer = policy.controller.quantizer
    features = policy.observation_scaling(OBSERVATIONS.astype(np.float32))
    unit = policy.action_range.to_unit(ACTIONS.astype(np.float32)).reshape(20, -1)
    codes = policy.quantizer.encode(OBSERVATIONS, ACTIONS)
    np.testing.assert_array_equal(codes, jax.vmap(quantizer.encode)(features, unit))
    assert len(np.unique(codes)) > 1
    actions = policy.quantizer.decode(OBSERVATIONS, codes)
    expected = np.asarray(jax.vmap(quantizer.decode)(features, codes)).reshape(20, CHUNK, ACT)
    np.testing.assert_allclose(actions, policy.action_range.from_unit(expected), rtol=1e-5)
    log_prior = policy.quantizer.log_prior(OBSERVATIONS)
    np.testing.assert_allclose(
        log_prior, jax.vmap(quantizer.log_prior)(features), rtol=1e-5, atol=1e-6
    )
    assert log_prior.shape == (20, policy.quantizer.num_codes)


def test_one_example_is_a_batch_of_one(policy):
    quantizer = policy.quantizer
    codes = quantizer.encode(OBSERVATIONS, ACTIONS)
    code = quantizer.encode(OBSERVATIONS[3], ACTIONS[3])
    assert code == codes[3]
    assert isinstance(code, np.integer)
    assert quantizer.decode(OBSERVATIONS[3], code).shape == (CHUNK, ACT)
    for given in (2, np.int64(2)):
        np.testing.assert_allclose(
            quantizer.decode(OBSERVATIONS[3], given),
            quantizer.decode(OBSERVATIONS, np.full(20, 2))[3],
            rtol=1e-5,
        )
    assert quantizer.log_prior(OBSERVATIONS[3]).shape == (6,)


def test_without_chunks_an_action_is_one_row(policy):
    single = dataclasses.replace(policy, chunk=1)
    assert single.quantizer.action_shape == (ACT,)
    with pytest.raises(ValueError, match=r"actions of 2 numbers, this one has shape \(3,\)"):
        single.quantizer.encode(OBSERVATIONS, np.zeros((20, 3)))


def test_what_does_not_fit_is_refused(policy):
    quantizer = policy.quantizer
    bad = ACTIONS.copy()
    bad[4, 1, 1] = np.nan
    for call, message in (
        (lambda: quantizer.encode(OBSERVATIONS, bad), "number 1 of the action is nan"),
        (lambda: quantizer.encode(OBSERVATIONS, ACTIONS[:, 0]), r"expected \(batch, 4, 2\)"),
        (lambda: quantizer.encode(OBSERVATIONS, ACTIONS[:3]), "20 observations but 3 actions"),
        (lambda: quantizer.encode(OBSERVATIONS[:, :2], ACTIONS), "observations of 3 numbers"),
        (lambda: quantizer.decode(OBSERVATIONS, np.full(20, 6)), "code 6 does not exist"),
        (lambda: quantizer.decode(OBSERVATIONS[0], -1), "code -1 does not exist"),
        (lambda: quantizer.decode(OBSERVATIONS, np.zeros(20)), "expected 20 integers"),
        (lambda: make_policy("continuous", "bc").quantizer, "a continuous policy has no codes"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
