"""The file that data comes from: found, or a clear error; and its record for the provenance."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from saqrl.datasets.errors import DatasetError, nearest

# What one byte of a deflated stream stands for at most (zlib's technical details): a header that
# promises more is damaged, or made to exhaust the memory.
MOST_DEFLATED = 1032
# More text than any description of a data set has.
TEXT_LIMIT = 1 << 26


def existing_file(path: Path) -> Path:
    """`path` with ~ expanded; FileNotFoundError or DatasetError (a folder) otherwise."""
    found = path.expanduser()
    if found.is_file():
        return found
    if found.is_dir():
        raise DatasetError(
            f"{path}: this is a folder, and no data set that is one; name a file or a data set's "
            "folder inside it"
        )
    beside = [file.name for file in found.parent.iterdir()] if found.parent.is_dir() else []
    raise FileNotFoundError(f"{path}: no such file{nearest(found.name, beside)}")


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

    On damaged bytes zlib, HDF5 and Arrow each have their own errors, and any of Python's.
    """
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{path}: {what} cannot be read ({error}); {remedy}") from error


def text_of(path: Path, folder: Path, name: str) -> str:
    """The text of the file `name` of a data set's folder; DatasetError where it cannot be one."""
    file = folder / name
    if not file.is_file():
        raise DatasetError(f"{path}: {name} is missing; copy the whole folder again")
    if file.stat().st_size > TEXT_LIMIT:
        raise DatasetError(f"{path}: {name} is no description of a data set; copy it again")
    return file.read_text(encoding="utf-8", errors="replace")


def parsed_object(path: Path, what: str, text: object) -> dict[str, object]:
    """A JSON object; DatasetError names `what` where the text is none."""
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: {what} is not JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: {what} holds no JSON object; write one in braces")
    return value
