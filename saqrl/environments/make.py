"""Environments by id: imported when asked for, observed as flat float32 vectors."""

import contextlib
import importlib
import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from saqrl.environments.families import REGISTERED, Family, family_of, registered_id, unknown
from saqrl.environments.flat import FlatEnvironment
from saqrl.environments.packages import quiet
from saqrl.environments.simulators import DISABLED, import_simulator

# Of an environment that states no limit and may never end.
EPISODE_STEPS = 1000


def make_environment(
    environment_id: str,
    *,
    options: Mapping[str, object] | None = None,
    render: bool = False,
) -> FlatEnvironment:
    """One environment with flat float32 observations and, where it can, info["success"].

    `options` are keyword arguments of the environment and win over the family's own; among them
    `observation_keys` names the parts of a dictionary, nested ones as a/b, to be observed in this
    order, by default all of them in the order of the space. With `render`
    the method render() returns frames (height, width, 3) uint8, without a display.

    An environment without a step limit of its own gets one of EPISODE_STEPS; `max_episode_steps`
    among the options sets another.

    ValueError: the id is unknown, it cannot be made with these options, or the observation is an
    image. ImportError: the package that registers the id is missing. RuntimeError: `render`, and
    nothing here can draw.
    """
    environment_id = registered_id(environment_id)
    family = family_of(environment_id)
    import_simulator(environment_id, family.modules, extra=family.extra)
    if family.registers:
        with quiet():
            importlib.import_module(family.registers)
    if environment_id not in gymnasium.registry:
        raise unknown(environment_id)
    spec = gymnasium.spec(environment_id)
    if family.specify is not None:
        spec = family.specify(spec)
    keywords: dict[str, Any] = {
        **family.options,
        **(family.render_options if render else {}),
        **(options or {}),
    }
    observation_keys = keywords.pop("observation_keys", None)
    if family is REGISTERED and spec.max_episode_steps is None:
        keywords = {"max_episode_steps": EPISODE_STEPS, **keywords}
    try:
        with quiet():
            # The checker steps through a second, slow path and warns of float64 observations.
            inner = gymnasium.make(spec, disable_env_checker=True, **keywords)
    except ImportError:
        raise
    except Exception as error:  # whatever the constructor of somebody else raises
        raise ValueError(
            f"{environment_id} cannot be made with {keywords or 'no options'} "
            f"({type(error).__name__}: {error}): correct --env-kwargs"
        ) from error
    with quiet():
        environment = FlatEnvironment(inner, family, observation_keys)
    if render:
        _check_drawing(environment_id, environment, family)
    return environment


def environment_versions(environment_id: str) -> dict[str, str]:
    """Versions of the installed packages that can change a score, by distribution name.

    For OGBench also `success_timing`, on which its reward depends since version 1.2.
    """
    environment_id = registered_id(environment_id)
    family = family_of(environment_id)
    versions = {}
    for name in ("gymnasium", *family.distributions):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    registered = gymnasium.registry.get(environment_id)
    if registered is not None and "success_timing" in registered.kwargs:
        versions["success_timing"] = str(registered.kwargs["success_timing"])
    return versions


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
