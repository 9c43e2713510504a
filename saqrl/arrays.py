"""Pytrees of arrays on disk: atomic writes, a checksum, no pickle."""

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saqrl.records import OBJECT, TEXT, listed, parsed, read_regular, require, shown

# Version of the files that `write_arrays` writes; version 1 did not record the arrays' types.
FORMAT = 2
# Temporary files that a process leaves if it is killed while it writes a file.
LEFTOVERS = (".*.tmp", ".*.partial")
# Maximum bytes of a file of arrays: enough for 300 million weights with optimiser moments.
LARGEST_FILE = 4 << 30
DESCRIPTION = {"header": OBJECT, "names": listed(TEXT), "dtypes": listed(TEXT)}


class DamagedArrays(ValueError):
    """The bytes on disk are not the bytes that were written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` atomically: a killed process leaves the old or the new file.

    Raises OSError with the path if the file system refuses (no space, no permission).
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(aside, content, os.O_CREAT | os.O_TRUNC)
        os.replace(aside, path)
        # A rename is durable only after an fsync of its folder; some file systems have none.
        with contextlib.suppress(OSError):
            make_lasting(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def append(path: Path, content: bytes) -> None:
    """Append `content` to `path`; if this fails, a part of it may have been written."""
    _write(path, content, os.O_CREAT | os.O_APPEND, lasting=False)


def make_lasting(path: Path) -> None:
    """Wait until a file or folder is on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder that no other process uses."""
    for pattern in LEFTOVERS:
        for aside in folder.glob(pattern):
            aside.unlink(missing_ok=True)


def _write(path: Path, content: bytes, flags: int, *, lasting: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if lasting:
            os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # os.write and os.fsync know only the descriptor
        raise
    finally:
        os.close(descriptor)


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree of arrays by their path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def rebuild_tree(skeleton: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    """A tree with the structure of `skeleton` (arrays or shapes) from named leaves.

    ValueError names the first leaf that is missing, has the wrong shape or type, or is not finite.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(skeleton)
    values = []
    for path, leaf in flat:
        name = jax.tree_util.keystr(path)
        if name not in leaves:
            raise ValueError(f"array {name} is missing")
        if leaves[name].shape != leaf.shape:
            raise ValueError(f"array {name} has shape {leaves[name].shape}, not {leaf.shape}")
        if leaves[name].dtype != leaf.dtype:
            raise ValueError(f"array {name} is of type {leaves[name].dtype}, not {leaf.dtype}")
        if leaf.dtype.kind == "f" and not np.isfinite(leaves[name]).all():
            raise ValueError(f"array {name} is not finite")
        values.append(jnp.asarray(leaves[name]))
    return jax.tree_util.tree_unflatten(structure, values)


def write_arrays(path: Path, leaves: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Write an npz of arrays with a JSON header; its SHA-256 is the file's first line."""
    buffer = io.BytesIO()
    # The npy format loses types that NumPy does not know, such as bfloat16.
    packed = {f"array{i}": _plain(leaf) for i, leaf in enumerate(leaves.values())}
    dtypes = [leaf.dtype.name for leaf in leaves.values()]
    described = {"format": FORMAT, "header": header, "names": list(leaves), "dtypes": dtypes}
    text = json.dumps(described)
    np.savez(buffer, json=np.asarray(text), **packed)  # type: ignore[arg-type]
    body = buffer.getvalue()
    write_atomically(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the header of a file that `write_arrays` wrote.

    Raises DamagedArrays if the checksum does not match, ValueError if another version or another
    program wrote the file.
    """
    body = _sound_body(path)
    try:
        stored = read_npz(body)
    except ValueError as error:
        raise _foreign(path, str(error)) from error
    described = _description(path, stored.pop("json", np.asarray("")))
    try:
        typed = zip(described["names"], described["dtypes"], strict=True)
        leaves = {
            name: stored[f"array{i}"].view(jnp.dtype(dtype))
            for i, (name, dtype) in enumerate(typed)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from error
    return leaves, described["header"]


def read_header(path: Path) -> dict[str, Any]:
    """Read only the header of such a file; raises the same errors as `read_arrays`."""
    body = _sound_body(path)
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            text = archive["json"]
    except Exception as error:  # a foreign archive can make NumPy raise anything
        raise _foreign(path, type(error).__name__) from error
    return dict(_description(path, text)["header"])


def read_npz(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed npz; ValueError if it is damaged or contains anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > len(content):
            raise ValueError("its arrays are larger than the file: it is compressed, or damaged")
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
    except Exception as error:  # a damaged archive can make zipfile or NumPy raise anything
        pickled = "allow_pickle" in str(error)
        words = "it contains Python objects, which are never read" if pickled else str(error)
        raise ValueError(words or type(error).__name__) from error
    if foreign := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"its entry {foreign[0]!r} is not an array")
    return arrays


def _sound_body(path: Path) -> bytes:
    """The bytes after the checksum; DamagedArrays if the checksum does not match."""
    digest, _, body = read_regular(path, at_most=LARGEST_FILE).partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DamagedArrays(f"{path}: damaged (its checksum does not match)")
    return body


def _description(path: Path, text: np.ndarray) -> dict[str, Any]:
    """The names and types of the arrays, and the header."""
    described = parsed(str(text), path)
    if isinstance(described, dict) and (found := described.get("format", 1)) != FORMAT:
        raise ValueError(
            f"{path}: format {shown(found)}, this version reads {FORMAT}; use the saqrl version "
            "that wrote it"
        )
    return require(described, DESCRIPTION, where=path)


def _foreign(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not an array file written by saqrl ({why})")


def _plain(leaf: np.ndarray) -> np.ndarray:
    return leaf.view(f"u{leaf.itemsize}") if leaf.dtype.kind == "V" else leaf
