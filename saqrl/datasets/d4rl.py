"""D4RL's flat HDF5: one data set a field at the root, one row a step (arXiv 2004.07219).

The `d4rl` package is not needed. Groups such as infos/ are ignored; metadata/env_id names the
environment. Nothing outside the file is followed: no links, no external or virtual storage.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saqrl.datasets.assembly import FIELDS, assemble
from saqrl.datasets.errors import DatasetError, listing, nearest
from saqrl.datasets.hdf5 import open_hdf5, scalar
from saqrl.datasets.source import existing_file, file_record
from saqrl.datasets.transitions import EnvironmentSpec, Transitions

if TYPE_CHECKING:
    import h5py

SUMMARY = "D4RL's flat HDF5: observations, actions, rewards, terminals, timeouts at the root"
SUFFIXES = (".hdf5", ".h5", ".hdf")


def recognises(path: Path) -> bool:
    """Whether this is HDF5 with observations and actions as data sets at the root."""
    import h5py

    if not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return all(
                file.get(key, getclass=True) is h5py.Dataset for key in ("observations", "actions")
            )
    except Exception:  # damaged: the reader that is asked for by name says how
        return False


def read(path: Path) -> Transitions:
    """Read `path`; see `assembly` for the rules, among them the dropping of last steps.

    Raises FileNotFoundError, or DatasetError for a damaged file, missing keys and whatever
    `assemble` refuses.
    """
    with open_hdf5(path) as file:
        datasets = _datasets(path, file)
        arrays = {key: _array(path, key, dataset) for key, dataset in datasets.items()}
        recorded = _metadata(file)
    environment = recorded.pop("env_id", None)
    record: dict[str, object] = {"format": "d4rl", **file_record(existing_file(path))}
    if recorded:
        record["recorded"] = recorded
    return assemble(
        arrays,
        source=str(path),
        environment=EnvironmentSpec(str(environment)) if environment else None,
        provenance=record,
    )


def _datasets(path: Path, file: "h5py.File") -> dict[str, "h5py.Dataset"]:
    """The data sets of the known fields, each checked to lie in this file, of equal length."""
    names = _names(path, file)
    missing = [key for key in ("observations", "actions") if key not in names]
    if not {"terminals", "timeouts"} & set(names):
        missing.append("terminals")
    if missing:
        wanted = listing(f"{key}{nearest(key, names)}" for key in missing)
        raise DatasetError(
            f"{path}: missing {wanted}; the file has {listing(names)}; rename or add the keys at "
            "the root, or name another format"
        )
    datasets = {key: _local_dataset(path, key, file) for key in FIELDS if key in names}
    # Before anything is read: a damaged header may promise more rows than memory holds.
    steps = datasets["actions"].shape[0]
    for key, dataset in datasets.items():
        if dataset.shape[0] != steps:
            raise DatasetError(
                f"{path}: {key} has {dataset.shape[0]:,} rows and actions has {steps:,}; "
                "every field needs one row a step"
            )
    return datasets


def _names(path: Path, file: "h5py.File") -> list[str]:
    try:
        return list(file)
    except Exception as error:  # a damaged root group
        raise DatasetError(f"{path}: damaged HDF5 file ({error}); copy it again") from error


def _local_dataset(path: Path, key: str, file: "h5py.File") -> "h5py.Dataset":
    import h5py

    try:
        link = file.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise DatasetError(
                f"{path}: {key} is a link, and links are not followed; copy the data"
            )
        dataset = file[key]
        if isinstance(dataset, h5py.Group):
            raise DatasetError(
                f"{path}: {key} is a group ({listing(dataset)}); flat arrays are expected: "
                "concatenate its columns into one data set"
            )
        if dataset.is_virtual or dataset.external:
            raise DatasetError(
                f"{path}: {key} stores its numbers in other files, which are not opened; "
                "copy the data"
            )
        if not dataset.shape:
            raise DatasetError(f"{path}: {key} is a single value; one row a step is needed")
        return dataset
    except DatasetError:
        raise
    except Exception as error:
        raise _unreadable(path, key, error) from error


def _array(path: Path, key: str, dataset: "h5py.Dataset") -> np.ndarray:
    try:
        if dataset.dtype.kind == "O":
            raise DatasetError(
                f"{path}: {key} holds objects or strings of any length; store plain numbers"
            )
        return np.asarray(dataset[()])
    except DatasetError:
        raise
    except Exception as error:
        raise _unreadable(path, key, error) from error


def _unreadable(path: Path, key: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{path}: {key} cannot be read ({error}); the file is damaged, copy it again"
    )


def _metadata(file: "h5py.File") -> dict[str, object]:
    """The single strings and numbers under metadata/; damage to a record costs nothing."""
    import h5py

    recorded: dict[str, object] = {}
    try:
        if file.get("metadata", getclass=True, getlink=True) is not h5py.HardLink:
            return recorded
        group = file["metadata"]
        for key in group:
            if group.get(key, getclass=True, getlink=True) is h5py.HardLink:
                value = scalar(group[key])
                recorded |= {} if value is None else {key: value}
    except Exception:  # whatever the bytes happen to mean: what was read so far is kept
        return recorded
    return recorded
