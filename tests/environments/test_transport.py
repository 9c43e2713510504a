"""The scripted expert of robosuite's TwoArmTransport."""

import importlib.util

import numpy as np
import pytest

from saqrl.environments.oracles import transport
from saqrl.environments.oracles.collect import collect
from saqrl.environments.oracles.manners import Manners
from saqrl.environments.oracles.transport import (
    FIRST,
    SECOND,
    Arm,
    Body,
    Pose,
    Scene,
    towards,
    turn,
)

TRANSPORT = "robosuite/TwoArmTransport"
MISSING = [name for name in ("robosuite", "numba") if importlib.util.find_spec(name) is None]
needs_robosuite = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def axes_of(yaw: float) -> np.ndarray:
    """Of a hand that points down and opens along `yaw`."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, sine, 0], [sine, -cosine, 0], [0, 0, -1]])


class Still(Scene):
    """A hand that does what it is told at once, and a hammer."""

    def __init__(self, hammer: Body | None = None) -> None:
        self.place, self.hammer = np.zeros(3), hammer

    def hand(self, arm: int) -> Body:
        return Body(self.place.copy(), axes_of(transport.YAWS[arm]))

    def speed(self, arm: int) -> float:
        return 0.0

    def base(self, arm: int) -> np.ndarray:
        return np.eye(3)

    def thing(self, name: str) -> Body:
        assert self.hammer is not None
        return self.hammer


@pytest.mark.parametrize("degrees", [-120, -30, 1, 80, 150])
def test_the_error_of_a_hand_points_the_short_way_to_its_yaw(degrees):
    error = turn(axes_of(0.3), 0.3 + np.radians(degrees))
    np.testing.assert_allclose(error, [0, 0, np.sin(np.radians(degrees))], atol=1e-12)


def test_actions_are_in_the_axes_of_the_base_and_limited_in_length():
    scene = Still()
    scene.base = lambda arm: np.array(
        [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]
    )  # turned left by 90 degrees
    motion = towards(scene, FIRST, Pose(np.array([0, 1.0, 0]), transport.YAWS[FIRST]), 0.8)
    np.testing.assert_allclose(motion, [0.8, 0, 0, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize("flip", [1, -1])
def test_both_hands_grasp_the_handle_on_their_own_side(flip):
    # Its handle along y, its head to either side.
    hammer = Body(np.array([0.2, -0.45, 0.83]), np.array([[0, -1, 0], [0, 0, flip], [1, 0, 0.0]]))
    first, second = (transport._at_hammer(0)(Still(hammer), arm) for arm in (FIRST, SECOND))
    np.testing.assert_allclose(first.place, [0.2, -0.5, 0.83])
    np.testing.assert_allclose(second.place, [0.2, -0.375, 0.83])
    for arm, pose in ((FIRST, first), (SECOND, second)):
        assert np.isclose(pose.yaw, transport.YAWS[arm]), "fingers close across the handle"


def test_a_leg_waits_for_the_other_hand_and_for_its_rest(monkeypatch):
    legs = (
        transport.Leg("wait", None, True, transport.Way(rest="hover"), after="theirs"),
        transport.Leg("end", None, False),
    )
    monkeypatch.setattr(transport, "LEGS", (legs, legs))
    scene, finished = Still(), set()
    arm = Arm(FIRST, scene, Manners(hover=(3, 3)), np.random.default_rng(0))
    grips = [arm.act(scene, finished)[-1] for _ in range(5)]
    assert grips == [-1] * 5, "the other hand has not come"
    finished.add("theirs")
    grips = [arm.act(scene, finished)[-1] for _ in range(5)]
    assert grips == [-1, -1, -1, 1, -1], "three steps of rest, closed, and open at the last leg"


def test_every_leg_waits_for_one_that_the_other_hand_has():
    for own, other in (transport.LEGS, transport.LEGS[::-1]):
        assert {leg.after for leg in own if leg.after} <= {leg.name for leg in other}
    names = [leg.name for legs in transport.LEGS for leg in legs]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("style", ["play", "noisy"])
def test_transport_has_no_data_with_random_targets(style):
    with pytest.raises(
        ValueError, match=r"robosuite/TwoArmTransport .*choose style expert or human"
    ):
        collect(TRANSPORT, style=style, episodes=1, seed=0)


def test_collecting_without_robosuite_says_how_to_install_it(monkeypatch):
    found = importlib.util.find_spec
    absent = ("mujoco", "numba", "robosuite")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else found(name)
    )
    with pytest.raises(ImportError, match=r"TwoArmTransport needs the .*robosuite==1.5.2"):
        collect(TRANSPORT, style="expert", episodes=1, seed=0)


@needs_robosuite
def test_the_cube_is_grasped_and_both_arms_are_observed():
    from saqrl.environments.make import make_environment

    environment = make_environment(TRANSPORT)
    observation, _ = environment.reset(seed=1)
    parts = [
        f"robot{arm}_{part}" for arm in (0, 1) for part in ("eef_pos", "eef_quat", "gripper_qpos")
    ]
    assert [name for name, _ in environment.layout] == [*parts, "object"]
    assert environment.action_space.shape == (14,)
    assert environment.spec.max_episode_steps == 700
    assert observation[:9].any()
    assert observation[9:18].any()
    scene = Scene(environment.get_wrapper_attr("_task"))
    generator = np.random.default_rng(0)
    arms = [Arm(number, scene, Manners(), generator) for number in (FIRST, SECOND)]
    finished: set[str] = set()
    for _ in range(120):
        environment.step(np.concatenate([arm.act(scene, finished) for arm in arms]))
        if {"lift the cube", "lift the lid"} <= finished:
            break
    # From 0.83 and 0.98 m: to the rim of its bin, and off it.
    assert scene.thing("trash").place[2] > 0.95
    assert scene.lid_handle()[2] > 1.03
    environment.close()


@needs_robosuite
@pytest.mark.slow
@pytest.mark.parametrize("style", ["expert", "human"])
def test_demonstrations_of_transport_succeed_and_repeat(style):
    one = collect(TRANSPORT, style=style, episodes=1, seed=3)
    assert one["terminals"].sum() == 1
    assert one["terminals"][-1]
    np.testing.assert_array_equal(one["rewards"], one["terminals"])
    assert np.abs(one["actions"]).max() <= 1
    assert str(one["environment_id"]) == TRANSPORT
    again = collect(TRANSPORT, style=style, episodes=1, seed=3)
    np.testing.assert_array_equal(one["actions"], again["actions"])
    np.testing.assert_array_equal(one["observations"], again["observations"])
