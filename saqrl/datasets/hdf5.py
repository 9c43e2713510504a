"""HDF5 files, opened with suspicion: what every reader of the family shares."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from saqrl.datasets.errors import DatasetError
from saqrl.datasets.source import existing_file

if TYPE_CHECKING:
    import h5py

# HDF5 File Format Specification 3.0, section III.E: signature, version 1, three zero bytes.
HEAP_START = b"GCOL\x01\x00\x00\x00"
HEAP_HEADER = OBJECT_HEADER = 16
# A record such as an environment's name or options; more is no record.
TEXT_LIMIT = 1 << 20


def open_hdf5(path: Path) -> "h5py.File":
    """Open for reading; FileNotFoundError, or DatasetError where the file is foreign or damaged."""
    import h5py

    file = existing_file(path)
    if not h5py.is_hdf5(file):
        raise DatasetError(f"{path}: not an HDF5 file; check the format, or copy it again")
    try:
        return h5py.File(file, "r")
    except Exception as error:  # HDF5 reports damage as OSError, RuntimeError or KeyError
        raise DatasetError(f"{path}: damaged or cut off ({error}); copy it again") from error


def scalar(dataset: object) -> str | float | None:
    """A single string or finite number; None for anything else, and where it is damaged."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape != ():
        return None
    if dataset.is_virtual or dataset.external:  # stored in other files
        return None
    string = h5py.check_string_dtype(dataset.dtype)
    if string is not None and string.length is None:
        return _variable_length_text(dataset)
    if string is None and dataset.dtype.kind not in "fiub":
        return None
    value = dataset[()]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return float(value) if abs(value) < float("inf") else None


def _variable_length_text(dataset: "h5py.Dataset") -> str | None:
    """A string from the file's global heap, read without the library.

    HDF5 2.0 searches for ever, or crashes, where such a heap is damaged; here that gives None.
    """
    offset = dataset.id.get_offset()
    if offset is None or dataset.file.userblock_size:
        return None
    with open(dataset.file.filename, "rb") as stream:
        stream.seek(offset)
        element = stream.read(16)
        if len(element) < 16:
            return None
        length, start, wanted = struct.unpack("<IQI", element)
        if length > TEXT_LIMIT or start >= 1 << 63:
            return None
        stream.seek(start)
        header = stream.read(HEAP_HEADER)
        if len(header) < HEAP_HEADER or not header.startswith(HEAP_START):
            return None
        size = int.from_bytes(header[8:], "little")
        if not HEAP_HEADER <= size <= 2 * TEXT_LIMIT:
            return None
        objects = stream.read(size - HEAP_HEADER)
    found = _heap_object(objects, wanted)
    return None if found is None or len(found) < length else found[:length].decode(errors="replace")


def _heap_object(objects: bytes, wanted: int) -> bytes | None:
    place = 0
    while place + OBJECT_HEADER <= len(objects):
        index, _, _, length = struct.unpack_from("<HHIQ", objects, place)
        if index == 0:  # the free rest
            return None
        begin, end = place + OBJECT_HEADER, place + OBJECT_HEADER + length
        if index == wanted:
            return objects[begin:end] if end <= len(objects) else None
        place = begin + -(-length // 8) * 8  # data is padded to 8 bytes
    return None
