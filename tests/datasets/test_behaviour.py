"""What kind of behaviour a log holds."""

import numpy as np
import pytest

from saqrl.datasets import Transitions
from saqrl.datasets.assembly import assemble
from saqrl.datasets.audit.behaviour import Behaviour, behaviour


def log_of(noise, *, episodes: int = 40, steps: int = 60, seed: int = 0) -> Transitions:
    """Episodes through the same states, whose actions are a function of the state plus `noise`.

    noise(draw, steps) gives one episode's, (steps, 2).
    """
    draw = np.random.default_rng(seed)
    time = np.arange(steps) / steps
    path = np.stack([np.cos(3 * time), np.sin(3 * time), time], 1)
    observations, actions = [], []
    for _ in range(episodes):
        seen = path + draw.normal(0, 0.002, path.shape)
        observations.append(seen)
        actions.append(0.3 * seen[:, :2] + noise(draw, steps))
    ends = np.zeros(episodes * steps, bool)
    ends[steps - 1 :: steps] = True
    return assemble(
        {
            "observations": np.concatenate(observations).astype(np.float32),
            "actions": np.concatenate(actions).astype(np.float32),
            "timeouts": ends,
        },
        source="made here",
    )


def autoregressive(coefficient: float):
    def noise(draw, steps):
        rows = [draw.normal(0, 0.1, 2)]
        for _ in range(steps - 1):
            fresh = draw.normal(0, 0.1 * np.sqrt(1 - coefficient**2), 2)
            rows.append(coefficient * rows[-1] + fresh)
        return np.array(rows)

    return noise


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9])
def test_persistence_is_the_autocorrelation_of_what_the_state_leaves_open(coefficient):
    found = behaviour(log_of(autoregressive(coefficient), episodes=80))
    lags = np.arange(len(found.persistence))
    # Pairs share demonstrations: about a hundred independent ones.
    np.testing.assert_allclose(found.persistence, coefficient**lags, atol=0.12)


def test_white_noise_is_no_choice_and_asks_for_single_steps():
    found = behaviour(log_of(autoregressive(0.0)))
    assert found.known
    assert not found.has_choices
    assert found.steps == 1


def test_a_side_that_an_episode_keeps_to_is_a_choice_for_as_long_as_is_looked():
    def side(draw, steps):
        return np.full((steps, 2), draw.choice([-0.3, 0.3])) + draw.normal(0, 0.01, (steps, 2))

    found = behaviour(log_of(side))
    assert found.has_choices
    assert found.steps == len(found.persistence) == 17


def test_steps_of_a_choice_end_where_it_has_faded():
    assert Behaviour((1.0, 0.8, 0.6, 0.4, 0.2, 0.1), 0.1).steps == 4
    assert Behaviour((1.0, 0.26, 0.2), 0.1).steps == 1


def test_spread_is_the_noise_over_the_deviation_of_the_actions():
    log = log_of(autoregressive(0.0), episodes=80)
    deviation = np.sqrt(log.action_range.to_unit(log.actions).var(0).sum())
    noise = 0.1 * np.sqrt(2) / np.sqrt(np.square(log.action_range.half_width).mean())
    assert behaviour(log).spread == pytest.approx(noise / deviation, rel=0.1)


@pytest.mark.parametrize(("episodes", "steps"), [(2, 200), (30, 2)])
def test_too_few_episodes_or_steps_say_nothing(episodes, steps):
    found = behaviour(log_of(autoregressive(0.9), episodes=episodes, steps=steps))
    assert not found.known
    assert found.steps == 1


def test_actions_that_are_all_alike_say_nothing():
    def still(draw, steps):
        return np.zeros((steps, 2))

    log = log_of(still)
    alike = Transitions(**{**vars(log), "actions": np.zeros_like(log.actions)})
    assert not behaviour(alike).known


def test_a_weak_sign_of_choices_counts_only_where_many_episodes_meet():
    weak, clear, none = (1.0, 0.3), (1.0, 0.9), (1.0, 0.1)
    assert Behaviour(weak, 0.1, meetings=30).has_choices
    assert not Behaviour(weak, 0.1, meetings=6).known
    assert Behaviour(clear, 0.1, meetings=6).has_choices
    assert Behaviour(none, 0.1, meetings=6).known


def test_episodes_that_meet_are_counted_once_a_pair():
    found = behaviour(log_of(autoregressive(0.0), episodes=4))
    assert found.meetings == 4 * 3 / 2


def test_noise_in_few_short_episodes_is_never_taken_for_a_choice():
    for seed in range(20):
        found = behaviour(log_of(autoregressive(0.0), episodes=5, steps=40, seed=seed))
        assert not found.has_choices
