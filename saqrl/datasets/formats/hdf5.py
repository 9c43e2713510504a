"""HDF5 files, opened with suspicion: what every reader of the family shares."""

import contextlib
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saqrl.datasets.budget import budget
from saqrl.datasets.errors import DatasetError, listing
from saqrl.datasets.formats.hdf5_strings import TEXT_LIMIT, texts
from saqrl.datasets.source import MOST_DEFLATED, damage_named, existing_file

if TYPE_CHECKING:
    import h5py

# In place of a string that is stored with any length.
VARIABLE = "a string of any length"
# Bytes that a data set may promise beyond what its stored ones can hold: fields that are zero
# throughout are left unwritten by some. More is a damaged header. An episode has less to leave
# out, and a file may hold many.
UNSTORED_LIMIT, UNSTORED_OF_EPISODE = 1 << 26, 1 << 20
# Of the HDF Group's register of filters: those that recordings are compressed with.
FILTERS = {
    4: "szip",
    307: "bzip2",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32026: "Blosc2",
}


def open_hdf5(path: Path) -> "h5py.File":
    """Open for reading; FileNotFoundError, or DatasetError where the file is foreign or damaged."""
    import h5py

    file = existing_file(path)
    if not h5py.is_hdf5(file):
        raise DatasetError(
            f"{path}: not an HDF5 file; check the path and the format, or copy it again"
        )
    budget().admit(file)
    try:
        return h5py.File(file, "r")
    except Exception as error:  # HDF5 reports damage as OSError, RuntimeError or KeyError
        if "unable to lock" in str(error):
            raise DatasetError(
                f"{path}: open for writing in another program ({error}); close it there"
            ) from error
        raise DatasetError(f"{path}: damaged or truncated ({error}); copy it again") from error


@dataclass(frozen=True)
class Record:
    """Where a single value lies: a data set in `owner`, or an attribute of it."""

    owner: "h5py.Group"
    name: str
    is_attribute: bool = False


def values_of(records: Sequence[Record]) -> list[str | float | None]:
    """The single string or finite number of each; None for anything else, or where it is damaged.

    Links are not followed, nor are values that other files store.
    """
    values = [_plain_value(record) for record in records]
    waiting = [record for record, value in zip(records, values, strict=True) if value is VARIABLE]
    if not waiting:
        return values
    places = [(str(record.owner.name), record.name, record.is_attribute) for record in waiting]
    found = iter(texts(waiting[0].owner.file.filename, places))
    return [next(found) if value is VARIABLE else value for value in values]


def _plain_value(record: Record) -> str | float | None:
    """A value of fixed size; VARIABLE for a string of any length, which is left to `texts`."""
    import h5py

    try:
        found = _opened(record)
        if found is None or found.shape != ():
            return None
        string = h5py.check_string_dtype(found.dtype)
        if string is not None and string.length is None:
            return VARIABLE
        if found.dtype.kind not in "Sfiub" or found.dtype.itemsize > TEXT_LIMIT:
            return None
        array = np.empty((), found.dtype)
        found.read(array) if record.is_attribute else found.read_direct(array)
        value = array[()]
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        return float(value) if np.isfinite(value) else None
    except Exception:  # damaged: this costs a record, not the data
        return None


def _opened(record: Record) -> Any:
    """The data set or attribute, both of which have a shape and a type; None where it is absent."""
    import h5py

    owner, name = record.owner, record.name
    if record.is_attribute:
        found = h5py.h5a.exists(owner.id, name.encode())
        return h5py.h5a.open(owner.id, name.encode()) if found else None
    if not isinstance(owner.get(name, getlink=True), h5py.HardLink):
        return None
    dataset = owner[name]
    local = isinstance(dataset, h5py.Dataset) and not (dataset.is_virtual or dataset.external)
    return dataset if local else None


def local_dataset(path: Path, key: str, group: "h5py.Group") -> "h5py.Dataset":
    """The data set `key` of the group, which lies in this very file; DatasetError otherwise."""
    import h5py

    with damage_named(path, key):
        dataset = _hard_linked(path, key, group)
        if isinstance(dataset, h5py.Group):
            raise DatasetError(
                f"{path}: {key} is a group ({listing(dataset)}); flat arrays are expected: "
                "concatenate its columns into one data set"
            )
        if not isinstance(dataset, h5py.Dataset):
            raise DatasetError(f"{path}: {key} is not an array; store one row per step")
        if dataset.is_virtual or dataset.external:
            raise DatasetError(
                f"{path}: {key} stores its numbers in other files, which are not opened; "
                "copy the data into this file"
            )
        if not dataset.shape:
            raise DatasetError(f"{path}: {key} is a single value; expected one row per step")
        return dataset


def local_group(path: Path, key: str, group: "h5py.Group") -> "h5py.Group":
    """The group `key` inside `group`, in this very file; DatasetError otherwise."""
    import h5py

    with damage_named(path, key):
        found = _hard_linked(path, key, group)
    if not isinstance(found, h5py.Group):
        raise DatasetError(
            f"{path}: {key} is not a group; check the format, or copy the file again"
        )
    return found


def is_group(path: Path, key: str, group: "h5py.Group") -> bool:
    """Whether `key` of the group is a group; DatasetError where the file is damaged there."""
    import h5py

    with damage_named(path, key):
        return group.get(key.rpartition("/")[2], getclass=True) is h5py.Group


def names_of(path: Path, group: "h5py.Group") -> list[str]:
    """The names in a group, in the file's order."""
    with damage_named(path, "a group"):
        return list(group)


def read_array(
    path: Path, key: str, dataset: "h5py.Dataset", *, unstored: int = UNSTORED_LIMIT
) -> np.ndarray:
    """All of a data set of plain numbers, of which `unstored` bytes may be promised alone."""
    with damage_named(path, key):
        if dataset.dtype.kind == "O":
            raise DatasetError(f"{path}: {key} holds objects or strings; store plain numbers")
        _require_filters(path, key, dataset)
        stored = dataset.id.get_storage_size()
        filtered = dataset.id.get_create_plist().get_nfilters() > 0
        if dataset.nbytes > unstored + stored * (MOST_DEFLATED if filtered else 1):
            raise DatasetError(
                f"{path}: {key} promises {dataset.shape[0]:,} rows, and its {stored:,} bytes "
                "cannot hold them; the file is damaged, copy it again"
            )
        # A chunk is unpacked whole, however little of it is asked for.
        chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        budget().take(path, key, max(dataset.nbytes, chunk))
        return np.asarray(dataset[()])


def _require_filters(path: Path, key: str, dataset: "h5py.Dataset") -> None:
    """DatasetError names the filters that a data set needs and this machine lacks."""
    import h5py

    described = dataset.id.get_create_plist()
    codes = [described.get_filter(place)[0] for place in range(described.get_nfilters())]
    if all(map(h5py.h5z.filter_avail, codes)):
        return
    with contextlib.suppress(ImportError):  # brings the filters with it, where it is installed
        importlib.import_module("hdf5plugin")
    if missing := [code for code in codes if not h5py.h5z.filter_avail(code)]:
        named = listing(f"filter {code} ({FILTERS.get(code, 'unknown')})" for code in missing)
        raise DatasetError(
            f"{path}: {key} is compressed with {named}, which is not installed: pip install "
            "hdf5plugin, or write the file with gzip"
        )


def numbers(path: Path, key: str, group: "h5py.Group") -> np.ndarray:
    """The data set `key` of an episode's group; DatasetError where it holds no numbers."""
    import h5py

    dataset = local_dataset(path, key, group)
    with damage_named(path, key):
        found = h5py.h5o.get_info(dataset.id)
    budget().claim(path, key, (found.fileno, found.addr))
    array = read_array(path, key, dataset, unstored=UNSTORED_OF_EPISODE)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{path}: {key} holds {array.dtype.name}; store it as numbers (float32)")
    return array


def _hard_linked(path: Path, key: str, group: "h5py.Group") -> object:
    import h5py

    name = key.rpartition("/")[2]
    link = group.get(name, getlink=True)
    if link is None:
        raise DatasetError(f"{path}: {key} is missing; copy the file again, or check the format")
    if not isinstance(link, h5py.HardLink):
        raise DatasetError(
            f"{path}: {key} is a link, and links are not followed; copy the data into this file"
        )
    return group[name]


def store(group: "h5py.Group", key: str, array: np.ndarray) -> None:
    """Write an array, compressed where it pays."""
    packed = {"compression": "gzip", "compression_opts": 1} if array.nbytes > 1 << 16 else {}
    group.create_dataset(key, data=array, **packed)
