"""The human style: demonstrations that succeed and differ as people's do."""

from types import SimpleNamespace

import numpy as np
import pytest

from saqrl.environments.oracles.collect import collect
from saqrl.environments.oracles.manners import MANNERS, Hand
from saqrl.environments.oracles.planners import PLANNERS

CUBE = "cube-single-singletask-task2-v0"
# Columns of an observation of cube-single, by ogbench: the hand's place and the cube's, in 0.1 m.
HAND, BLOCK = slice(12, 15), slice(19, 22)
HUMAN = MANNERS["human"]


def episodes_of(arrays):
    """Observations and actions, episode by episode."""
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1
    return [
        (arrays["observations"][a:b], arrays["actions"][a:b])
        for a, b in zip((0, *ends[:-1]), ends, strict=True)
    ]


@pytest.fixture(scope="module")
def cube():
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    return collect(CUBE, style="human", episodes=8, seed=0)


@pytest.mark.parametrize(
    "environment_id", ["scene-singletask-task1-v0", "puzzle-3x3-singletask-task1-v0"]
)
def test_every_family_is_demonstrated_to_its_end(environment_id):
    pytest.importorskip("ogbench", reason="not installed: ogbench, which has the oracles")
    arrays = collect(environment_id, style="human", episodes=1, seed=0)
    assert arrays["terminals"][-1]
    assert np.abs(arrays["actions"]).max() <= 1


def test_every_human_demonstration_succeeds(cube):
    assert cube["terminals"].sum() == 8
    assert not cube["timeouts"].any()


def test_an_episode_depends_on_seed_and_number_alone(cube):
    again = collect(CUBE, style="human", episodes=2, seed=0)
    rows = len(again["rewards"])
    np.testing.assert_array_equal(cube["actions"][:rows], again["actions"])
    np.testing.assert_array_equal(cube["observations"][:rows], again["observations"])


def test_demonstrations_come_from_both_sides(cube):
    sides = []
    for observations, _ in episodes_of(cube):
        hand, block = observations[:6, HAND], observations[0, BLOCK]
        straight, gone = (block - hand[0])[:2], (hand[5] - hand[0])[:2]
        sides.append(straight[0] * gone[1] - straight[1] * gone[0])
    assert min(sides) < 0 < max(sides)


def test_hands_rest_for_different_times_before_they_grasp(cube):
    rests = []
    for _, actions in episodes_of(cube):
        before = actions[: np.flatnonzero(actions[:, 4] > 0)[0]]
        moves = np.flatnonzero(np.abs(before[:, :4]).max(1) > 0.15)
        rests.append(np.diff((-1, *moves, len(before))).max() - 1)
    low, high = HUMAN.hesitation
    assert low <= min(rests)
    assert max(rests) <= high
    assert len(set(rests)) > 4


def test_hands_move_at_different_speeds(cube):
    speeds = [np.abs(actions[:, :3]).max(1).mean() for _, actions in episodes_of(cube)]
    assert max(speeds) > 1.1 * min(speeds)


def test_the_expert_does_what_the_oracle_wants():
    generator = np.random.default_rng(0)
    hand = Hand(MANNERS["expert"], generator)
    for _ in range(20):
        wanted = generator.uniform(-1, 1, 5)
        assert hand.pending() is None
        np.testing.assert_array_equal(hand.do(wanted, 0.3), wanted)


def test_ways_are_bent_to_either_side_and_straighten():
    generator = np.random.default_rng(0)
    ahead = np.array([1.0, 0, 0, 0, -1])
    first = set()
    for _ in range(20):
        hand = Hand(HUMAN, generator)
        ways = [hand.do(ahead, 0.3) for _ in range(20)]
        first.add(np.sign(ways[0][1]))
        assert 20 <= np.degrees(abs(np.arctan2(ways[0][1], ways[0][0]))) <= 70
        np.testing.assert_array_equal(ways[-1], [hand.speed, 0, 0, 0, -1])
    assert first == {-1, 1}


def test_hands_close_to_things_are_not_bent():
    hand = Hand(HUMAN, np.random.default_rng(0))
    np.testing.assert_array_equal(hand.do(np.array([1.0, 0, 0, 0.5, -1]), 0.1)[1:4], [0, 0, 0.5])


@pytest.mark.parametrize(("preference", "first"), [((0, 0, 0, 0), 0), ((0.3, 0, 0, 0), 3)])
def test_the_next_button_is_the_nearest_but_for_a_preference(preference, first):
    places = np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0.2, 0.1, 0]])
    # Pressed are the two that are lit: each toggles the other two as well, twice in all.
    lit = np.array([1, 0, 0, 1])
    world = SimpleNamespace(
        _cur_button_states=lit,
        _target_button_states=np.zeros(4, int),
        _num_rows=2,
        _num_cols=2,
        data=SimpleNamespace(site_xpos=places),
        _button_site_ids=np.arange(4),
    )
    info = {"proprio/effector_pos": np.zeros(3)}
    subtask = PLANNERS["puzzle"](world, info, np.random.default_rng(0), np.array(preference))
    assert subtask.target(info)["privileged/target_button"] == first
