"""Observations of any environment as flat float32 vectors."""

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float32

from saqrl.environments.families import Family
from saqrl.registry import closest

# Prefix of an element of a tuple, as Minari names it.
PLACE = "_index_"


class FlatEnvironment(gymnasium.ObservationWrapper[np.ndarray, np.ndarray, Any]):
    """Observations as float32 vectors, info["success"] as bool."""

    layout: tuple[tuple[str, int], ...]
    """Name and width of the parts of an observation; empty if it is one plain vector."""

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
        # OGBench makes a new space at every access; keep one.
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
            raise ValueError(f"{self._name} has no observation {unknown[0]!r}; {known}")
        return {key: parts[key] for key in keys}

    def _check_spaces(self) -> None:
        name = self._name
        for part in self._parts.values():
            if isinstance(part, gymnasium.spaces.Box) and len(part.shape) >= 3:
                raise ValueError(
                    f"{name} observes images {part.shape}; saqrl supports only state vectors: "
                    "choose the environment's state observations"
                )
        acted = self.env.action_space
        if not isinstance(acted, gymnasium.spaces.Box):
            raise ValueError(
                f"{name} has the action space {acted}; expected continuous actions (a Box)"
            )

    def observation(self, observation: Any) -> Float32[np.ndarray, " obs"]:
        values = []
        for name, space in self._parts.items():
            value = observation
            for key in name.split("/") if name else ():
                value = value[int(key.removeprefix(PLACE)) if isinstance(value, tuple) else key]
            values.append(np.asarray(gymnasium.spaces.flatten(space, value), np.float32).ravel())
        return np.concatenate(values)

    def step(
        self, action: Float32[np.ndarray, " act"]
    ) -> tuple[Float32[np.ndarray, " obs"], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._success is not None:
            info["success"] = self._success(float(reward), info)
        else:
            told = [info[name] for name in ("success", "is_success") if name in info]
            info |= {"success": bool(told[0])} if told else {}
        return self.observation(observation), float(reward), bool(terminated), bool(truncated), info


def _named_parts(
    space: gymnasium.Space[Any], prefix: str = ""
) -> Iterator[tuple[str, gymnasium.Space[Any]]]:
    """The leaves of nested dictionaries and tuples by their path, in the order of the space."""
    if isinstance(space, gymnasium.spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, gymnasium.spaces.Tuple):
        parts = [(f"{PLACE}{place}", part) for place, part in enumerate(space.spaces)]
    else:
        yield prefix, space
        return
    for name, part in parts:
        yield from _named_parts(part, f"{prefix}/{name}" if prefix else name)
