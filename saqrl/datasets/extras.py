"""What a log knows and a format has no place for: one JSON object that our conversions add.

Environment and options, the range of the actions, names of the parts of an observation, whether
the rewards are rewards, and which episodes succeeded. Other programs ignore it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from saqrl.datasets.errors import DatasetError
from saqrl.datasets.transitions import EnvironmentSpec, Transitions
from saqrl.environments.rates import as_rate

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
        "control_rate": transitions.control_rate,
        "action_names": list(transitions.action_names),
        "observation_names": list(transitions.observation_names),
        "tasks": list(transitions.tasks),
        "successes": None if transitions.successes is None else transitions.successes.tolist(),
    }


def provenance_text(transitions: Transitions) -> str:
    """What the log knows of its own origin, as JSON for the file that it is written to."""
    return json.dumps({"converted_from": transitions.provenance}, default=str)


def bounds_of(source: str, extras: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The declared range of the actions, as `assemble` takes it."""
    names = [name for name in ("action_low", "action_high") if name in extras]
    bounds = {name: np.asarray(extras[name]) for name in names}
    for name, bound in bounds.items():
        if bound.dtype.kind not in "fi":
            raise _damaged(source, name)
    return bounds


def with_extras(source: str, transitions: Transitions, extras: Mapping[str, object]) -> Transitions:
    """The log with the environment and the names that the object holds."""
    environment, keys = extras.get("environment"), extras.get("observation_keys")
    if environment is not None:
        match {"options": {}, **environment} if isinstance(environment, dict) else None:
            case {"id": str(name), "options": dict(options)}:
                transitions = replace(transitions, environment=EnvironmentSpec(name, options))
            case _:
                raise _damaged(source, "environment")
    if keys is not None:
        named = _named_widths(keys)
        width = transitions.observations.shape[1]
        if named is None or (named and sum(part for _, part in named) != width):
            raise _damaged(source, "observation_keys")
        transitions = replace(transitions, observation_keys=named)
    if "control_rate" in extras:
        transitions = replace(transitions, control_rate=as_rate(extras["control_rate"]))
    successes = extras.get("successes")
    if successes is not None and not _are_flags(successes):
        raise _damaged(source, "successes")
    words = {
        name: found if isinstance(found := extras.get(name), list) else []
        for name in ("action_names", "observation_names", "tasks")
    }
    return transitions.named(
        actions=words["action_names"],
        observations=words["observation_names"],
        tasks=words["tasks"],
        successes=None if successes is None else np.asarray(successes, bool),
    )


def _are_flags(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, bool) for value in values)


def _named_widths(keys: object) -> tuple[tuple[str, int], ...] | None:
    """Names and widths of the parts of an observation, or None."""
    pairs = []
    for pair in keys if isinstance(keys, list) else [None]:
        match pair:
            case [str(name), int(width)]:
                pairs.append((name, width))
            case _:
                return None
    return tuple(pairs)


def _damaged(source: str, name: str) -> DatasetError:
    return DatasetError(
        f"{source}: {name} in the record that saqrl convert wrote ({NAME}) does not fit the "
        "data; convert the original file again"
    )
