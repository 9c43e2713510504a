"""The figure of held-out episodes: how much nearer than the last command."""

from dataclasses import dataclass

import numpy as np
import pytest

from saqrl.datasets.assembly import assemble
from saqrl.datasets.scaling import ActionRange
from saqrl.training.held_out_skill import distances, held_out_skill


@dataclass(frozen=True)
class Told:
    """Plays what `plan` says of a row: its number is the observation."""

    actions: np.ndarray
    """rows, chunk, act"""
    action_range: ActionRange
    action_horizon: int = 1
    default_act: str = "greedy"
    history: int = 1

    def plan(self, windows, keys, *, act):
        return self.actions[windows[:, 0].astype(int)]


def log(actions):
    """Two episodes of equal length."""
    ends = np.zeros(len(actions), bool)
    ends[[len(actions) // 2 - 1, -1]] = True
    rows = np.arange(len(actions), dtype=np.float32)[:, None]
    columns = {
        "observations": rows,
        "next_observations": rows + 1,
        "actions": np.asarray(actions, np.float32)[:, None],
    }
    return assemble({**columns, "timeouts": ends}, source="test")


@pytest.fixture
def walk():
    return log(np.sin(np.arange(40)))


def told(data, chunk=1, shift=0.0):
    rows = np.arange(len(data))[:, None] + np.arange(chunk)
    ahead = data.actions[np.minimum(rows, len(data) - 1)] + np.float32(shift)
    return Told(ahead, data.action_range, action_horizon=chunk)


@pytest.mark.parametrize("chunk", [1, 4])
def test_who_plays_what_was_recorded_has_all_the_skill(walk, chunk):
    assert held_out_skill(told(walk, chunk), walk) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 4])
def test_who_holds_the_last_command_has_none(walk, chunk):
    last = walk.actions[np.maximum(np.arange(40) - 1, 0)]
    policy = Told(np.repeat(last[:, None], chunk, 1), walk.action_range, action_horizon=chunk)
    assert held_out_skill(policy, walk) == pytest.approx(0, abs=1e-6)


def test_who_is_farther_off_than_the_last_command_is_below_zero(walk):
    assert held_out_skill(told(walk, shift=5.0), walk) < 0


def test_steps_beyond_the_end_of_an_episode_do_not_count(walk):
    played = told(walk, 4)
    missed, held = distances(played, walk, np.array([18]))  # two steps are left
    assert missed == pytest.approx([0], abs=1e-6)
    unit = walk.action_range.to_unit(walk.actions)
    assert held == pytest.approx([np.abs(unit[18:20] - unit[17]).mean()], rel=1e-5)


def test_actions_that_never_change_tell_nothing():
    still = log(np.ones(12))
    assert held_out_skill(told(still), still) is None
