"""HDF5 with a group an episode, as Minari and robomimic have it: one read, and all joined."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from saqrl.datasets.errors import DatasetError, listing, nearest
from saqrl.datasets.formats.hdf5 import is_group, local_dataset, local_group, names_of, numbers

if TYPE_CHECKING:
    import h5py

Fields = dict[str, np.ndarray]
# Name and width of the parts of an observation; a plain vector has the name "".
Layout = tuple[tuple[str, int], ...]
# More groups than any observation has; a ring of them would never end.
MOST_GROUPS = 256
# How Minari names the parts of a tuple.
OF_TUPLE = re.compile(r"_index_(\d{1,9})")


def require_members(path: Path, place: str, group: "h5py.Group", *needed: str, hint: str) -> None:
    """DatasetError with a hint where the group of an episode lacks a field."""
    names = names_of(path, group)
    if missing := [name for name in needed if name not in names]:
        raise DatasetError(
            f"{path}: {place} lacks {listing(missing)}; it has {listing(names)}; {hint}"
        )


def fields_of(path: Path, place: str, group: "h5py.Group", keys: Mapping[str, str]) -> Fields:
    """Field -> array of one episode, by the keys in its group: one row per step, at least one.

    Of `actions` a row may be a vector; all other fields have one number per step.
    """
    episode = {field: numbers(path, f"{place}/{key}", group) for field, key in keys.items()}
    steps = len(episode["actions"])
    for field, array in episode.items():
        name = f"{place}/{keys[field]}"
        if len(array) != steps:
            raise DatasetError(
                f"{path}: {name} has {len(array):,} rows and its actions have {steps:,}; every "
                "field needs one row per step"
            )
        if field != "actions" and array.size != steps:
            raise DatasetError(
                f"{path}: {name} has shape {array.shape}; expected one number per step, ({steps},)"
            )
    if steps == 0:
        raise DatasetError(f"{path}: {place}/actions has no rows; remove this episode")
    return episode


def joined(path: Path, episodes: Mapping[str, Fields]) -> tuple[Fields, Bool[np.ndarray, " n"]]:
    """The episodes (by their places) one after another, and whether a row is the last of its own.

    DatasetError where they differ in their fields, or in the width of one.
    """
    first, fields = next(iter(episodes.items()))
    for place, episode in episodes.items():
        if other := sorted(episode.keys() ^ fields.keys()):
            raise DatasetError(
                f"{path}: {listing(other)} is in only one of {place} and {first}; every "
                "episode needs the same fields"
            )
    for field in fields:
        shapes = sorted({str(episode[field].shape[1:]) for episode in episodes.values()})
        if len(shapes) > 1:
            raise DatasetError(
                f"{path}: {field} has different widths in different episodes "
                f"({listing(shapes, limit=3)}); all rows need the same width"
            )
    arrays = {
        field: np.concatenate([episode[field] for episode in episodes.values()]) for field in fields
    }
    last = np.zeros(len(arrays["actions"]), bool)
    last[np.cumsum([len(episode["actions"]) for episode in episodes.values()]) - 1] = True
    return arrays, last


def parts_of(path: Path, place: str, group: "h5py.Group") -> dict[str, "h5py.Group"]:
    """The arrays at or below `place`, a member of the group: path -> the group that each lies in.

    A plain array has the path ''. Nothing is read.
    """
    if not is_group(path, place, group):
        return {"": group}
    found: dict[str, h5py.Group] = {}
    waiting = [(place, group)]
    for _ in range(MOST_GROUPS):
        if not waiting:
            return found
        key, parent = waiting.pop()
        inside = local_group(path, key, parent)
        for name in names_of(path, inside):
            below = f"{key}/{name}"
            if is_group(path, below, inside):
                waiting.append((below, inside))
            else:
                found[below.removeprefix(f"{place}/")] = inside
    raise DatasetError(
        f"{path}: {place} has over {MOST_GROUPS} groups; this is another format: give it as "
        "FORMAT:PATH"
    )


def flattened(
    path: Path, place: str, parts: Mapping[str, "h5py.Group"], asked: tuple[str, ...]
) -> tuple[np.ndarray, Layout]:
    """The parts that are asked for side by side, by default all in Gymnasium's order; their layout.

    Only these are read.
    """
    if not parts:
        raise DatasetError(f"{path}: {place} is empty; there are no observations to read")
    if unknown := [key for key in asked if key not in parts]:
        known = (
            listing(sorted(parts)) if "" not in parts else ("none, the observation is one vector")
        )
        raise DatasetError(
            f"{path}: there is no observation key {unknown[0]}{nearest(unknown[0], parts)}; keys: "
            f"{known}"
        )
    chosen = asked or tuple(sorted(parts, key=_in_order))
    others = "; choose other keys with --dataset.keys" if "" not in parts else ""
    tables = []
    for key in chosen:
        name = f"{place}/{key}" if key else place
        dataset = local_dataset(path, name, parts[key])
        if dataset.dtype.kind not in "fiub":
            kind = "text" if dataset.dtype.kind in "OSU" else dataset.dtype.name
            raise DatasetError(f"{path}: {name} holds {kind}, not numbers{others}")
        if dataset.ndim > 2:
            raise DatasetError(
                f"{path}: {name} has shape {dataset.shape}: images and stacked frames are not "
                f"supported{others}"
            )
        array = numbers(path, name, parts[key])
        tables.append(array if array.ndim == 2 else array.reshape(-1, 1))
    if len({len(table) for table in tables}) > 1:
        raise DatasetError(
            f"{path}: the parts of {place} have {listing(len(table) for table in tables)} "
            "rows; all parts need the same number"
        )
    layout = tuple((key, table.shape[1]) for key, table in zip(chosen, tables, strict=True))
    return np.concatenate(tables, axis=1), layout


def _in_order(path: str) -> tuple[tuple[int, str], ...]:
    """Dictionaries by their keys, tuples by their places: _index_2 before _index_10."""
    places = [(OF_TUPLE.fullmatch(name), name) for name in path.split("/")]
    return tuple((int(found[1]), "") if found else (-1, name) for found, name in places)
