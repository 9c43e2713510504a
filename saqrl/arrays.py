"""Pytrees of arrays on disk: written aside, renamed, checked by sum, never pickled."""

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


class DamagedArrays(ValueError):
    """The bytes on disk are not the bytes that were written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, or leave it as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


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
    packed = {f"array{i}": leaf for i, leaf in enumerate(leaves.values())}
    text = json.dumps({"header": header, "names": list(leaves)})
    np.savez(buffer, json=np.asarray(text), **packed)  # type: ignore[arg-type]
    body = buffer.getvalue()
    write_atomically(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write_arrays` wrote; DamagedArrays where the sum does not agree."""
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise DamagedArrays(f"{path}: damaged (its checksum does not agree)")
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        described = json.loads(str(archive["json"]))
        names = described["names"]
        return {name: archive[f"array{i}"] for i, name in enumerate(names)}, described["header"]
