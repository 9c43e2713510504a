"""ALOHA's recordings (Zhao et al. 2023, arXiv 2304.13705): an HDF5 file for each episode.

A file holds `action` and the group `observations` with qpos, qvel and images, one row per step. A
data set is a folder of such files, one of them, or a file with a group of that kind for each
episode (episode_0, episode_1, ...). Images are left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from saqrl.datasets.assembly import assemble
from saqrl.datasets.errors import DatasetError, listing
from saqrl.datasets.formats.boundaries import KEYS
from saqrl.datasets.formats.episodes import (
    Fields,
    Layout,
    fields_of,
    flattened,
    joined,
    parts_of,
    require_members,
)
from saqrl.datasets.formats.field_names import ALIASES
from saqrl.datasets.formats.hdf5 import (
    is_group,
    local_dataset,
    local_group,
    names_of,
    open_hdf5,
)
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import existing_file
from saqrl.datasets.transitions import Transitions
from saqrl.environments.robomimic_keys import natural_order

if TYPE_CHECKING:
    import h5py

SUMMARY = "ALOHA HDF5: a folder with one file per episode, each with observations/qpos and action"
SUFFIXES = (".hdf5", ".h5")
OPTIONS = ("keys",)

EPISODE = re.compile(r"(episode|demo)_\d{1,9}")
# What the policies that ALOHA was published with see beside images.
POSITIONS = "qpos"
ACTIONS = ("action", "actions")
# Of a flat file with several episodes.
FLAT = {"terminals", "timeouts", *ALIASES["terminals"], *ALIASES["timeouts"], *KEYS}


def recognises(path: Path) -> bool:
    """Whether this is such a file, or a folder whose first HDF5 file is."""
    import h5py

    if path.is_dir():
        return recognises(_files(path)[0])
    with h5py.File(existing_file(path), "r") as file:  # one of a folder may be a pipe
        first = next((name for name in file if EPISODE.fullmatch(name)), None)
        if first is not None:
            return _is_episode(file[first])
        grouped = file.get("observations", getclass=True) is h5py.Group
        return grouped and _is_episode(file) and not FLAT & set(file)


def _is_episode(group: "h5py.Group") -> bool:
    return "observations" in group and any(key in group for key in ACTIONS)


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read the episodes in the order of their numbers.

    Each ends as at a time limit: the files say no more. Raises FileNotFoundError or DatasetError.
    """
    episodes: dict[str, Fields] = {}
    layout: Layout = ()
    others: list[str] = []
    cameras: list[str] = []
    files = _files(path)
    for file in files:
        with open_hdf5(file) as opened:
            for name, group in _groups(file, opened):
                place = f"{file.name}/{name}" if name else file.name
                episodes[place], found = _episode(file, name, group, options.keys, others)
                cameras += _cameras(file, name, group)
                layout = layout or found
                if found != layout:
                    raise DatasetError(
                        f"{path}: {place} observes {_described(found)} and the first episode "
                        f"{_described(layout)}; every episode needs the same"
                    )
    arrays, last = joined(path, episodes)
    observed = listing(key for key, _ in layout)
    left = f" (also there: {listing(dict.fromkeys(others))}; --dataset.keys)" if others else ""
    notes = [f"Observations are {observed}{left}."] if layout[0][0] else []
    transitions = assemble(
        arrays | {"timeouts": last},
        source=str(path),
        provenance={"format": "aloha", "path": str(path), "files": len(files)},
        notes=notes,
        observation_keys=layout if layout[0][0] else (),
    )
    return transitions.named(cameras=cameras)


def _files(path: Path) -> list[Path]:
    """The file itself, or the HDF5 files of a folder in the order of their numbers."""
    folder = path.expanduser()
    if not folder.is_dir():
        return [path]
    found = [f for f in folder.iterdir() if f.suffix in SUFFIXES and not f.name.startswith(".")]
    if not found:
        raise DatasetError(
            f"{path}: no {' or '.join(SUFFIXES)} file in this folder; name the folder that holds "
            "the files of the episodes"
        )
    return sorted(found, key=lambda file: natural_order(file.name))


def _groups(path: Path, file: "h5py.File") -> Iterator[tuple[str, "h5py.Group"]]:
    """Name and group of each episode; the file itself, named "", where it is one episode."""
    named = [str(name) for name in names_of(path, file) if EPISODE.fullmatch(str(name))]
    if not named:
        yield "", file
    for name in sorted(named, key=natural_order):
        yield name, local_group(path, name, file)


def _episode(
    path: Path, name: str, group: "h5py.Group", asked: tuple[str, ...], others: list[str]
) -> tuple[Fields, Layout]:
    """Fields of one episode, one row per step; `others` takes the other keys."""
    names = names_of(path, group)
    action = next((key for key in ACTIONS if key in names), ACTIONS[0])
    hint = "name another format, or remove the file if its recording was stopped"
    require_members(path, name or "the file", group, "observations", action, hint=hint)
    keys = {"actions": action}
    if rewards := [key for key in ("rewards", "reward") if key in names]:
        keys["rewards"] = rewards[0]
    episode = fields_of(path, name, group, keys)
    place = f"{name}/observations"
    parts = parts_of(path, place, group)
    vectors = {key: inside for key, inside in parts.items() if _is_vector(path, place, key, inside)}
    if not asked:
        parts = {POSITIONS: vectors[POSITIONS]} if POSITIONS in vectors else vectors
    table, layout = flattened(path, place, parts, asked)
    others += [key for key in vectors if key not in dict(layout)]
    steps = len(episode["actions"])
    if len(table) == steps + 1:
        return {**episode, "observations": table[:-1], "next_observations": table[1:]}, layout
    if len(table) != steps:
        raise DatasetError(
            f"{path}: {place} has {len(table):,} rows and {action} has {steps:,}; as many are "
            "expected, or one more; remove the file if its recording was stopped"
        )
    return {**episode, "observations": table}, layout


def _is_vector(path: Path, place: str, key: str, inside: "h5py.Group") -> bool:
    """Whether this is one number or vector per step, and no image (compressed ones are rows)."""
    if key.startswith("images"):
        return False
    dataset = local_dataset(path, f"{place}/{key}" if key else place, inside)
    return dataset.ndim <= 2 and dataset.dtype.kind in "fiub"


def _cameras(path: Path, name: str, group: "h5py.Group") -> list[str]:
    place = f"{name}/observations"
    if not is_group(path, place, group):
        return []
    observed = local_group(path, place, group)
    images = "images" in names_of(path, observed) and is_group(path, f"{place}/images", observed)
    return names_of(path, local_group(path, f"{place}/images", observed)) if images else []


def _described(layout: Layout) -> str:
    return listing(f"{key or 'a vector'} ({width})" for key, width in layout)
