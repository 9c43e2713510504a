"""Families of environments: what each needs and offers, and which ids belong to it.

A family is one entry of FAMILIES. An environment without a family is an entry of `saqrl.registry`.
"""

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from saqrl.environments.simulators import import_simulator, reproducible
from saqrl.registry import ENVIRONMENTS, closest


class UnknownEnvironment(ValueError):
    """No package registers the id; the message suggests similar known ids."""


SuccessTest = Callable[[float, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Family:
    """What the environments whose ids match `pattern` need."""

    pattern: str
    examples: tuple[str, ...] = ()
    """Ids to suggest for a mistyped one, even if the package is not installed."""
    extra: str = ""
    modules: tuple[str, ...] = ()
    """Imported in this order; the import registers the ids."""
    distributions: tuple[str, ...] = ()
    """Packages whose version can change a score."""
    options: Mapping[str, object] = field(default_factory=dict)
    render_options: Mapping[str, object] = field(
        default_factory=lambda: {"render_mode": "rgb_array"}
    )
    frames_per_second: int | None = None
    """Of a video in real time, if the environment does not state it."""
    success: SuccessTest | None = None
    """Overrides info["success"]; needed if the environment reports none."""
    solving_reward: float | None = None
    """A step with at least this reward has solved the task."""
    specify: Callable[[EnvSpec], Any] | None = None
    registers: str = ""
    """Module that registers the ids, if the packages do not."""


_robotics = partial(
    Family,
    extra="adroit",
    modules=("mujoco", "gymnasium_robotics"),
    distributions=("gymnasium-robotics", "mujoco"),
)
_ogbench = partial(
    Family,
    extra="ogbench",
    modules=("mujoco", "ogbench"),
    distributions=("ogbench", "mujoco", "dm_control"),
    specify=reproducible,
)
MANIPULATION = (
    *(f"cube-{n}" for n in ("single", "double", "triple", "quadruple")),
    "scene",
    *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")),
)
# An id belongs to the first family whose pattern matches.
FAMILIES: list[Family] = [
    Family(
        pattern=r"gym_pusht/PushT-v\d+",
        examples=("gym_pusht/PushT-v0",),
        extra="pusht",
        modules=("gym_pusht.envs", "gym_pusht"),
        distributions=("gym-pusht", "pymunk"),
        options={"obs_type": "state", "max_episode_steps": 300},
        # Reward is coverage / 0.95, clipped at 1.
        success=lambda reward, info: reward >= 1,
        solving_reward=1,
    ),
    _robotics(
        pattern=r"AdroitHand(Door|Hammer|Relocate)(Sparse)?-v\d+",
        examples=("AdroitHandDoor-v1", "AdroitHandHammer-v1", "AdroitHandRelocate-v1"),
    ),
    _robotics(
        pattern=r"AdroitHandPen(Sparse)?-v\d+",
        examples=("AdroitHandPen-v1",),
        # Pen episodes have 100 steps in D4RL's data and reference scores; the package's have 200.
        options={"max_episode_steps": 100},
    ),
    _ogbench(
        pattern=r"(cube|scene|puzzle)(-[a-z0-9]+)*-v\d+",
        examples=tuple(
            f"{base}-singletask-task{task}-v0" for base in MANIPULATION for task in range(1, 6)
        ),
        # It ignores render_mode and renders in every mode.
        render_options={"width": 480, "height": 480},
        frames_per_second=20,
    ),
    _ogbench(
        pattern=r"(pointmaze|antmaze|humanoidmaze|antsoccer)(-[a-z0-9]+)*-v\d+",
        examples=tuple(f"antmaze-medium-singletask-task{task}-v0" for task in range(1, 6)),
    ),
    Family(
        pattern=r"(Ant|HalfCheetah|Hopper|Humanoid|Swimmer|Walker2d)-v\d+",
        examples=("Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"),
        extra="mujoco",
        modules=("mujoco",),
        distributions=("mujoco",),
    ),
    _robotics(
        pattern=r"FrankaKitchen-v\d+",
        examples=("FrankaKitchen-v1",),
        success=lambda reward, info: not info["tasks_to_complete"],
    ),
    _robotics(
        pattern=r"(Point|Ant)Maze_\w+-v\d+",
        examples=("PointMaze_UMaze-v3", "AntMaze_UMaze-v4"),
    ),
    Family(
        pattern=r"robosuite/\w+",
        examples=tuple(
            f"robosuite/{name}"
            for name in ("Lift", "PickPlaceCan", "NutAssemblySquare", "ToolHang", "TwoArmTransport")
        ),
        extra="robosuite",
        modules=("mujoco", "numba", "robosuite"),
        distributions=("robosuite", "mujoco"),
        registers="saqrl.environments.robosuite_tasks",
    ),
    Family(
        pattern=r"dm_control/[a-z0-9_]+-[a-z0-9_]+-v0",
        examples=tuple(
            f"dm_control/{name}-v0"
            for name in ("cartpole-swingup", "cheetah-run", "walker-walk", "reacher-easy")
        ),
        extra="dmcontrol",
        modules=("mujoco", "dm_control"),
        distributions=("dm_control", "mujoco"),
        registers="saqrl.environments.control_suite",
    ),
]

# Ids that other code registered with Gymnasium: nothing to import, nothing known about them.
REGISTERED = Family(pattern=".*")
# Packages that register more ids than the families list; imported to look for an unknown id.
REGISTERING = ("gymnasium_robotics",)


def registered_id(environment_id: str) -> str:
    """The id as Gymnasium knows it; for module:Id the module is imported first.

    An environment from `saqrl.register` or an entry point is registered with Gymnasium. Only ids
    from the user may have a module here: a data file never causes an import.
    Raises ImportError if the module cannot be imported.
    """
    module, colon, name = environment_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"{environment_id}: the module {module} cannot be imported ({error}): install it, "
                "or put its folder on PYTHONPATH"
            ) from error
    if name in ENVIRONMENTS and name not in gymnasium.registry:
        gymnasium.register(name, entry_point=ENVIRONMENTS.load(name))
    return name


def family_of(name: str) -> Family:
    """The family of a registered id; ValueError with similar known ids for an unknown one."""
    for family in FAMILIES:
        if re.fullmatch(family.pattern, name):
            return family
    if name not in gymnasium.registry:
        for module in REGISTERING:
            if importlib.util.find_spec(module) is not None:
                import_simulator(name, (module,), extra="")
    if name in gymnasium.registry:
        return REGISTERED
    raise unknown(name)


def solving_reward(environment_id: str) -> float | None:
    """The family's `solving_reward`; None if it has none or the family is unknown."""
    name = environment_id.rpartition(":")[2]
    family = next((f for f in FAMILIES if re.fullmatch(f.pattern, name)), REGISTERED)
    return family.solving_reward


def unknown(environment_id: str) -> UnknownEnvironment:
    """The error that suggests similar ids of families and packages.

    Gymnasium's own toy environments are not suggested.
    """
    known = {example for family in FAMILIES for example in family.examples} | set(ENVIRONMENTS)
    for name, spec in gymnasium.registry.items():
        made_by = getattr(spec.entry_point, "__module__", spec.entry_point)
        if not str(made_by).startswith("gymnasium."):
            known.add(name)
    return UnknownEnvironment(
        f"unknown environment {environment_id!r}; {closest(environment_id, known)} (one of your "
        "own: --env module:Id imports the module that registers it)"
    )
