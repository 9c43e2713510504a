"""Environments by id: imported when asked for, observed as flat float32 vectors.

A family of environments is one entry of FAMILIES. Nothing here imports JAX.
"""

import contextlib
import importlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Float32

from saqrl.environments.simulators import DISABLED, import_simulator, quiet, reproducible
from saqrl.registry import closest

SuccessTest = Callable[[float, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Family:
    """What the environments whose ids match `pattern` need."""

    pattern: str
    extra: str
    modules: tuple[str, ...]
    """Imported in this order; the import registers the ids."""
    distributions: tuple[str, ...]
    """Packages whose version can change a score."""
    examples: tuple[str, ...]
    """Ids offered to someone who mistyped one while the package is not even installed."""
    options: Mapping[str, object] = field(default_factory=dict)
    render_options: Mapping[str, object] = field(
        default_factory=lambda: {"render_mode": "rgb_array"}
    )
    frames_per_second: int | None = None
    """Of a video in real time, where the environment itself does not say."""
    success: SuccessTest | None = None
    """Overrides info["success"]; needed where the environment reports none."""
    specify: Callable[[EnvSpec], Any] | None = None
    registers: str = ""
    """Module of this room that registers the ids, where the packages do not."""
    besides: str = ""
    """A command that the extra cannot stand for."""


FAMILIES: tuple[Family, ...] = (
    Family(
        pattern=r"gym_pusht/PushT-v\d+",
        extra="pusht",
        modules=("gym_pusht.envs", "gym_pusht"),
        distributions=("gym-pusht", "pymunk"),
        examples=("gym_pusht/PushT-v0",),
        options={"obs_type": "state", "max_episode_steps": 300},
        # Reward is coverage / 0.95, clipped at 1.
        success=lambda reward, info: reward >= 1,
    ),
    Family(
        pattern=r"AdroitHand(Door|Hammer|Relocate)(Sparse)?-v\d+",
        extra="adroit",
        modules=("mujoco", "gymnasium_robotics"),
        distributions=("gymnasium-robotics", "mujoco"),
        examples=("AdroitHandDoor-v1", "AdroitHandHammer-v1", "AdroitHandRelocate-v1"),
    ),
    Family(
        pattern=r"AdroitHandPen(Sparse)?-v\d+",
        extra="adroit",
        modules=("mujoco", "gymnasium_robotics"),
        distributions=("gymnasium-robotics", "mujoco"),
        examples=("AdroitHandPen-v1",),
        # D4RL's pen ends after 100 steps and so do its reference scores; the package's after 200.
        options={"max_episode_steps": 100},
    ),
    Family(
        pattern=r"(cube|scene|puzzle)(-[a-z0-9]+)*-v\d+",
        extra="ogbench",
        modules=("mujoco", "ogbench"),
        distributions=("ogbench", "mujoco", "dm_control"),
        examples=tuple(
            f"{name}-singletask-task{task}-v0"
            for name in (
                *(f"cube-{n}" for n in ("single", "double", "triple", "quadruple")),
                "scene",
                *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")),
            )
            for task in range(1, 6)
        ),
        # It renders on request, in whatever mode, and ignores render_mode.
        render_options={"width": 480, "height": 480},
        frames_per_second=20,
        specify=reproducible,
    ),
    Family(
        pattern=r"(pointmaze|antmaze|humanoidmaze|antsoccer)(-[a-z0-9]+)*-v\d+",
        extra="ogbench",
        modules=("mujoco", "ogbench"),
        distributions=("ogbench", "mujoco", "dm_control"),
        examples=tuple(f"antmaze-medium-singletask-task{task}-v0" for task in range(1, 6)),
        specify=reproducible,
    ),
    Family(
        pattern=r"(Ant|HalfCheetah|Hopper|Humanoid|Swimmer|Walker2d)-v\d+",
        extra="mujoco",
        modules=("mujoco",),
        distributions=("mujoco",),
        examples=("Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"),
    ),
    Family(
        pattern=r"FrankaKitchen-v\d+",
        extra="adroit",
        modules=("mujoco", "gymnasium_robotics"),
        distributions=("gymnasium-robotics", "mujoco"),
        examples=("FrankaKitchen-v1",),
        success=lambda reward, info: not info["tasks_to_complete"],
    ),
    Family(
        pattern=r"(Point|Ant)Maze_\w+-v\d+",
        extra="adroit",
        modules=("mujoco", "gymnasium_robotics"),
        distributions=("gymnasium-robotics", "mujoco"),
        examples=("PointMaze_UMaze-v3", "AntMaze_UMaze-v4"),
    ),
    Family(
        pattern=r"robosuite/\w+",
        extra="robosuite",
        modules=("mujoco", "numba", "robosuite"),
        distributions=("robosuite", "mujoco"),
        examples=tuple(
            f"robosuite/{name}"
            for name in ("Lift", "PickPlaceCan", "NutAssemblySquare", "ToolHang", "TwoArmTransport")
        ),
        registers="saqrl.environments.robosuite_tasks",
        besides="pip install --no-deps robosuite==1.5.2",
    ),
    Family(
        pattern=r"dm_control/[a-z0-9_]+-[a-z0-9_]+-v0",
        extra="dmcontrol",
        modules=("mujoco", "dm_control"),
        distributions=("dm_control", "mujoco"),
        examples=tuple(
            f"dm_control/{name}-v0"
            for name in ("cartpole-swingup", "cheetah-run", "walker-walk", "reacher-easy")
        ),
        registers="saqrl.environments.control_suite",
    ),
)

# Ids that somebody else registered with Gymnasium: nothing to import, nothing known about them.
_REGISTERED = Family(pattern=".*", extra="", modules=(), distributions=(), examples=())


def make_environment(
    environment_id: str,
    *,
    options: Mapping[str, object] | None = None,
    render: bool = False,
) -> "FlatEnvironment":
    """One environment with flat float32 observations and, where it can, info["success"].

    `options` are keyword arguments of the environment and win over the family's own; among them
    `observation_keys` names the parts of a dictionary, nested ones as a/b, to be observed in this
    order, by default all of them in the order of the space. With `render`
    the method render() returns frames (height, width, 3) uint8, without a display.

    ValueError: the id is unknown, or the observation is an image. ImportError: the package that
    registers the id is missing. RuntimeError: `render`, and nothing here can draw.
    """
    family = _family(environment_id)
    import_simulator(environment_id, family.modules, extra=family.extra, besides=family.besides)
    if family.registers:
        with quiet():
            importlib.import_module(family.registers)
    if environment_id not in gymnasium.registry:
        raise ValueError(
            f"unknown environment {environment_id!r}; {closest(environment_id, _known_ids())}"
        )
    spec = gymnasium.spec(environment_id)
    if family.specify is not None:
        spec = family.specify(spec)
    keywords: dict[str, Any] = {
        **family.options,
        **(family.render_options if render else {}),
        **(options or {}),
    }
    observation_keys = keywords.pop("observation_keys", None)
    with quiet():
        # The checker steps through a second, slow path and warns of float64 observations.
        inner = gymnasium.make(spec, disable_env_checker=True, **keywords)
        environment = FlatEnvironment(inner, family, observation_keys)
    if render:
        _check_drawing(environment_id, environment, family)
    return environment


def environment_versions(environment_id: str) -> dict[str, str]:
    """Versions of the installed packages that can change a score, by distribution name.

    For OGBench also `success_timing`, on which its reward depends since version 1.2.
    """
    family = _family(environment_id)
    versions = {}
    for name in ("gymnasium", *family.distributions):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    registered = gymnasium.registry.get(environment_id)
    if registered is not None and "success_timing" in registered.kwargs:
        versions["success_timing"] = str(registered.kwargs["success_timing"])
    return versions


class FlatEnvironment(gymnasium.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """Observations as float32 vectors, info["success"] as bool."""

    layout: tuple[tuple[str, int], ...]
    """Name and width of the parts of an observation; empty where it is one plain vector."""

    def __init__(
        self,
        env: gymnasium.Env[Any, np.ndarray],
        family: Family,
        observation_keys: Sequence[str] | None = None,
    ) -> None:
        super().__init__(env)
        self._success = family.success
        self._name = env.spec.id if env.spec else type(self.unwrapped).__name__
        self._parts = self._chosen_parts(
            env.observation_space,
            observation_keys or getattr(env.unwrapped, "default_observation_keys", None),
        )
        self._check_spaces()
        flat: list[Any] = [gymnasium.spaces.flatten_space(space) for space in self._parts.values()]
        self.layout = tuple(
            (name, int(np.prod(box.shape)))
            for name, box in zip(self._parts, flat, strict=True)
            if name
        )
        self.observation_space = gymnasium.spaces.Box(
            np.concatenate([box.low.astype(np.float32).ravel() for box in flat]),
            np.concatenate([box.high.astype(np.float32).ravel() for box in flat]),
        )
        # OGBench builds this space at every access; here it is built once.
        self.action_space = env.action_space
        if family.frames_per_second is not None:
            self.metadata = {**env.metadata, "render_fps": family.frames_per_second}

    def _chosen_parts(
        self, space: gymnasium.Space[Any], keys: Sequence[str] | None
    ) -> dict[str, gymnasium.Space[Any]]:
        """The parts to observe by name; a plain vector has the name ''."""
        parts = dict(_named_parts(space))
        if not keys:
            return parts
        if unknown := [key for key in keys if key not in parts]:
            known = closest(unknown[0], parts) if "" not in parts else "it is one plain vector"
            raise ValueError(f"{self._name} observes no {unknown[0]!r}; {known}")
        return {key: parts[key] for key in keys}

    def _check_spaces(self) -> None:
        name = self._name
        for part in self._parts.values():
            if isinstance(part, gymnasium.spaces.Box) and len(part.shape) >= 3:
                raise ValueError(
                    f"{name} observes images {part.shape}; saqrl supports state vectors: "
                    "choose the environment's state observations"
                )
        continuous = isinstance(self.env.action_space, gymnasium.spaces.Box)
        if not continuous:
            raise ValueError(
                f"{name} has the action space {self.env.action_space}; expected continuous "
                "actions (a Box)"
            )

    def _flat(self, observation: Any) -> Float32[np.ndarray, " obs"]:
        values = []
        for name, space in self._parts.items():
            value = observation
            for key in name.split("/") if name else ():
                value = value[key]
            values.append(np.asarray(gymnasium.spaces.flatten(space, value), np.float32).ravel())
        return np.concatenate(values)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32[np.ndarray, " obs"], dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flat(observation), info

    def step(
        self, action: Float32[np.ndarray, " act"]
    ) -> tuple[Float32[np.ndarray, " obs"], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._success is not None:
            info["success"] = self._success(float(reward), info)
        elif "success" in info:
            info["success"] = bool(info["success"])
        return (
            self._flat(observation),
            float(reward),
            bool(terminated),
            bool(truncated),
            info,
        )


def _named_parts(
    space: gymnasium.Space[Any], prefix: str = ""
) -> Iterator[tuple[str, gymnasium.Space[Any]]]:
    """The leaves of nested dictionaries by their path, in the order of the space."""
    if not isinstance(space, gymnasium.spaces.Dict):
        yield prefix, space
        return
    for name, part in space.spaces.items():
        yield from _named_parts(part, f"{prefix}/{name}" if prefix else name)


def _check_drawing(environment_id: str, environment: FlatEnvironment, family: Family) -> None:
    """Draw one frame now, so that a video does not fail at its end."""
    backend = os.environ.get("MUJOCO_GL", "")
    try:
        if "mujoco" in family.modules and backend.lower() in DISABLED:
            raise OSError("neither EGL nor OSMesa works")
        environment.reset(seed=0)
        frame: Any = environment.render()
    except Exception as error:  # each graphics library raises its own types
        raise RuntimeError(
            f"{environment_id} cannot be drawn here (MUJOCO_GL={backend!r}: {error}): install "
            "EGL or OSMesa (Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or "
            "libosmesa6), or go without video"
        ) from error
    drawn = isinstance(frame, np.ndarray)
    if not drawn:
        raise RuntimeError(
            f"{environment_id} draws {type(frame).__name__}; expected an array (height, width, 3): "
            "go without video"
        )


def _family(environment_id: str) -> Family:
    """The entry for an id; ValueError with the nearest known ids where there is none."""
    for family in FAMILIES:
        if re.fullmatch(family.pattern, environment_id):
            return family
    if environment_id in gymnasium.registry:
        return _REGISTERED
    raise ValueError(
        f"unknown environment {environment_id!r}; {closest(environment_id, _known_ids())}"
    )


def _known_ids() -> set[str]:
    """Examples of every family and what packages registered; Gymnasium's own toys only confuse."""
    registered = {
        name
        for name, spec in gymnasium.registry.items()
        if not str(getattr(spec.entry_point, "__module__", spec.entry_point)).startswith(
            "gymnasium."
        )
    }
    return registered.union(*(family.examples for family in FAMILIES))
