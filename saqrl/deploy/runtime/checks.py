"""What an exported file must be before anything in it is used."""

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .operators import OPERATORS

# 1 had `execute` in place of `action_horizon`.
FORMAT = 2
METADATA_KEY = "saqrl"
# A last metadata entry of an ONNX file, before 64 digits: the SHA-256 of all bytes before it.
SEAL = b"\x72\x50\x0a\x0csaqrl.sha256\x12\x40"
# Bytes of a file; protobuf, and with it ONNX, ends here.
LARGEST_FILE = 2**31 - 1


class PolicyFileError(ValueError):
    """A file that holds no exported policy that can be used here; the text says why."""


def read_metadata(path: Path, text: str) -> Mapping[str, Any]:
    try:
        metadata: Mapping[str, Any] = json.loads(text)
        version = metadata["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PolicyFileError(f"{path} has damaged metadata; export it again") from error
    if version != FORMAT:
        raise PolicyFileError(
            f"{path} has format version {reprlib.repr(version)}, this runtime reads "
            f"{FORMAT}; export it again, or use the version of saqrl that wrote it"
        )
    return metadata


def check_metadata(path: object, metadata: Mapping[str, Any]) -> None:
    """PolicyFileError for the first entry that is not what `RobotPolicy` reads."""

    def require(name: str, holds: Callable[[Any], bool], words: str) -> None:
        value = metadata.get(name)
        if not holds(value):
            raise PolicyFileError(
                f"{path}: {name} in its metadata is {reprlib.repr(value)}; expected {words}; "
                "export it again"
            )

    def is_size(value: Any) -> bool:
        return type(value) is int and 1 <= value <= 2**20

    def is_draw(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and isinstance(value.get("name"), str)
            and value.get("distribution") in ("gumbel", "normal", "uniform")
            and isinstance(value.get("shape"), list)
            and all(map(is_size, value["shape"]))
        )

    def is_bound(value: Any) -> bool:
        kept = isinstance(value, list) and len(value) == metadata["action_size"]
        return kept and all(type(v) in (int, float) and abs(v) <= 3e38 for v in value)

    require("part", lambda v: v in ("policy", "encoder", "decoder"), "policy, encoder or decoder")
    for name in ("observation_size", "action_size", "chunk", "action_horizon"):
        require(name, is_size, "a whole number of at least 1")
    require("history", lambda v: v is None or is_size(v), "a whole number of at least 1")
    require("action_horizon", lambda v: v <= metadata["chunk"], "at most the chunk")
    for name in ("action_low", "action_high"):
        require(name, is_bound, f"{metadata['action_size']} finite numbers")
    lower = metadata["action_low"]
    ordered = all(map(float.__le__, map(float, lower), map(float, metadata["action_high"])))
    require("action_high", lambda v: ordered, "bounds that are not below action_low")
    require("act", lambda v: v in ("greedy", "sample", "mean"), "greedy, sample or mean")
    require(
        "act_temperature",
        lambda v: v is None or (type(v) in (int, float) and 0 < v < math.inf),
        "a number above 0",
    )
    require("agent", lambda v: v is None or isinstance(v, dict), "an object")
    require("draws", lambda v: isinstance(v, list) and all(map(is_draw, v)), "a list of draws")


def check_constant(path: object, name: str, array: np.ndarray) -> None:
    """PolicyFileError for NaN, infinity among finite weights (bounds may be open), no numbers."""
    if array.dtype.kind not in "fib":
        raise PolicyFileError(
            f"{path}: the constant {reprlib.repr(name)} is of type {array.dtype}; export it again"
        )
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    if np.isnan(array).any() or (array.ndim > 1 and not np.isinf(array).all()):
        raise PolicyFileError(
            f"{path}: the constant {reprlib.repr(name)} is not finite; export it again"
        )


def sealed(content: bytes) -> bytes:
    """An ONNX file with its checksum at the end."""
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


# Which fields of ONNX's messages `saqrl export` writes; others could run or read anything.
_MODEL = {"ir": 1, "producer": 2, "version": 3, "graph": 7, "opset": 8, "metadata": 14}
_GRAPH = {"node": 1, "name": 2, "constant": 5, "input": 11, "output": 12}
_NODE = {"input": 1, "output": 2, "name": 3, "op": 4, "attribute": 5}
_ATTRIBUTE = {"name": 1, "float": 2, "integer": 3, "integers": 8, "type": 20}
_CONSTANT = {"dims": 1, "type": 2, "name": 8, "data": 9}
_FLOAT32 = 1


def check_onnx(path: Path, content: bytes) -> None:
    """PolicyFileError unless the bytes are those that were written, and only compute.

    Whoever means harm writes a checksum too: so only our operators and constants are let through
    to onnxruntime, no loops, functions or files beside this one.
    """
    body, seal, digest = content[: -64 - len(SEAL)], content[-64 - len(SEAL) : -64], content[-64:]
    if seal != SEAL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise PolicyFileError(
            f"{path} is not an ONNX file written by `saqrl export`, or was changed or "
            "damaged (wrong checksum); export it again"
        )
    try:
        model = list(_fields(memoryview(body), _MODEL))
        (graph,) = (message for name, message in model if name == "graph")
        for part, message in _fields(graph, _GRAPH):
            if part == "constant":
                tensor = list(_fields(message, _CONSTANT))
                found, dims = dict(tensor), [size for name, size in tensor if name == "dims"]
                if found["type"] == _FLOAT32:
                    weights = np.frombuffer(found.get("data", b""), "<f4").reshape(dims)
                    check_constant(path, str(bytes(found["name"])), weights)
            elif part == "node":
                node = list(_fields(message, _NODE))
                ops = [bytes(value).decode() for name, value in node if name == "op"]
                if len(ops) != 1 or ops[0] not in OPERATORS:
                    raise PolicyFileError(unknown_operator(path, ops))
                for name, value in node:
                    if name == "attribute":
                        dict(_fields(value, _ATTRIBUTE))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        if isinstance(error, PolicyFileError):
            raise
        raise PolicyFileError(
            f"{path} holds data that `saqrl export` does not write ({error}); export it again"
        ) from error


def _fields(message: memoryview, known: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """The fields of a protobuf message by name; ValueError for one that is not known."""
    names = {number: name for name, number in known.items()}
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if number not in names or kind not in (0, 2, 5):
            raise ValueError(f"field {number}")
        if kind == 0:
            yield names[number], varint()
            continue
        size = 4 if kind == 5 else varint()
        place += size
        if place > len(message):
            raise ValueError("it is truncated")
        yield names[number], message[place - size : place]


def unknown_operator(path: Path, op: object) -> str:
    return (
        f"{path} uses the operator {reprlib.repr(op)}, which this runtime does not support; "
        "update saqrl, or export again"
    )
