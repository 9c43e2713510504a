"""Several datasets as one: `A + 2*B` in a SPEC.

A weight says how often the episodes of a part count: 2 twice, 0.5 every other one (drawn once and
for all), 2.5 both. What is sampled uniformly from the mixture is then in proportion.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.datasets.errors import DatasetError, counted, listing
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.transitions import ROW_FIELDS, Transitions

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
    for number, part in enumerate(parts, 1):
        require_alike(spec, first, part, number)
    generator = np.random.default_rng(DRAW_SEED)
    chosen, groups, offset = [], [], 0
    for part, weight in zip(parts, weights, strict=True):
        episodes = _repeated(part.num_episodes, weight, generator)
        chosen.append(part.select_episodes(episodes))
        groups.append(episodes + offset)
        offset += part.num_episodes
    rows: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in chosen]) for name in ROW_FIELDS
    }
    starts = [part.starts for part in chosen if part.starts is not None]
    lengths = np.concatenate([part.episode_lengths for part in chosen])
    rates = _rates(parts)
    solved = [part.successes for part in chosen if part.successes is not None]
    described = [
        {"weight": weight, "episodes": part.num_episodes, **part.provenance}
        for part, weight in zip(parts, weights, strict=True)
    ]
    return replace(
        first,
        **rows,
        episode_starts=np.append(0, np.cumsum(lengths)[:-1]).astype(np.int64),
        action_range=reduce(ActionRange.union, (part.action_range for part in parts)),
        environment=next((part.environment for part in parts if part.environment), None),
        groups=np.concatenate(groups),
        held_out=None,
        starts=tuple(chain(*starts)) if len(starts) == len(parts) else None,
        tasks=tuple(dict.fromkeys(chain(*(part.tasks for part in parts)))),
        cameras=tuple(dict.fromkeys(chain(*(part.cameras for part in parts)))),
        successes=np.concatenate(solved) if len(solved) == len(parts) else None,
        control_rate=rates[0] if len(rates) == 1 else None,
        provenance={
            "format": "mixture",
            "path": spec,
            "parts": described,
            "action_range": first.provenance.get("action_range", ""),
            "notes": _notes(parts, weights, chosen),
            "warnings": _warnings(parts),
        },
    )


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


def require_alike(spec: str, first: Transitions, part: Transitions, number: int) -> None:
    """DatasetError where part `number` of a SPEC cannot follow the first."""
    for name in ("observations", "actions"):
        ours, theirs = getattr(first, name).shape[1], getattr(part, name).shape[1]
        if ours != theirs:
            raise DatasetError(
                f"{spec}: {name} have {ours} columns in part 1 and {theirs} in part "
                f"{number}; only data of the same robot and the same observations can be "
                "mixed"
            )
    if first.observation_keys and part.observation_keys:
        pairs = zip(first.observation_keys, part.observation_keys, strict=False)
        differing = [f"{a[0]} and {b[0]}" for a, b in pairs if a != b]
        if differing:
            raise DatasetError(
                f"{spec}: parts 1 and {number} have different observation keys "
                f"({listing(differing)}); select the same keys with --dataset.keys"
            )
    if first.has_rewards != part.has_rewards:
        raise DatasetError(
            f"{spec}: parts 1 and {number} must both have rewards or both have none; to "
            "ignore rewards, pass --dataset.rewards none"
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
        notes += part.notes
        if part.held_out is not None:
            notes.append(f"The held-out split of part {number} is not used in a mixture.")
    return list(dict.fromkeys(notes))


def _rates(parts: Sequence[Transitions]) -> list[float]:
    """The control rates that the parts know."""
    return sorted({part.control_rate for part in parts if part.control_rate is not None})


def _warnings(parts: Sequence[Transitions]) -> list[str]:
    """Those of the parts, and what they contradict each other in."""
    found = [warning for part in parts for warning in part.warnings]
    if len(known := _rates(parts)) > 1:
        found.append(
            f"The parts have {' and '.join(f'{rate:g}' for rate in known)} frames per second "
            "(fps): one step is a different time in each; resample them to one rate."
        )
    return list(dict.fromkeys(found))
