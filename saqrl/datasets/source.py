"""The file that data comes from: found, or a clear error; and its record for the provenance."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from saqrl.datasets.budget import free_bytes
from saqrl.datasets.errors import DatasetError, nearest, printable

# What one byte of a deflated stream stands for at most (zlib's technical details): a header that
# promises more is damaged, or made to exhaust the memory.
MOST_DEFLATED = 1032
# More text than any description of a data set has.
TEXT_LIMIT = 1 << 24
# What lies in place of a data file, by its first bytes, and what to do about it.
IMPOSTORS = (
    (
        b"\x00\x05\x16\x07",
        (
            "a metadata file of macOS (AppleDouble), not the data: use the file without ._ in "
            "its name"
        ),
    ),
    (b"version https://git-lfs", "a Git LFS pointer, not the data: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page: download the file itself"),
    (b"<!doctype", "a web page: download the file itself"),
    (b"<html", "a web page: download the file itself"),
)


def existing_file(path: Path) -> Path:
    """`path` with ~ expanded, a regular file that may be read and is what its name says.

    FileNotFoundError, PermissionError, or DatasetError (a folder, a device, a pipe, something else
    in its place) otherwise. Every file of a data set is opened by a name that comes from here.
    """
    found = path.expanduser()
    if found.is_file():
        with found.open("rb") as stream:
            head = stream.read(32)
        for mark, what in IMPOSTORS:
            if head.startswith(mark):
                raise DatasetError(f"{path}: this is {what}")
        return found
    if found.exists() and not found.is_dir():
        raise DatasetError(
            f"{path}: this is a device or a pipe; only regular files are read: copy its "
            "content into a file"
        )
    if found.is_dir():
        raise DatasetError(
            f"{path}: this folder is not a data set of a known format; give a file, or the "
            "folder of one data set inside it"
        )
    beside = [file.name for file in found.parent.iterdir()] if found.parent.is_dir() else []
    raise FileNotFoundError(printable(f"{path}: no such file{nearest(found.name, beside)}"))


def file_record(path: Path) -> dict[str, object]:
    """Name, size in bytes and SHA-256: enough to tell later whether it is the same file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest}


@contextlib.contextmanager
def damage_named(
    path: Path, what: str, remedy: str = "the file is damaged, copy it again"
) -> Iterator[None]:
    """Whatever a library raises while it reads `what` becomes a DatasetError.

    On damaged bytes zlib, HDF5 and Arrow each have their own errors, and any of Python's. Memory
    that does not suffice is no damage: MemoryError passes.
    """
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except Exception as error:
        said = str(error)
        if "allocat" in said and "memory" in said.lower():
            raise MemoryError(f"{path}: {what}") from error
        raise DatasetError(f"{path}: {what} cannot be read ({plain(error)}); {remedy}") from error


def plain(error: Exception) -> str:
    """What a library says, without NumPy's advice to trust the file."""
    said = str(error) or type(error).__name__
    if "allow_pickle" in said:
        return "its header is not that of a numeric NumPy array"
    return said


def out_of_memory(spec: str) -> DatasetError:
    """In place of a MemoryError."""
    free = free_bytes()
    have = "" if free is None else f" ({free / 2**30:.3g} GiB are free)"
    return DatasetError(
        f"{spec}: does not fit into memory{have}; read less (--dataset.keys), convert it in "
        "parts to --format mapped, or use a machine with more memory"
    )


def text_of(path: Path, folder: Path, name: str) -> str:
    """The text of the file `name` of a data set's folder; DatasetError where it cannot be one."""
    if not (folder / name).exists():
        raise DatasetError(f"{path}: {name} is missing; copy the whole folder again")
    file = existing_file(folder / name)
    if file.stat().st_size > TEXT_LIMIT:
        raise DatasetError(
            f"{path}: {name} has {file.stat().st_size:,} bytes, too many for the description "
            "of a data set; check that this is the right file"
        )
    content = file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DatasetError(f"{path}: {name} is not UTF-8 text; save it as UTF-8")
    return content.decode("utf-8-sig", errors="replace")


def parsed_object(path: Path, what: str, text: object) -> dict[str, object]:
    """A JSON object; DatasetError names `what` where the text is none."""
    try:
        value = json.loads(str(text).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{path}: {what} is not JSON ({error}); correct it, or copy it again"
        ) from error
    if not isinstance(value, dict):
        raise DatasetError(
            f"{path}: {what} is not a JSON object; it must start with {{ and end with }}"
        )
    return value
