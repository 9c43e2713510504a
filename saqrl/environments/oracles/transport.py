"""Two hands that carry a hammer from bin to bin: the expert of robosuite's TwoArmTransport.

The first hand puts the lid of the start bin aside, takes the hammer and presents it between the
tables. The second moves the cube from the target bin to the trash bin, takes the hammer from the
first and puts it into the target bin. Each hand follows a list of legs: a straight way, and whether
the gripper is closed. A leg can wait for a leg of the other hand, by its name.

Metres, radians, robosuite's world frame: z is up, the tables' tops are at 0.8, the first robot is
at y = -0.81, the second at y = 0.81. Hands point straight down. A step is 0.05 s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from saqrl.environments.oracles.manners import Manners

Vector = Float64[np.ndarray, "3"]
Matrix = Float64[np.ndarray, "3 3"]

UP: Vector = np.array([0.0, 0.0, 1.0])
FIRST, SECOND = 0, 1

# Rests are shorter than in OGBench, because the task is truncated after 700 steps.
MANNERS: Mapping[str, Manners] = {
    "expert": Manners(),
    "human": Manners(speed=(0.8, 1.0), hover=(0, 4), hesitation=(2, 10), offset=(0.0, 0.02)),
}

# What action 1 of robosuite's pose controller means (m, rad). Source: its default_panda.json.
FULL_STEP, FULL_TURN = 0.05, 0.5
# Share of the error that one action commands: above 1 against lag, below 2 against overshoot.
GAIN = 1.2
# A stretched arm sags, so within NEAR (m) of its goal a share of the error is summed, to SAG (m).
NEAR, SAG_RATE, SAG = 0.03, 0.06, 0.03
# Error of orientation (rad) below which a leg can end.
TURNED = 0.1

# Yaw of either hand where no object determines it: its fingers open along x.
YAWS = (np.pi, 0.0)
# Distance (m) from the middle of the hammer's 0.2 m handle at which either hand grasps it, each on
# its robot's side. The hands are 0.07 m thick.
GRASPS = (0.05, 0.075)
# From the middle of the handle to the middle of the hammer (m).
HEAD = 0.0165
# Height (m) of a grasp above the middle of an object: the fingertips are 0.013 m lower still.
HIGHER = 0.005
# Where the first hand presents the hammer: about 0.04 m short of a straight arm, as the other is.
MEETING: Vector = np.array([0.0, -0.06, 1.04])


class Pose(NamedTuple):
    """Goal of a hand: its place, and the direction in which its fingers open."""

    place: Vector
    yaw: float


class Body(NamedTuple):
    """Place of a hand or an object, and its axes as columns."""

    place: Vector
    axes: Matrix


class Scene:
    """The part of the simulator's state that the expert reads."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def hand(self, arm: int) -> Body:
        """The point between the fingers; they open along the first axis."""
        controller = self._controller(arm)
        return Body(controller.ref_pos.copy(), controller.ref_ori_mat.copy())

    def speed(self, arm: int) -> float:
        """Of a hand, in m/s."""
        return float(np.linalg.norm(self._controller(arm).ref_pos_vel))

    def base(self, arm: int) -> Matrix:
        """Axes of a robot's base, which are those of its actions."""
        axes: Matrix = self._controller(arm).origin_ori
        return axes

    def thing(self, name: str) -> Body:
        """By its name in robosuite, such as payload (the hammer) or trash (the cube)."""
        body = self._task.sim.model.body_name2id(self._task.transport.objects[name].root_body)
        data = self._task.sim.data
        return Body(data.body_xpos[body].copy(), data.body_xmat[body].reshape(3, 3).copy())

    def lid_handle(self) -> Vector:
        """The middle of the lid's handle."""
        return np.array(self._task.transport.lid_handle_pos)

    def _controller(self, arm: int) -> Any:
        return self._task.robots[arm].part_controllers["right"]


@dataclass(frozen=True)
class Way:
    """How a hand moves on a leg, and when the leg ends."""

    speed: float = 1.0
    """Share of the hand's own speed."""
    within: float = 0.012
    """It ends within these metres of the goal."""
    slower_than: float = np.inf
    """It ends below this speed, in m/s."""
    steps: int = 0
    """It takes at least so many steps."""
    rest: Literal["hover", "hesitation"] | None = None
    """The field of Manners from which the rest before it is drawn."""
    strays: bool = False
    """Whether Manners.offset is added to its goal."""


FREE = Way(strays=True)
CARRY = Way()
PRESENT = Way(within=0.02)
REACH = Way(speed=0.5, slower_than=0.07, rest="hover")
LOWER = Way(speed=0.8, within=0.015, slower_than=0.2, rest="hover")
LIFT = Way(speed=0.6)
GRASP = Way(within=np.inf, steps=10, rest="hesitation")
RELEASE = Way(within=np.inf, steps=8, rest="hesitation")

Goal = Callable[[Scene, int], Pose]


@dataclass(frozen=True)
class Leg:
    """A part of a hand's way. `goal` is computed when it begins; None keeps the last one."""

    name: str
    goal: Goal | None
    closed: bool
    way: Way = field(default=CARRY)
    after: str | None = None
    """Leg of the other hand that has to end before this one begins."""


def _yaw(axis: Vector) -> float:
    return float(np.arctan2(axis[1], axis[0]))


def _nearest(yaw: float, wanted: float, period: float) -> float:
    """Of the equivalent yaws, `period` apart, the one nearest to `wanted`."""
    return wanted + (yaw - wanted + period / 2) % period - period / 2


def _by(x: float, y: float, z: float) -> Goal:
    """Relative to the hand's place, without turning."""

    def goal(scene: Scene, arm: int) -> Pose:
        hand = scene.hand(arm)
        return Pose(hand.place + np.array([x, y, z]), _yaw(hand.axes[:, 0]))

    return goal


def _to_height(height: float) -> Goal:
    """Straight up or down, without turning."""

    def goal(scene: Scene, arm: int) -> Pose:
        hand = scene.hand(arm)
        return Pose(np.array([*hand.place[:2], height]), _yaw(hand.axes[:, 0]))

    return goal


def _at(place: Vector) -> Goal:
    return lambda scene, arm: Pose(place, YAWS[arm])


def _at_lid(above: float) -> Goal:
    return lambda scene, arm: Pose(scene.lid_handle() + above * UP, YAWS[arm])


def _at_cube(above: float) -> Goal:
    """With the fingers at two opposite faces."""

    def goal(scene: Scene, arm: int) -> Pose:
        cube = scene.thing("trash")
        yaw = _nearest(_yaw(cube.axes[:, 0]), YAWS[arm], np.pi / 2)
        return Pose(cube.place + above * UP, yaw)

    return goal


def _towards_second(hammer: Body) -> Vector:
    """The handle's direction, towards the second robot."""
    handle = hammer.axes[:, 2]
    return handle if handle[1] > 0 else -handle


def _at_hammer(above: float) -> Goal:
    """Across the handle, at its end on the hand's own side."""

    def goal(scene: Scene, arm: int) -> Pose:
        hammer = scene.thing("payload")
        handle = _towards_second(hammer)
        along = GRASPS[arm] if arm == SECOND else -GRASPS[arm]
        yaw = _nearest(_yaw(handle) + np.pi / 2, YAWS[arm], np.pi)
        return Pose(hammer.place + along * handle + above * UP, yaw)

    return goal


def _hammer_out(height: float) -> Goal:
    """Up, and the hammer to the middle of its bin, because it is almost as long as the bin."""

    def goal(scene: Scene, arm: int) -> Pose:
        hand, hammer = scene.hand(arm), scene.thing("payload")
        middle = hammer.place + HEAD * hammer.axes[:, 2]
        place = hand.place + scene.thing("start_bin").place - middle
        return Pose(np.array([*place[:2], height]), _yaw(hand.axes[:, 0]))

    return goal


def _hammer_over_bin(height: float) -> Goal:
    """So that the middle of the handle is above the middle of the target bin."""

    def goal(scene: Scene, arm: int) -> Pose:
        hand, hammer = scene.hand(arm), scene.thing("payload")
        place = hand.place + scene.thing("target_bin").place - hammer.place
        return Pose(np.array([*place[:2], height]), YAWS[arm])

    return goal


def _over(name: str, height: float) -> Goal:
    def goal(scene: Scene, arm: int) -> Pose:
        return Pose(np.array([*scene.thing(name).place[:2], height]), YAWS[arm])

    return goal


# Bins stand 0.15 m high on the tables and are 0.3 m wide; the lid's handle is 0.03 m high.
LEGS: tuple[tuple[Leg, ...], tuple[Leg, ...]] = (
    (
        Leg("over the lid", _at_lid(0.07), False, FREE),
        Leg("at the lid", _at_lid(HIGHER), False, REACH),
        Leg("grasp the lid", None, True, GRASP),
        Leg("lift the lid", _by(0, 0, 0.09), True),
        Leg("over the table", _at(np.array([-0.18, -0.45, 1.07])), True, FREE),
        Leg("lower the lid", _to_height(0.85), True, LOWER),
        Leg("leave the lid", None, False, RELEASE),
        Leg("rise from the lid", _by(0, 0, 0.14), False),
        Leg("over the hammer", _at_hammer(0.17), False, FREE),
        Leg("at the hammer", _at_hammer(HIGHER), False, REACH),
        Leg("grasp the hammer", None, True, GRASP),
        Leg("lift the hammer", _hammer_out(1.03), True, LIFT),
        Leg("present", _at(MEETING), True, PRESENT),
        Leg("let go", None, False, RELEASE, after="take"),
        Leg("rise from the hammer", _by(0, 0, 0.07), False),
        Leg("withdraw", _at(np.array([0.0, -0.4, 1.15])), False, FREE),
    ),
    (
        Leg("over the cube", _at_cube(0.17), False, FREE),
        Leg("at the cube", _at_cube(0), False, REACH),
        Leg("grasp the cube", None, True, GRASP),
        Leg("lift the cube", _to_height(1.05), True),
        Leg("over the trash", _over("trash_bin", 1.05), True, FREE),
        Leg("lower the cube", _to_height(0.98), True, LOWER),
        Leg("drop the cube", None, False, RELEASE),
        Leg("rise from the trash", _to_height(1.1), False),
        Leg("stand by", _at(np.array([0.0, 0.15, 1.15])), False, FREE),
        Leg("over the handle", _at_hammer(0.07), False, after="present"),
        Leg("at the handle", _at_hammer(HIGHER), False, REACH),
        Leg("take", None, True, GRASP),
        Leg("over the target", _hammer_over_bin(1.04), True, after="rise from the hammer"),
        Leg("lower the hammer", _to_height(0.88), True, LOWER),
        Leg("drop the hammer", None, False, RELEASE),
    ),
)


class Arm:
    """One hand and its progress through its legs; `act` is called once per step."""

    def __init__(
        self, number: int, scene: Scene, manners: Manners, generator: np.random.Generator
    ) -> None:
        self._number, self._manners, self._generator = number, manners, generator
        self._speed = float(generator.uniform(*manners.speed))
        self._coming = list(LEGS[number])
        self._leg = Leg("start", None, False, FREE)
        self._goal = _by(0, 0, 0)(scene, number)
        self._sag, self._steps, self._rest = np.zeros(3), 0, 0
        self._draw_rest()

    def act(self, scene: Scene, finished: set[str]) -> Float64[np.ndarray, "7"]:
        """The action in [-1, 1]: x, y, z, rotation vector, gripper (1 closes).

        Legs that have ended are added to `finished`, which both hands share.
        """
        if self._leg.name in finished or self._is_over(scene):
            finished.add(self._leg.name)
            self._go_on(scene, finished)
        self._steps += 1
        missing = self._goal.place - scene.hand(self._number).place
        if np.linalg.norm(missing) < NEAR:
            self._sag = np.clip(self._sag + SAG_RATE * missing, -SAG, SAG)
        aim = Pose(self._goal.place + self._sag, self._goal.yaw)
        motion = towards(scene, self._number, aim, self._speed * self._leg.way.speed)
        return np.append(motion, 1.0 if self._leg.closed else -1.0)

    def _is_over(self, scene: Scene) -> bool:
        hand, way = scene.hand(self._number), self._leg.way
        near = np.linalg.norm(self._goal.place - hand.place) < way.within
        turned = np.linalg.norm(turn(hand.axes, self._goal.yaw)) < TURNED or way.within == np.inf
        slow = scene.speed(self._number) < way.slower_than
        return bool(near and turned and slow and self._steps >= way.steps)

    def _go_on(self, scene: Scene, finished: set[str]) -> None:
        """Begin the next leg, unless it waits for the other hand or the hand rests."""
        if not self._coming or not ({self._coming[0].after} <= {None, *finished}):
            return
        if self._rest > 0:
            self._rest -= 1
            return
        self._leg, self._steps = self._coming.pop(0), 0
        if self._leg.goal is not None:
            place, yaw = self._leg.goal(scene, self._number)
            offset = self._manners.offset if self._leg.way.strays else (0, 0)
            aside = self._generator.uniform(-1, 1, 3) * self._generator.uniform(*offset)
            self._goal, self._sag = Pose(place + aside, yaw), np.zeros(3)
        self._draw_rest()

    def _draw_rest(self) -> None:
        kind = self._coming[0].way.rest if self._coming else None
        self._rest = round(self._generator.uniform(*getattr(self._manners, kind))) if kind else 0


def turn(axes: Matrix, yaw: float) -> Vector:
    """Rotation vector, in world axes, from a hand to one that points down and opens along `yaw`.

    Its length is the sine of the angle, so only small angles are exact; below 180 degrees its
    direction is right. Source: Luh, Walker and Paul 1980 (IEEE TAC 25), the orientation error.
    """
    cosine, sine = np.cos(yaw), np.sin(yaw)
    wanted = np.array([[cosine, sine, 0], [sine, -cosine, 0], [0, 0, -1]])
    error: Vector = 0.5 * np.cross(axes.T, wanted.T).sum(axis=0)
    return error


def towards(scene: Scene, arm: int, goal: Pose, speed: float) -> Float64[np.ndarray, "6"]:
    """Translation and rotation of an action towards `goal`, each of length `speed` at most."""
    hand, base = scene.hand(arm), scene.base(arm)
    step = base.T @ (goal.place - hand.place) * GAIN / FULL_STEP
    rotation = base.T @ turn(hand.axes, goal.yaw) * GAIN / FULL_TURN
    return np.concatenate([_at_most(step, speed), _at_most(rotation, speed)])


def _at_most(vector: Vector, length: float) -> Vector:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
