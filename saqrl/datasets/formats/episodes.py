"""HDF5 with a group an episode, as Minari and robomimic have it: one read, and all joined."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from saqrl.datasets.errors import DatasetError, listing
from saqrl.datasets.formats.hdf5 import names_of, numbers

if TYPE_CHECKING:
    import h5py

Fields = dict[str, np.ndarray]


def require_members(path: Path, place: str, group: "h5py.Group", *needed: str, hint: str) -> None:
    """DatasetError with a hint where the group of an episode lacks a field."""
    names = names_of(path, group)
    if missing := [name for name in needed if name not in names]:
        raise DatasetError(
            f"{path}: {place} lacks {listing(missing)}; it has {listing(names)}; {hint}"
        )


def fields_of(path: Path, place: str, group: "h5py.Group", keys: Mapping[str, str]) -> Fields:
    """Field -> array of one episode, by the keys in its group: one row a step, at least one.

    Of `actions` a row may be a vector; all other fields have one number a step.
    """
    episode = {field: numbers(path, f"{place}/{key}", group) for field, key in keys.items()}
    steps = len(episode["actions"])
    for field, array in episode.items():
        name = f"{place}/{keys[field]}"
        if len(array) != steps:
            raise DatasetError(
                f"{path}: {name} has {len(array):,} rows and its actions have {steps:,}; every "
                "field needs one row a step"
            )
        if field != "actions" and array.size != steps:
            raise DatasetError(
                f"{path}: {name} has shape {array.shape}; one number a step, ({steps},), is needed"
            )
    if steps == 0:
        raise DatasetError(f"{path}: {place}/actions has no rows; remove the episode")
    return episode


def joined(path: Path, episodes: Mapping[str, Fields]) -> tuple[Fields, Bool[np.ndarray, " n"]]:
    """The episodes (by their places) one after another, and whether a row is the last of its own.

    DatasetError where they differ in their fields, or in the width of one.
    """
    first, fields = next(iter(episodes.items()))
    for place, episode in episodes.items():
        if other := sorted(episode.keys() ^ fields.keys()):
            raise DatasetError(
                f"{path}: {place} and {first} differ in having {listing(other)}; every episode "
                "needs the same fields"
            )
    for field in fields:
        shapes = sorted({str(episode[field].shape[1:]) for episode in episodes.values()})
        if len(shapes) > 1:
            raise DatasetError(
                f"{path}: {field} changes its width from episode to episode "
                f"({listing(shapes, limit=3)}); every row needs the same"
            )
    arrays = {
        field: np.concatenate([episode[field] for episode in episodes.values()]) for field in fields
    }
    last = np.zeros(len(arrays["actions"]), bool)
    last[np.cumsum([len(episode["actions"]) for episode in episodes.values()]) - 1] = True
    return arrays, last
