"""Where episodes end, by the keys that other tools store it under, in flat arrays.

What a key means is read off it where only one meaning fits; where it does not, the error shows the
two lines of Python that store the ends as timeouts.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from saqrl.datasets.errors import DatasetError, counted, listing

# One flag per row, set where an episode ends (d3rlpy 1), or its places.
ENDS = ("episode_terminals", "episode_ends", "episode_end", "traj_ends", "trajectory_ends")
# One flag per row, set where an episode begins (imitation), or its places.
STARTS = ("episode_starts", "episode_start", "traj_starts", "trajectory_starts")
# One number per row, the same throughout an episode.
IDS = (
    *("episode_id", "episode_ids", "episode_index", "episode", "episodes"),
    *("traj_id", "traj_ids", "trajectory_id"),
)
# One number an episode.
LENGTHS = ("episode_lengths", "episode_length", "traj_lengths", "trajectory_lengths", "lengths")
KEYS = (*ENDS, *STARTS, *IDS, *LENGTHS)
# What tells that a whole file is of another layout, and how to convert it.
LAYOUTS: Mapping[str, tuple[str, str]] = {
    "is_last": (
        "RLDS, where the last row of an episode holds no action",
        "d = dict(np.load(path)); last = d.pop('is_last').astype(bool); d.pop('is_first', None); "
        "d['timeouts'] = np.append(last[1:], True)\n"
        "np.savez(out, **{k: v[~last] for k, v in d.items()})",
    ),
    "observations_0": (
        "d3rlpy 2, one array an episode",
        "parts = {k: [f[f'{k}_{i}'][()] for i in range(n)] for k in ('observations', 'actions', "
        "'rewards')}; last = [np.arange(len(a)) == len(a) - 1 for a in parts['actions']]\n"
        "np.savez(out, **{k: np.concatenate(v) for k, v in parts.items()}, "
        "timeouts=np.concatenate(last))",
    ),
}
TIMEOUTS = (
    "ends = np.zeros(len(actions), bool); ends[LAST_ROW_OF_EACH_EPISODE] = True\n"
    "np.savez(out, observations=observations, actions=actions, rewards=rewards, timeouts=ends)"
)
EPISODE_ARRAYS = (
    "n, steps = actions.shape[:2]; ends = np.tile(np.arange(steps) == steps - 1, "
    "n)\nnp.savez(out, timeouts=ends, **{k: v.reshape(n * steps, *v.shape[2:]) for k, v in "
    "arrays.items()})  # first remove padding rows"
)


def require_flat(path: Path, names: Iterable[str]) -> None:
    """DatasetError where the names in a file are those of another layout, with its conversion."""
    names = set(names)
    for mark, (layout, lines) in LAYOUTS.items():
        if mark in names:
            raise DatasetError(f"{path}: {mark} is the layout of {layout}; {_convert(lines)}")


def require_rows(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """DatasetError where observations and actions are arrays (episodes, time, width)."""
    observed, acted = shapes.get("observations", ()), shapes.get("actions", ())
    if len(observed) == len(acted) == 3 and observed[:2] == acted[:2]:
        raise DatasetError(
            f"{path}: observations have shape {observed} and actions {acted}, which looks "
            "like (episodes, time, width); expected one row per step: "
            f"{_convert(EPISODE_ARRAYS)}"
        )


def ends_of(path: Path, key: str, array: np.ndarray, steps: int) -> Bool[np.ndarray, " n"]:
    """Whether each of the `steps` rows is the last of its episode, by the array under `key`."""
    values = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if values.ndim != 1 or values.dtype.kind not in "fiub" or not np.isfinite(values).all():
        raise _unclear(path, key, f"shape {array.shape} of {array.dtype.name}")
    whole = np.asarray(values, np.float64)
    flags = len(whole) == steps and bool(np.isin(whole, (0, 1)).all())
    if key in LENGTHS:
        ends = np.cumsum(whole)
        if not len(ends) or ends[-1] != steps or (whole < 1).any():
            raise _unclear(path, key, f"lengths that sum to {whole.sum():g}, not to {steps:,} rows")
        return _at(ends - 1, steps)
    if key in IDS:
        return _changes(path, key, whole, steps)
    if flags and (steps > 1 or key not in ENDS):
        return whole.astype(bool) if key in ENDS else np.append(whole[1:].astype(bool), True)
    places = whole - 1 if key in ENDS else np.append(whole[1:], steps) - 1
    ascending = bool((whole[1:] > whole[:-1]).all()) and len(whole) > 0
    fits = whole[-1] == steps if key in ENDS and ascending else ascending and whole[0] == 0
    if not ascending or not fits or places.max() >= steps or (places < 0).any():
        which = "the row after the end" if key in ENDS else "the first row"
        raise _unclear(path, key, f"neither a 0/1 flag per row nor {which} of each episode")
    return _at(places, steps)


def with_boundaries(
    path: Path, arrays: dict[str, np.ndarray], found: Mapping[str, np.ndarray], notes: list[str]
) -> dict[str, np.ndarray]:
    """The fields with the ends that the arrays under other tools' keys mark, as time limits.

    `found` is what the file has under some of KEYS. A note says how many they add.
    """
    steps = len(np.atleast_1d(arrays["actions"]))
    for key, array in found.items():
        try:
            ends = ends_of(path, key, array, steps)
        except DatasetError:
            if not {"terminals", "timeouts"} <= arrays.keys():
                raise
            notes.append(f"{key} is ignored: terminals and timeouts mark where episodes end.")
            continue
        flags = [
            np.asarray(arrays[name]).reshape(-1) != 0
            for name in ("terminals", "timeouts")
            if name in arrays
        ]
        if any(len(flag) != steps for flag in flags):
            return arrays  # which the assembly refuses with the lengths
        marked = np.logical_or.reduce([np.zeros(steps, bool), *flags])
        added = ends & ~marked
        if not flags or added.any():
            notes.append(
                f"{key} marks {counted(int(added.sum()), 'episode end')} that terminals and "
                "timeouts do not mark: they are read as time limits."
            )
            before = arrays.get("timeouts", np.zeros(steps, bool))
            arrays = arrays | {"timeouts": (np.asarray(before).reshape(-1) != 0) | added}
    return arrays


def missing_boundaries(path: Path, names: Iterable[str]) -> DatasetError:
    """Where nothing in a file tells its episodes apart."""
    return DatasetError(
        f"{path}: it is not known where episodes end: the file has neither terminals nor "
        f"timeouts, nor one of {listing(KEYS)}; it has {listing(names)}; {_convert(TIMEOUTS)}"
    )


def _changes(path: Path, key: str, ids: np.ndarray, steps: int) -> Bool[np.ndarray, " n"]:
    if len(ids) != steps:
        raise _unclear(path, key, f"{counted(len(ids), 'number')}, not one for each of {steps:,}")
    last = np.append(ids[1:] != ids[:-1], True)
    if len(np.unique(ids)) != int(last.sum()):
        raise DatasetError(
            f"{path}: rows with the same {key} are not consecutive; sort all arrays: order = "
            f"np.argsort({key}, kind='stable')"
        )
    return last


def _at(places: np.ndarray, steps: int) -> Bool[np.ndarray, " n"]:
    last = np.zeros(steps, bool)
    last[places.astype(np.int64)] = True
    return last


def _unclear(path: Path, key: str, what: str) -> DatasetError:
    return DatasetError(
        f"{path}: {key} should mark where episodes end, but holds {what}; {_convert(TIMEOUTS)}"
    )


def _convert(lines: str) -> str:
    return "convert it in two lines: " + " | ".join(f"`{line}`" for line in lines.split("\n"))
