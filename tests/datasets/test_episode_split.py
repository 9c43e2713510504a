"""Whole episodes go to one side or the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.datasets.assembly import assemble
from saqrl.datasets.split import split_episodes
from saqrl.datasets.transitions import Transitions


def numbered(lengths: list[int]) -> Transitions:
    """Each observation is the number of its episode and of its row."""
    rows = np.arange(sum(lengths), dtype=np.float32)
    episodes = np.repeat(np.arange(len(lengths), dtype=np.float32), lengths)
    observations, ends = np.stack([episodes, rows], 1), np.zeros(len(rows), bool)
    ends[np.cumsum(lengths) - 1] = True
    arrays = {"observations": observations, "next_observations": observations + np.float32([0, 1])}
    return assemble(
        {**arrays, "actions": rows[:, None] / len(rows), "rewards": rows, "terminals": ends},
        source="numbered",
    )


@given(
    lengths=st.lists(st.integers(1, 4), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_every_episode_lies_whole_on_one_side(lengths, fraction, seed):
    transitions = numbered(lengths)
    training, held_out = split_episodes(transitions, held_out_fraction=fraction, seed=seed)
    sides = [set(side.observations[:, 0].tolist()) for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(len(lengths)))
    assert len(training) + len(held_out) == len(transitions)
    assert training.num_episodes + held_out.num_episodes == len(lengths)
    assert (np.diff(training.observations[:, 1]) > 0).all()


def test_the_seed_alone_decides():
    transitions = numbered([2] * 20)
    first, again, other = (
        split_episodes(transitions, held_out_fraction=0.2, seed=seed)[1] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.observations, again.observations)
    assert first.num_episodes == 4
    assert not np.array_equal(first.observations, other.observations)


@pytest.mark.parametrize(("lengths", "fraction"), [([5], 0.5), ([2, 2], 0.0)])
def test_nothing_is_held_out_of_one_episode_or_for_a_zero_fraction(lengths, fraction):
    transitions = numbered(lengths)
    training, held_out = split_episodes(transitions, held_out_fraction=fraction, seed=0)
    assert held_out is None
    assert training is transitions


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_the_interval_is_refused(fraction):
    with pytest.raises(ValueError, match="held-out fraction"):
        split_episodes(numbered([2, 2]), held_out_fraction=fraction, seed=0)
