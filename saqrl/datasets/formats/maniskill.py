"""ManiSkill's recordings (Tao et al. 2024, arXiv 2410.00425): traj_N/actions, obs, terminated.

A trajectory holds one observation more than actions. It stays whole: `terminated` may be set from
the first row on which the task is solved, and counts on the last one. What the environment was
stands in a JSON file beside it.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saqrl.datasets.assembly import assemble
from saqrl.datasets.errors import DatasetError, counted, listing
from saqrl.datasets.formats.episodes import (
    Fields,
    Layout,
    fields_of,
    flattened,
    joined,
    parts_of,
    require_members,
)
from saqrl.datasets.formats.hdf5 import (
    is_group,
    local_dataset,
    local_group,
    names_of,
    numbers,
    open_hdf5,
)
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import existing_file, file_record, parsed_object, text_of
from saqrl.datasets.transitions import Transitions
from saqrl.environments.rates import as_rate
from saqrl.environments.robomimic_keys import natural_order

if TYPE_CHECKING:
    import h5py

SUMMARY = "ManiSkill HDF5: traj_N with actions and state observations"
SUFFIXES = (".h5", ".hdf5")
OPTIONS = ("keys",)

TRAJECTORY = re.compile(r"traj_\d{1,9}")


def recognises(path: Path) -> bool:
    """Whether this is HDF5 with a group traj_N at the root."""
    import h5py

    with h5py.File(path, "r") as file:
        return any(TRAJECTORY.fullmatch(name) for name in file)


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read the trajectories in the order of their numbers.

    Raises FileNotFoundError or DatasetError.
    """
    episodes: dict[str, Fields] = {}
    layout: Layout = ()
    solved: list[bool | None] = []
    cameras: list[str] = []
    with open_hdf5(path) as file:
        names = [name for name in names_of(path, file) if TRAJECTORY.fullmatch(name)]
        if not names:
            raise DatasetError(
                f"{path}: no group traj_0, traj_1, ... in the file; give another format as "
                "FORMAT:PATH"
            )
        for name in sorted(names, key=natural_order):
            episodes[name], found = _episode(path, name, file, options.keys)
            solved.append(_solved(path, name, file))
            cameras += _cameras(path, name, file)
            layout = layout or found
            if found != layout:
                raise DatasetError(
                    f"{path}: {name} has observations {_described(found)} and the first "
                    f"trajectory has {_described(layout)}; every trajectory needs the same"
                )
    arrays, last = joined(path, episodes)
    done = arrays.pop("terminals", np.zeros(len(last))) != 0
    held = int((done & ~last).sum())
    notes = [f"Observations are {listing(key for key, _ in layout)}."] if layout[0][0] else []
    if held:
        notes.append(
            f"terminated is also set on {counted(held, 'earlier row')}, which does not split "
            "trajectories."
        )
    recorded = _record(path)
    named = _environment_id(recorded)
    if named:
        notes.append(
            f"Recorded in ManiSkill's {named}: to evaluate in it, pass --env "
            f"mani_skill.envs:{named}."
        )
    transitions = assemble(
        arrays | {"terminals": last & done, "timeouts": last & ~done},
        source=str(path),
        provenance={"format": "maniskill", **file_record(existing_file(path)), "recorded": named},
        notes=notes,
        keys={"terminals": "terminated", "timeouts": "terminated"},
        observation_keys=layout if layout[0][0] else (),
        control_rate=_control_rate(recorded),
    )
    known = None not in solved
    return transitions.named(cameras=cameras, successes=np.asarray(solved, bool) if known else None)


def _episode(
    path: Path, name: str, file: "h5py.File", asked: tuple[str, ...]
) -> tuple[Fields, Layout]:
    group = local_group(path, name, file)
    hint = "to add obs, run `python -m mani_skill.trajectory.replay_trajectory -o state`"
    require_members(path, name, group, "actions", "obs", hint=hint)
    known = {"actions": "actions", "rewards": "rewards", "terminals": "terminated"}
    names = names_of(path, group)
    keys = {field: key for field, key in known.items() if key in names}
    episode = fields_of(path, name, group, keys)
    place = f"{name}/obs"
    parts = parts_of(path, place, group)
    if not asked and "" not in parts:  # images lie beside the state
        parts = {
            key: inside for key, inside in parts.items() if _is_state(path, place, key, inside)
        }
    table, layout = flattened(path, place, parts, asked)
    steps = len(episode["actions"])
    if len(table) != steps + 1:
        raise DatasetError(
            f"{path}: {place} has {len(table):,} rows and its actions {steps:,}; expected "
            "one row more, the observation after the last action; copy the file again"
        )
    flat = {field: array.ravel() for field, array in episode.items() if field == "terminals"}
    return {**episode, **flat, "observations": table[:-1], "next_observations": table[1:]}, layout


def _is_state(path: Path, place: str, key: str, inside: "h5py.Group") -> bool:
    dataset = local_dataset(path, f"{place}/{key}", inside)
    return not key.startswith("sensor") and dataset.ndim <= 2 and dataset.dtype.kind in "fiub"


def _described(layout: Layout) -> str:
    return listing(f"{key or 'a vector'} ({width})" for key, width in layout)


def _solved(path: Path, name: str, file: "h5py.File") -> bool | None:
    """Whether the task was ever solved in a trajectory, where it is recorded."""
    group = local_group(path, name, file)
    if "success" not in names_of(path, group):
        return None
    return bool(numbers(path, f"{name}/success", group).any())


def _cameras(path: Path, name: str, file: "h5py.File") -> list[str]:
    place, group = f"{name}/obs/sensor_data", local_group(path, name, file)
    if not is_group(path, f"{name}/obs", group):
        return []
    observed = local_group(path, f"{name}/obs", group)
    inside = "sensor_data" in names_of(path, observed) and is_group(path, place, observed)
    return names_of(path, local_group(path, place, observed)) if inside else []


def _record(path: Path) -> dict[str, object]:
    """What the JSON file beside the recording says of the environment, where there is one."""
    beside = path.expanduser().with_suffix(".json")
    if not beside.exists():
        return {}
    record = parsed_object(path, beside.name, text_of(path, beside.parent, beside.name))
    found = record.get("env_info")
    return found if isinstance(found, dict) else {}


def _control_rate(recorded: dict[str, object]) -> float | None:
    match recorded.get("env_kwargs"):
        case {"sim_config": {"control_freq": rate}}:
            return as_rate(rate)
    return None


def _environment_id(recorded: dict[str, object]) -> str | None:
    named = recorded.get("env_id")
    return named if isinstance(named, str) and re.fullmatch(r"[\w-]{1,100}", named) else None
