"""Pytrees of arrays on disk: written aside, renamed, checked by sum, never pickled."""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of the files that `write_arrays` writes; 1 did not record the arrays' types.
FORMAT = 2
# What a process that was killed while it wrote a file has left beside it.
LEFTOVERS = (".*.tmp", ".*.partial")


class DamagedArrays(ValueError):
    """The bytes on disk are not the bytes that were written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, or leave it as it was, whatever moment the process ends at.

    OSError with the path where the file system refuses (no space, no permission).
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(aside, content, os.O_CREAT | os.O_TRUNC)
        os.replace(aside, path)
        # A new name lasts only once its folder is on the disk; some file systems cannot say.
        with contextlib.suppress(OSError):
            make_lasting(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def append(path: Path, content: bytes) -> None:
    """Add `content` to the end of `path`; where that fails, a part of it may have been added."""
    _write(path, content, os.O_CREAT | os.O_APPEND, lasting=False)


def make_lasting(path: Path) -> None:
    """Wait until what has been written to a file is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes wrote aside in a folder that is now ours alone."""
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
    """A tree shaped as `skeleton` (arrays or shapes) from named leaves.

    ValueError names the first leaf that is missing or has another shape.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(skeleton)
    values = []
    for path, leaf in flat:
        name = jax.tree_util.keystr(path)
        if name not in leaves:
            raise ValueError(f"array {name} is missing")
        if leaves[name].shape != leaf.shape:
            raise ValueError(f"array {name} has shape {leaves[name].shape}, not {leaf.shape}")
        values.append(jnp.asarray(leaves[name]))
    return jax.tree_util.tree_unflatten(structure, values)


def write_arrays(path: Path, leaves: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """One npz of arrays with a JSON header, its SHA-256 in front."""
    buffer = io.BytesIO()
    # NumPy's format forgets the types that it does not know itself, such as bfloat16.
    packed = {f"array{i}": _plain(leaf) for i, leaf in enumerate(leaves.values())}
    dtypes = [leaf.dtype.name for leaf in leaves.values()]
    described = {"format": FORMAT, "header": header, "names": list(leaves), "dtypes": dtypes}
    text = json.dumps(described)
    np.savez(buffer, json=np.asarray(text), **packed)  # type: ignore[arg-type]
    body = buffer.getvalue()
    write_atomically(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write_arrays` wrote.

    DamagedArrays where the sum does not agree, ValueError where another version wrote it.
    """
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DamagedArrays(f"{path}: damaged (its checksum does not agree)")
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        described = json.loads(str(archive["json"]))
        if (found := described.get("format", 1)) != FORMAT:
            raise ValueError(
                f"{path}: format {found}, this version reads {FORMAT}: go on with the saqrl that "
                "wrote it"
            )
        typed = zip(described["names"], described["dtypes"], strict=True)
        leaves = {
            name: archive[f"array{i}"].view(jnp.dtype(dtype))
            for i, (name, dtype) in enumerate(typed)
        }
        return leaves, described["header"]


def _plain(leaf: np.ndarray) -> np.ndarray:
    return leaf.view(f"u{leaf.itemsize}") if leaf.dtype.kind == "V" else leaf
