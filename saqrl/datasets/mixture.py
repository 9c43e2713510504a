"""Several datasets as one: `A + 2*B` in a SPEC.

A weight says how often the episodes of a part count: 2 twice, 0.5 every other one (drawn once and
for all), 2.5 both. What is sampled uniformly from the mixture is then in proportion.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from saqrl.datasets.errors import DatasetError, counted, listing
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.transitions import RecordedStart, Transitions

WEIGHTED = re.compile(r"(?P<weight>\d+(\.\d*)?|\.\d+)\s*\*\s*(?P<spec>.*)", re.DOTALL)
# More copies are a mistake, not a mixture.
MOST = 1000.0
DRAW_SEED = 0


def parts_of(spec: str) -> list[tuple[float, str]]:
    """(weight, SPEC) of each part; a path that exists is one part whatever its name holds."""
    if Path(spec).exists():
        return [(1.0, spec)]
    parts = []
    for text in re.split(r"\s+\+\s+", spec.strip()):
        match = WEIGHTED.fullmatch(text)
        weight, part = (float(match["weight"]), match["spec"]) if match else (1.0, text)
        if not 0 < weight <= MOST:
            raise DatasetError(f"{spec}: the weight {weight:g} must be above 0, at most {MOST:g}")
        parts.append((weight, part))
    return parts


def mixed(spec: str, parts: Sequence[Transitions], weights: Sequence[float]) -> Transitions:
    """The parts one after another, each as often as its weight says.

    The range of the actions is the union of theirs, the environment the first that is named.
    DatasetError where observations or actions do not fit together, or only some have rewards.
    """
    first = parts[0]
    for number, part in enumerate(parts[1:], 2):
        _require_alike(spec, first, part, number)
    generator = np.random.default_rng(DRAW_SEED)
    chosen, groups, offset = [], [], 0
    for part, weight in zip(parts, weights, strict=True):
        episodes = _repeated(part.num_episodes, weight, generator)
        chosen.append(part.select_episodes(episodes))
        groups.append(episodes + offset)
        offset += part.num_episodes
    lengths = np.concatenate([part.episode_lengths for part in chosen])
    low = np.minimum.reduce([part.action_range.low for part in parts])
    high = np.maximum.reduce([part.action_range.high for part in parts])
    environments = [part.environment for part in parts if part.environment is not None]
    described = [
        {"weight": weight, "episodes": part.num_episodes, **part.provenance}
        for part, weight in zip(parts, weights, strict=True)
    ]
    return replace(
        first,
        observations=np.concatenate([part.observations for part in chosen]),
        actions=np.concatenate([part.actions for part in chosen]),
        rewards=np.concatenate([part.rewards for part in chosen]),
        next_observations=np.concatenate([part.next_observations for part in chosen]),
        terminated=np.concatenate([part.terminated for part in chosen]),
        episode_starts=np.append(0, np.cumsum(lengths)[:-1]).astype(np.int64),
        action_range=ActionRange(low, high),
        environment=environments[0] if environments else None,
        groups=np.concatenate(groups),
        held_out=None,
        starts=_starts(chosen),
        provenance={
            "format": "mixture",
            "path": spec,
            "parts": described,
            "action_range": first.provenance.get("action_range", ""),
            "notes": _notes(parts, weights, chosen),
        },
    )


def _starts(parts: Sequence[Transitions]) -> tuple[RecordedStart, ...] | None:
    """The simulator's states of all episodes, where every part has them."""
    starts: list[RecordedStart] = []
    for part in parts:
        if part.starts is None:
            return None
        starts += part.starts
    return tuple(starts)


def _repeated(
    episodes: int, weight: float, generator: np.random.Generator
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Every episode as often as the weight's whole part, a drawn share of them once more."""
    whole, rest = divmod(weight, 1)
    count = round(rest * episodes)
    if not whole:
        count = max(count, 1)
    drawn = np.sort(generator.permutation(episodes)[:count])
    return np.concatenate([np.tile(np.arange(episodes), int(whole)), drawn]).astype(np.int64)


def _require_alike(spec: str, first: Transitions, part: Transitions, number: int) -> None:
    for name in ("observations", "actions"):
        ours, theirs = getattr(first, name).shape[1], getattr(part, name).shape[1]
        if ours != theirs:
            raise DatasetError(
                f"{spec}: {name} have {ours} columns in part 1 and {theirs} in part {number}; "
                "only logs of the same robot and task mix"
            )
    if first.observation_keys and part.observation_keys:
        pairs = zip(first.observation_keys, part.observation_keys, strict=False)
        differing = [f"{a[0]} and {b[0]}" for a, b in pairs if a != b]
        if differing:
            raise DatasetError(
                f"{spec}: parts 1 and {number} observe different keys ({listing(differing)}); "
                "choose the same with --dataset.keys"
            )
    if first.has_rewards != part.has_rewards:
        which = number if first.has_rewards else 1
        raise DatasetError(
            f"{spec}: part {which} has no rewards and another has; say --dataset.rewards none"
        )


def _notes(
    parts: Sequence[Transitions], weights: Sequence[float], chosen: Sequence[Transitions]
) -> list[str]:
    notes = []
    for number, (part, weight, taken) in enumerate(zip(parts, weights, chosen, strict=True), 1):
        notes.append(
            f"Part {number}, {part.provenance.get('path', '')}: "
            f"{counted(part.num_episodes, 'episode')} with weight {weight:g}, "
            f"{counted(len(taken), 'step')}."
        )
        own = part.provenance.get("notes", [])
        notes += [str(note) for note in own] if isinstance(own, list) else []
        if part.held_out is not None:
            notes.append(f"The held-out split of part {number} is not used in a mixture.")
    return list(dict.fromkeys(notes))
