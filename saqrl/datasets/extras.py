"""What a log knows and a format has no place for: one JSON object that our conversions add.

Environment and options, the range of the actions, names of the parts of an observation, and whether
the rewards are rewards. Other programs ignore it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from saqrl.datasets.errors import DatasetError
from saqrl.datasets.transitions import EnvironmentSpec, Transitions

NAME = "saqrl"


def extras_of(transitions: Transitions) -> dict[str, object]:
    """The object that belongs to a log; plain JSON values."""
    environment = transitions.environment
    return {
        "environment": environment and {"id": environment.id, "options": dict(environment.options)},
        "action_low": [float(value) for value in transitions.action_range.low],
        "action_high": [float(value) for value in transitions.action_range.high],
        "observation_keys": [list(pair) for pair in transitions.observation_keys],
        "has_rewards": transitions.has_rewards,
    }


def bounds_of(path: Path, extras: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The declared range of the actions, as `assemble` takes it."""
    bounds = {}
    for name in ("action_low", "action_high"):
        if name in extras:
            bounds[name] = np.asarray(extras[name])
            if bounds[name].dtype.kind not in "fi":
                raise _damaged(path, name)
    return bounds


def with_extras(path: Path, transitions: Transitions, extras: Mapping[str, object]) -> Transitions:
    """The log with the environment and the names that the object holds."""
    environment, keys = extras.get("environment"), extras.get("observation_keys")
    if environment is not None:
        if not isinstance(environment, dict) or not isinstance(environment.get("id"), str):
            raise _damaged(path, "environment")
        options = environment.get("options", {})
        if not isinstance(options, dict):
            raise _damaged(path, "environment")
        transitions = replace(transitions, environment=EnvironmentSpec(environment["id"], options))
    if keys is not None:
        transitions = replace(transitions, observation_keys=named_widths(path, keys, transitions))
    return transitions


def named_widths(path: Path, keys: object, transitions: Transitions) -> tuple[tuple[str, int], ...]:
    """Names and widths of the parts of an observation, out of JSON."""
    if not isinstance(keys, list):
        raise _damaged(path, "observation_keys")
    pairs = []
    for pair in keys:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise _damaged(path, "observation_keys")
        if not isinstance(pair[1], int):
            raise _damaged(path, "observation_keys")
        pairs.append((pair[0], pair[1]))
    if pairs and sum(width for _, width in pairs) != transitions.observations.shape[1]:
        raise _damaged(path, "observation_keys")
    return tuple(pairs)


def _damaged(path: Path, name: str) -> DatasetError:
    return DatasetError(
        f"{path}: {name} in what saqrl convert added ({NAME}) does not fit the data; convert again"
    )
