"""HDF5 files, opened with suspicion: what every reader of the family shares."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from saqrl.datasets.errors import DatasetError, listing
from saqrl.datasets.source import MOST_DEFLATED, existing_file

if TYPE_CHECKING:
    import h5py

# HDF5 File Format Specification 3.0, section III.E: signature, version 1, three zero bytes.
HEAP_START = b"GCOL\x01\x00\x00\x00"
HEAP_HEADER = OBJECT_HEADER = 16
# A record such as an environment's name or options; more is no record.
TEXT_LIMIT = 1 << 20
# A string of any length in its place: its length, the heap's address, its number there.
ELEMENT = 16
# Pieces of one object header that are followed; a ring of them would never end.
MOST_BLOCKS = 64
# Bytes that a data set may promise beyond what its stored ones can hold: fields that are zero
# throughout are left unwritten by some. More is a damaged header. An episode has less to leave
# out, and a file may hold many.
UNSTORED_LIMIT, UNSTORED_OF_EPISODE = 1 << 26, 1 << 20


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
    if dataset.nbytes > TEXT_LIMIT:
        return None
    value = dataset[()]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return float(value) if abs(value) < float("inf") else None


def attribute(owner: "h5py.Group", name: str) -> str | float | None:
    """A single string or finite number among the attributes; None otherwise, as in `scalar`."""
    import h5py

    encoded = name.encode()
    if not h5py.h5a.exists(owner.id, encoded):
        return None
    opened = h5py.h5a.open(owner.id, encoded)
    if opened.shape != ():
        return None
    string = h5py.check_string_dtype(opened.dtype)
    if string is not None and string.length is None:
        element = _attribute_bytes(owner, encoded)
        return None if element is None else _heap_text(owner.file.filename, element)
    if string is None and opened.dtype.kind not in "fiub":
        return None
    if opened.dtype.itemsize > TEXT_LIMIT:
        return None
    value = np.empty((), opened.dtype)
    opened.read(value)
    if opened.dtype.kind == "S":
        return bytes(value[()]).decode(errors="replace")
    return float(value) if abs(float(value)) < float("inf") else None


def local_dataset(path: Path, key: str, group: "h5py.Group") -> "h5py.Dataset":
    """The data set `key` of the group, which lies in this very file; DatasetError otherwise."""
    import h5py

    try:
        dataset = _hard_linked(path, key, group)
        if isinstance(dataset, h5py.Group):
            raise DatasetError(
                f"{path}: {key} is a group ({listing(dataset)}); flat arrays are expected: "
                "concatenate its columns into one data set"
            )
        if not isinstance(dataset, h5py.Dataset):
            raise DatasetError(f"{path}: {key} is no array; store it as one row a step")
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


def local_group(path: Path, key: str, group: "h5py.Group") -> "h5py.Group":
    """The group `key` inside `group`, in this very file; DatasetError otherwise."""
    import h5py

    try:
        found = _hard_linked(path, key, group)
    except DatasetError:
        raise
    except Exception as error:
        raise _unreadable(path, key, error) from error
    if not isinstance(found, h5py.Group):
        raise DatasetError(f"{path}: {key} is no group; check the format, or copy the file again")
    return found


def is_group(path: Path, key: str, group: "h5py.Group") -> bool:
    """Whether `key` of the group is a group; DatasetError where the file is damaged there."""
    import h5py

    try:
        return group.get(key.rpartition("/")[2], getclass=True) is h5py.Group
    except Exception as error:
        raise _unreadable(path, key, error) from error


def record(path: Path, key: str, group: "h5py.Group") -> str | float | None:
    """As `scalar`, of a record by its key; DatasetError where the file is damaged there."""
    try:
        return scalar(_hard_linked(path, key, group))
    except DatasetError:
        raise
    except Exception as error:
        raise _unreadable(path, key, error) from error


def names_of(path: Path, group: "h5py.Group") -> list[str]:
    """The names in a group, in the file's order."""
    try:
        return list(group)
    except Exception as error:  # a damaged group
        raise DatasetError(f"{path}: damaged HDF5 file ({error}); copy it again") from error


def read_array(
    path: Path, key: str, dataset: "h5py.Dataset", *, unstored: int = UNSTORED_LIMIT
) -> np.ndarray:
    """All of a data set of plain numbers, of which `unstored` bytes may be promised alone."""
    try:
        if dataset.dtype.kind == "O":
            raise DatasetError(
                f"{path}: {key} holds objects or strings of any length; store plain numbers"
            )
        stored = dataset.id.get_storage_size()
        filtered = dataset.id.get_create_plist().get_nfilters() > 0
        if dataset.nbytes > unstored + stored * (MOST_DEFLATED if filtered else 1):
            raise DatasetError(
                f"{path}: {key} promises {dataset.shape[0]:,} rows and stores {stored:,} bytes, "
                "which cannot hold them; the file is damaged, copy it again"
            )
        return np.asarray(dataset[()])
    except DatasetError:
        raise
    except Exception as error:
        raise _unreadable(path, key, error) from error


def numbers(path: Path, key: str, group: "h5py.Group") -> np.ndarray:
    """The data set `key` of an episode's group; DatasetError where it holds no numbers."""
    dataset = local_dataset(path, key, group)
    array = read_array(path, key, dataset, unstored=UNSTORED_OF_EPISODE)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{path}: {key} holds {array.dtype.name}; store it as numbers (float32)")
    return array


def _hard_linked(path: Path, key: str, group: "h5py.Group") -> object:
    import h5py

    name = key.rpartition("/")[2]
    link = group.get(name, getlink=True)
    if link is None:
        raise DatasetError(f"{path}: {key} is missing")
    if not isinstance(link, h5py.HardLink):
        raise DatasetError(f"{path}: {key} is a link, and links are not followed; copy the data")
    return group[name]


def _unreadable(path: Path, key: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{path}: {key} cannot be read ({error}); the file is damaged, copy it again"
    )


def _variable_length_text(dataset: "h5py.Dataset") -> str | None:
    offset = dataset.id.get_offset()
    if offset is None or dataset.file.userblock_size:
        return None
    with open(dataset.file.filename, "rb") as stream:
        stream.seek(offset)
        return _heap_text(dataset.file.filename, stream.read(ELEMENT))


def _heap_text(filename: str, element: bytes) -> str | None:
    """A string from the file's global heap, read without the library.

    HDF5 2.0 searches for ever, or crashes, where such a heap is damaged; here that gives None.
    """
    if len(element) < ELEMENT:
        return None
    length, start, wanted = struct.unpack("<IQI", element)
    if length > TEXT_LIMIT or start >= 1 << 63:
        return None
    with open(filename, "rb") as stream:
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


def _attribute_bytes(owner: "h5py.Group", name: bytes) -> bytes | None:
    """The stored element of an attribute of one element, out of the object's header.

    HDF5 File Format Specification 3.0, sections IV.A.1 (headers) and IV.A.2.m (attributes).
    Attributes that lie in a fractal heap (more than eight in the newer format) give None.
    """
    import h5py

    if owner.file.userblock_size:
        return None
    address = h5py.h5o.get_info(owner.id).addr
    with open(owner.file.filename, "rb") as stream:
        for message in _attribute_messages(stream, address):
            found, value = _parsed_attribute(message)
            if found == name:
                return value[:ELEMENT]
    return None


def _attribute_messages(stream: BinaryIO, address: int) -> Iterator[bytes]:
    """The attribute messages of the object header at `address`, through its continuations."""
    stream.seek(address)
    start = stream.read(38)
    if start.startswith(b"OHDR"):
        flags = start[5]
        place = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(start[place : place + width], "little")
        blocks, head = [(address + place + width, size)], 6 if flags & 0x04 else 4
    else:
        blocks, head = [(address + 16, int.from_bytes(start[8:12], "little"))], 8
    newer = head != 8
    for _ in range(MOST_BLOCKS):
        if not blocks:
            return
        begin, size = blocks.pop(0)
        if size > TEXT_LIMIT or begin >= 1 << 62:
            return
        stream.seek(begin)
        block, place = stream.read(size), 0
        while place + head <= len(block):
            if newer:
                kind, length, flags = struct.unpack_from("<BHB", block, place)
            else:
                kind, length, flags = struct.unpack_from("<HHB", block, place)
            message = block[place + head : place + head + length]
            place += head + length
            if kind == 0x10 and len(message) >= 16:  # continued elsewhere
                further, extent = struct.unpack_from("<QQ", message)
                # The newer blocks have a signature before and a checksum after the messages.
                blocks.append((further + 4, extent - 8) if newer else (further, extent))
            elif kind == 0x0C and not flags & 0x02:
                yield message


def _parsed_attribute(message: bytes) -> tuple[bytes, bytes]:
    """(name, data) of an attribute message; the data may be followed by padding."""
    if len(message) < 9:
        return b"", b""
    version, _, name_size, type_size, space_size = struct.unpack_from("<BBHHH", message)
    place = 9 if version == 3 else 8

    def padded(size: int) -> int:
        return -(-size // 8) * 8 if version == 1 else size

    name = message[place : place + name_size].rstrip(b"\0")
    return name, message[place + padded(name_size) + padded(type_size) + padded(space_size) :]
