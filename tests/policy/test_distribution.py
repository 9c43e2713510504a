"""What may be played in a state, and the score of it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.policy.distribution import energy_score, spread
from tests.deploy.test_export import make_policy


def test_the_energy_score_is_that_of_the_sum_over_pairs():
    generator = np.random.default_rng(0)
    weights = generator.dirichlet(np.ones(5), 3)
    points, happened = generator.normal(size=(3, 5, 2)), generator.normal(size=(3, 2))
    for n, score in enumerate(energy_score(weights, points, happened)):
        missed = sum(weights[n, a] * np.linalg.norm(points[n, a] - happened[n]) for a in range(5))
        apart = sum(
            weights[n, a] * weights[n, b] * np.linalg.norm(points[n, a] - points[n, b])
            for a in range(5)
            for b in range(5)
        )
        assert score == pytest.approx(missed - apart / 2)


def test_one_action_scores_its_distance():
    assert energy_score(np.ones((1, 1)), np.zeros((1, 1, 2)), np.array([[3.0, 4.0]])) == [5.0]


@given(st.floats(0.05, 0.95), st.floats(0, 1))
def test_no_other_belief_scores_better_than_the_truth(truth, belief):
    """Two actions, of which the first happens with probability `truth`."""

    def expected(said):
        weights, points = np.array([[said, 1 - said]] * 2), np.array([[[0.0], [1.0]]] * 2)
        first, second = energy_score(weights, points, np.array([[0.0], [1.0]]))
        return truth * first + (1 - truth) * second

    assert expected(truth) <= expected(belief) + 1e-12


@pytest.fixture(scope="module")
def policy():
    return make_policy()


@pytest.fixture(scope="module")
def windows(policy):
    shape = (70, policy.observation_size)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_codes_come_with_the_policys_probabilities_the_most_probable_first(policy, windows):
    found = spread(policy, windows, act="sample")
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)
    assert (np.diff(found.probabilities, axis=1) <= 1e-7).all()
    likeliest = policy.quantizer.decode(windows, found.codes[:, 0])
    np.testing.assert_allclose(
        found.chunks[:, 0].reshape(likeliest.shape), likeliest, rtol=1e-4, atol=1e-5
    )


def test_a_greedy_policy_plays_one_chunk(policy, windows):
    found = spread(replace(policy, default_act="greedy"), windows)
    every = spread(policy, windows, act="sample")
    assert found.chunks.shape[1] == 1
    np.testing.assert_allclose(found.chunks[:, 0], every.chunks[:, 0], rtol=1e-4, atol=1e-5)


def test_a_sampling_policy_without_codes_is_drawn_from(windows):
    found = spread(make_policy("continuous", "gmm"), windows[:2], act="sample")
    assert found.codes is None
    assert len(np.unique(found.chunks[0].reshape(len(found.chunks[0]), -1), axis=0)) > 1
