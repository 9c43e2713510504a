"""Environments by id: imported on first use, with flat float32 vectors as observations."""

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

# Step limit of an environment that has none of its own and might never end.
EPISODE_STEPS = 1000


def make_environment(
    environment_id: str,
    *,
    options: Mapping[str, object] | None = None,
    render: bool = False,
) -> FlatEnvironment:
    """One environment with flat float32 observations and, if the task reports it, info["success"].

    `options` are keyword arguments of the environment and override the family's. The option
    `observation_keys` lists the parts of a dictionary, nested ones as a/b, to observe in this
    order; default: all of them in the order of the space. With `render`
    the method render() returns frames (height, width, 3) uint8, without a display.

    An environment without a step limit of its own gets one of EPISODE_STEPS; the option
    `max_episode_steps` sets another.

    Raises ValueError if the id is unknown, the environment cannot be made with these options, or
    the observation is an image; ImportError if the package that registers the id is missing;
    RuntimeError if `render` is set and rendering does not work on this machine.
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
            # The checker is slow and warns about float64 observations.
            inner = gymnasium.make(spec, disable_env_checker=True, **keywords)
    except ImportError:
        raise
    except Exception as error:  # a foreign constructor can raise anything
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

    For OGBench also `success_timing`, which changes its reward since version 1.2.
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
    """Render one frame now, so that a failure shows before the episode is played."""
    backend = os.environ.get("MUJOCO_GL", "")
    try:
        if "mujoco" in family.modules and backend.lower() in DISABLED:
            raise OSError("neither EGL nor OSMesa works")
        environment.reset(seed=0)
        frame: Any = environment.render()
    except Exception as error:  # each graphics library raises its own types
        raise RuntimeError(
            f"{environment_id} cannot be rendered here (MUJOCO_GL={backend!r}: {error}): install "
            "EGL or OSMesa (Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or "
            "libosmesa6), or run without video"
        ) from error
    drawn = isinstance(frame, np.ndarray)
    if not drawn:
        raise RuntimeError(
            f"{environment_id} renders {type(frame).__name__}; expected an array (height, width, "
            "3): run without video"
        )
