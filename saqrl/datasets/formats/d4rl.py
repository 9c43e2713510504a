"""D4RL's flat HDF5: one data set per field at the root, one row per step (arXiv 2004.07219).

The `d4rl` package is not needed. Groups such as infos/ are ignored; metadata/env_id names the
environment. Nothing outside the file is followed: no links, no external or virtual storage.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saqrl.datasets.assembly import BOUNDS, assemble
from saqrl.datasets.errors import DatasetError
from saqrl.datasets.extras import NAME, extras_of, provenance_text
from saqrl.datasets.formats.boundaries import KEYS, require_flat, require_rows, with_boundaries
from saqrl.datasets.formats.field_names import (
    ALIASES,
    field_keys,
    require_done_is_termination,
    require_fields,
)
from saqrl.datasets.formats.hdf5 import (
    Record,
    local_dataset,
    names_of,
    open_hdf5,
    read_array,
    store,
    values_of,
)
from saqrl.datasets.formats.npz import flat_fields
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import existing_file, file_record, parsed_object
from saqrl.datasets.transitions import EnvironmentSpec, Transitions

if TYPE_CHECKING:
    import h5py

SUMMARY = "D4RL's flat HDF5: observations, actions, rewards, terminals, timeouts at the root"
SUFFIXES = (".hdf5", ".h5", ".hdf")
OPTIONS = ()


def recognises(path: Path) -> bool:
    """Whether this is HDF5 with observations and actions as data sets at the root."""
    import h5py

    with h5py.File(path, "r") as file:
        return all(
            any(file.get(key, getclass=True) is h5py.Dataset for key in (field, *ALIASES[field]))
            for field in ("observations", "actions")
        )


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read `path`; see `assembly` for the rules, among them the dropping of last steps.

    Raises FileNotFoundError, or DatasetError for a damaged file, missing keys and whatever
    `assemble` refuses.
    """
    notes: list[str] = []
    with open_hdf5(path) as file:
        keys = _keys(path, file, notes)
        datasets = _datasets(path, file, keys)
        datasets |= {key: local_dataset(path, key, file) for key in BOUNDS if key in file}
        require_rows(path, {key: dataset.shape for key, dataset in datasets.items()})
        arrays = {
            field: read_array(path, keys.get(field, field), dataset)
            for field, dataset in datasets.items()
        }
        found = {
            key: read_array(path, key, local_dataset(path, key, file))
            for key in KEYS
            if key in file
        }
        _require_continuous(path, file)
        recorded = _metadata(file)
    require_done_is_termination(path, keys, arrays)
    arrays = with_boundaries(path, arrays, found, notes)
    environment_id, added = recorded.pop("env_id", None), recorded.pop(NAME, None)
    record: dict[str, object] = {"format": "d4rl", **file_record(existing_file(path))}
    if recorded:
        record["recorded"] = recorded
    return assemble(
        arrays,
        source=str(path),
        environment=EnvironmentSpec(str(environment_id)) if environment_id else None,
        provenance=record,
        notes=notes,
        keys=keys,
        extras=None if added is None else parsed_object(path, NAME, added),
    )


def write(path: Path, transitions: Transitions) -> None:
    """Write a file whose metadata hold the environment and what the format has no place for."""
    import h5py

    with h5py.File(path, "w") as file:
        for key, array in flat_fields(transitions).items():
            store(file, key, array)
        if transitions.environment is not None:
            file["metadata/env_id"] = np.bytes_(transitions.environment.id.encode())
        file[f"metadata/{NAME}"] = np.bytes_(json.dumps(extras_of(transitions)).encode())
        file["metadata/provenance"] = np.bytes_(provenance_text(transitions).encode())


def _keys(path: Path, file: "h5py.File", notes: list[str]) -> dict[str, str]:
    """Field -> the file's key; DatasetError where one is missing or the layout is another."""
    names = names_of(path, file)
    require_flat(path, names)
    keys = field_keys(path, names, notes)
    require_fields(
        path,
        keys,
        names,
        ("rename or add these keys at the root, or give another format as FORMAT:PATH"),
    )
    return keys


def _datasets(path: Path, file: "h5py.File", keys: dict[str, str]) -> dict[str, "h5py.Dataset"]:
    """The data set of each field, checked to lie in this file, all of equal length."""
    datasets = {field: local_dataset(path, key, file) for field, key in keys.items()}
    # Before anything is read: a damaged header may promise more rows than memory holds.
    steps = datasets["actions"].shape[0]
    for field, dataset in datasets.items():
        if dataset.shape[0] != steps:
            raise DatasetError(
                f"{path}: {keys[field]} has {dataset.shape[0]:,} rows and {keys['actions']} has "
                f"{steps:,}; every field needs one row per step"
            )
    return datasets


def _require_continuous(path: Path, file: "h5py.File") -> None:
    """DatasetError where d3rlpy says that the actions are choices."""
    if "discrete_action" in file and values_of([Record(file, "discrete_action")]) == [1.0]:
        raise DatasetError(
            f"{path}: discrete_action is true, and only continuous actions are supported: "
            "use a library for discrete actions"
        )


def _metadata(file: "h5py.File") -> dict[str, object]:
    """The single strings and numbers under metadata/; damage to a record costs nothing."""
    import h5py

    try:
        if file.get("metadata", getclass=True, getlink=True) is not h5py.HardLink:
            return {}
        group = file["metadata"]
        names = sorted(group, key=lambda name: name != "env_id")  # which matters most
    except Exception:  # whatever the bytes happen to mean
        return {}
    values = values_of([Record(group, name) for name in names])
    return {n: value for n, value in zip(names, values, strict=True) if value is not None}
