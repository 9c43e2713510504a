"""Chunks against a plain loop, one row and one step at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.datasets.assembly import assemble
from saqrl.datasets.chunks import chunk_actions, chunk_rewards
from saqrl.datasets.transitions import Transitions


def episodes_of(lengths: list[int], terminates: list[bool], seed: int) -> Transitions:
    draw, steps = np.random.default_rng(seed), sum(lengths)
    terminals, timeouts = np.zeros(steps, bool), np.zeros(steps, bool)
    ends = np.cumsum(lengths) - 1
    terminals[ends], timeouts[ends] = terminates, np.logical_not(terminates)
    return assemble(
        {
            "observations": draw.normal(size=(steps, 2)).astype(np.float32),
            "next_observations": draw.normal(size=(steps, 2)).astype(np.float32),
            "actions": draw.uniform(-1, 1, (steps, 3)).astype(np.float32),
            "rewards": draw.normal(size=steps).astype(np.float32),
            "terminals": terminals,
            "timeouts": timeouts,
        },
        source="drawn",
    )


@st.composite
def logs(draw):
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    terminates = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    return episodes_of(lengths, terminates, draw(st.integers(0, 99)))


@given(transitions=logs(), horizon=st.integers(1, 8))
def test_chunked_actions_equal_a_plain_loop(transitions, horizon):
    expected = []
    for start, end in zip(transitions.episode_starts, transitions.episode_ends, strict=True):
        for row in range(start, end):
            rows = [min(row + offset, end - 1) for offset in range(horizon)]
            expected.append(np.concatenate([transitions.actions[r] for r in rows]))
    np.testing.assert_array_equal(chunk_actions(transitions, horizon), np.array(expected))


@given(transitions=logs(), horizon=st.integers(1, 8), discount=st.floats(0, 1))
def test_chunked_rewards_equal_a_plain_loop(transitions, horizon, discount):
    rewards, next_rows, discounts = chunk_rewards(transitions, horizon=horizon, discount=discount)
    for start, end in zip(transitions.episode_starts, transitions.episode_ends, strict=True):
        for row in range(start, end):
            total, factor, current = 0.0, 1.0, row
            while True:
                total += factor * float(transitions.rewards[current])
                factor *= discount
                if current == end - 1 or current == row + horizon - 1:
                    break
                current += 1
            factor *= not transitions.terminated[current]
            assert next_rows[row] == current
            # Results are float32: half a unit in the last place of numbers of size 1 to 10.
            assert rewards[row] == pytest.approx(total, rel=1e-6, abs=1e-6)
            assert discounts[row] == pytest.approx(factor, rel=1e-6, abs=1e-30)


@given(transitions=logs(), discount=st.floats(0, 1, width=32))
def test_chunks_of_one_step_are_the_transitions(transitions, discount):
    rewards, next_rows, discounts = chunk_rewards(transitions, horizon=1, discount=discount)
    np.testing.assert_array_equal(rewards, transitions.rewards)
    np.testing.assert_array_equal(next_rows, np.arange(len(transitions)))
    np.testing.assert_array_equal(discounts, np.float32(discount) * ~transitions.terminated)
    np.testing.assert_array_equal(chunk_actions(transitions, 1), transitions.actions)
    assert (rewards.dtype, next_rows.dtype, discounts.dtype) == (np.float32, np.int64, np.float32)


def test_a_discount_between_decisions_stands_for_those_inside_of_one():
    transitions = episodes_of([5, 4], [True, False], seed=0)
    plain = chunk_rewards(transitions, horizon=3, discount=0.9)
    found = chunk_rewards(transitions, horizon=3, discount=0.9, between=0.5)
    np.testing.assert_array_equal(found[0], plain[0])
    np.testing.assert_array_equal(found[1], plain[1])
    # The last three rows of the first episode see its end; the second one's end is a time limit.
    np.testing.assert_allclose(found[2], [0.5, 0.5, 0, 0, 0, 0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_chunk_without_steps_is_refused(horizon):
    transitions = episodes_of([3], [True], seed=0)
    with pytest.raises(ValueError, match=f"chunk is {horizon}"):
        chunk_actions(transitions, horizon)
    with pytest.raises(ValueError, match="at least 1"):
        chunk_rewards(transitions, horizon=horizon, discount=0.9)


@pytest.mark.parametrize("discount", [-0.1, 1.1, float("nan")])
def test_a_discount_outside_the_unit_interval_is_refused(discount):
    with pytest.raises(ValueError, match="discount"):
        chunk_rewards(episodes_of([3], [True], seed=0), horizon=2, discount=discount)
