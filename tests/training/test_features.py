"""What the networks read of a log, against plain formulas."""

import numpy as np
import pytest

from saqrl.datasets.assembly import assemble
from saqrl.datasets.transitions import Transitions
from saqrl.training.features import Features
from saqrl.training.preparation import reward_factor, split
from saqrl.training.presets import build_settings


def paid(*episodes: list[float]) -> Transitions:
    """A log of these rewards; every episode terminates."""
    rewards = np.concatenate(episodes).astype(np.float32)
    ends = np.zeros(len(rewards), bool)
    ends[np.cumsum([len(episode) for episode in episodes]) - 1] = True
    table = np.arange(2 * len(rewards), dtype=np.float32).reshape(-1, 2)
    return assemble(
        {
            "observations": table,
            "next_observations": table + 2,
            "actions": np.cos(table),
            "rewards": rewards,
            "terminals": ends,
        },
        source="written",
    )


def test_unit_rewards_have_a_mean_size_of_a_tenth_whatever_their_sign():
    log = paid([1, -3, 0], [4])
    assert reward_factor(log, "unit") == pytest.approx(0.1 / 2)
    assert np.abs(log.rewards * reward_factor(log, "unit")).mean() == pytest.approx(0.1)


def test_returns_span_a_thousand():
    log = paid([1, 2, -4], [7, 1], [3])  # returns -1, 8 and 3
    assert reward_factor(log, "return-range") == pytest.approx(1000 / 9)
    assert np.ptp(log.episode_returns * reward_factor(log, "return-range")) == pytest.approx(1000)


@pytest.mark.parametrize("scale", ["unit", "return-range", "none"])
def test_rewards_that_say_nothing_stay_as_they_are(scale):
    assert reward_factor(paid([0, 0], [0]), scale) == 1


def test_returns_without_a_span_and_rewards_that_are_to_stay_are_left_alone():
    assert reward_factor(paid([2, 3], [5]), "return-range") == 1
    assert reward_factor(paid([2, 3], [5, 6]), "none") == 1


def test_scalings_are_those_of_the_training_episodes():
    """Held-out episodes judge the scaling too: nothing of theirs is in it."""
    generator = np.random.default_rng(0)
    log = paid(*(generator.uniform(1, 9, 5) for _ in range(20)))
    settings = build_settings("default")
    features = Features(log, settings)
    assert features.held_out_log is not None
    training, _ = split(log, settings)
    assert len(training) < len(log)
    np.testing.assert_allclose(features.scaling.mean, training.observations.mean(0), rtol=1e-5)
    assert not np.allclose(features.scaling.mean, log.observations.mean(0), rtol=1e-3)
    np.testing.assert_allclose(np.abs(features.training.rewards).mean(), 0.1, rtol=1e-5)
