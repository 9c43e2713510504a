"""Plays an exported policy next to the robot: NumPy, and onnxruntime for .onnx files.

This file stands alone: no JAX, no pickle, nothing else of the package.

    policy = saqrl.deploy.runtime.load("policy.onnx")
    decision = policy.act(observation)   # decision.action, decision.distance, ...
"""

import hashlib
import io
import json
import math
import os
import reprlib
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

# 1 had `execute` in place of `action_horizon`.
FORMAT = 2
METADATA_KEY = "saqrl"
# A last metadata entry of an ONNX file, before 64 digits: the SHA-256 of all bytes before it.
SEAL = b"\x72\x50\x0a\x0csaqrl.sha256\x12\x40"
# Bytes of a file; protobuf, and with it ONNX, ends here.
LARGEST_FILE = 2**31 - 1


class PolicyFileError(ValueError):
    """A file that holds no exported policy that can be used here; the text says why."""


class Decision(NamedTuple):
    """One action and what is known about it."""

    action: np.ndarray
    """(act,) in the environment's units, inside the range of the data."""
    code: int | None
    """The code that was chosen; None for a continuous policy."""
    distance: float
    """Of the observation to the data: above 1 it is farther than 99 % of the data itself."""
    entropy: float | None
    """Of the behaviour prior in this state, in nats; None for a continuous policy."""
    clipped: int
    """Action coordinates that lie on the edge of the range, where they were clipped."""
    planned: bool
    """Whether this observation was planned for, or a chunk from earlier is being played."""


class Plan(NamedTuple):
    """What one run of the graph gives, for a batch."""

    actions: np.ndarray
    """(batch, chunk, act)"""
    distance: np.ndarray
    code: np.ndarray | None
    entropy: np.ndarray | None


class Engine(Protocol):
    """Runs a graph: arrays by name in, arrays by name out."""

    metadata: Mapping[str, Any]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def load(path: str | os.PathLike[str], *, seed: int = 0) -> "RobotPolicy":
    """The policy in an exported file. `seed` starts the noise of a sampling policy.

    FileNotFoundError; PolicyFileError for a damaged or foreign file or one that holds only an
    encoder or decoder; ImportError for .onnx without onnxruntime.
    """
    engine = load_graph(path)
    _check_metadata(path, engine.metadata)
    if engine.metadata["part"] != "policy":
        raise PolicyFileError(
            f"{path} holds the {engine.metadata['part']} of a quantizer, not a policy; "
            "export one with --part policy"
        )
    policy = RobotPolicy(engine, seed=seed)
    try:
        policy.rehearse()
    except Exception as error:  # whatever a graph that is none has NumPy or onnxruntime raise
        words = " ".join(str(error).split())[:200]
        raise PolicyFileError(
            f"{path} holds a graph that cannot be run ({type(error).__name__}: {words}); "
            "export it again"
        ) from error
    return policy


def load_graph(path: str | os.PathLike[str]) -> Engine:
    """Any exported file (policy, encoder or decoder) as arrays in, arrays out."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(2, "no such file", str(file))
    if (size := file.stat().st_size) > LARGEST_FILE:
        raise PolicyFileError(f"{file} has {size:,} bytes; at most {LARGEST_FILE:,} are read")
    content = file.read_bytes()
    if zipfile.is_zipfile(io.BytesIO(content)):
        return NumpyEngine(file, content)
    if file.suffix == ".npz":
        raise PolicyFileError(f"{file} is damaged: it is no npz archive ({len(content)} bytes)")
    return OnnxEngine(file, content)


class RobotPolicy:
    """Acts on one robot: plays chunks, clips, counts, refuses what is not a number."""

    def __init__(self, engine: Engine, *, seed: int = 0):
        self.metadata = engine.metadata
        self._engine = engine
        self._random = np.random.default_rng(seed)
        self._low = np.asarray(engine.metadata["action_low"], np.float32)
        self._high = np.asarray(engine.metadata["action_high"], np.float32)
        # A coordinate that cannot move is not counted as one that was stopped.
        self._movable = self._low < self._high
        self._size = int(engine.metadata["observation_size"])
        self._action_horizon = int(engine.metadata["action_horizon"])
        self._draws = engine.metadata["draws"]
        self._queue: deque[np.ndarray] = deque()
        self._last: tuple[int | None, float, float | None] = (None, 0.0, None)
        self.decisions = 0
        """Times the policy has planned."""
        self.clipped = 0
        """Action coordinates so far that lay on the edge of the range."""

    def __repr__(self) -> str:
        described = self.metadata
        agent = (described.get("agent") or {}).get("name", described.get("kind"))
        return (
            f"RobotPolicy({agent}, observations ({self._size},), actions ({len(self._low)},), "
            f"chunk {described['chunk']}, action horizon {self._action_horizon}, "
            f"{described['act']})"
        )

    def reset(self) -> None:
        """Forget what is left of a chunk: call it at the start of an episode."""
        self._queue.clear()

    def act(self, observation: np.ndarray) -> Decision:
        """The next action.

        ValueError for another size, or a number that is not finite in the observation or the
        action.
        """
        checked = self._checked(observation)
        planned = not self._queue
        if planned:
            plan = self._run(checked[None])
            self._queue.extend(plan.actions[0, : self._action_horizon])
            self._last = (
                None if plan.code is None else int(plan.code[0]),
                float(plan.distance[0]),
                None if plan.entropy is None else float(plan.entropy[0]),
            )
            self.decisions += 1
        action = self._queue.popleft()
        clipped = self.on_edge(action)
        self.clipped += clipped
        code, distance, entropy = self._last
        return Decision(action, code, distance, entropy, clipped, planned)

    def plan(self, observations: np.ndarray, noise: Mapping[str, np.ndarray] | None = None) -> Plan:
        """Chunks for a batch of observations (batch, obs); `noise` is drawn unless given."""
        batch = np.asarray(observations)
        if batch.ndim != 2:
            raise ValueError(f"observations have shape {batch.shape}; expected (batch, obs)")
        return self._run(np.stack([self._checked(row) for row in batch]), noise)

    def on_edge(self, actions: np.ndarray) -> int:
        """How many coordinates of `actions` (..., act) lie on the edge of the data's range."""
        edge = (actions <= self._low) | (actions >= self._high)
        return int(np.count_nonzero(edge & self._movable))

    def _checked(self, observation: np.ndarray) -> np.ndarray:
        array = np.asarray(observation)
        if array.shape != (self._size,):
            raise ValueError(
                f"the policy reads observations of {self._size} numbers, this one has shape "
                f"{array.shape}"
            )
        if array.dtype.kind not in "fiub":
            raise ValueError(f"the observation is of type {array.dtype}; expected numbers")
        array = array.astype(np.float32)
        # The sum of squares is finite where every number is, unless they are huge: then look.
        if not math.isfinite(array.dot(array)) and not np.isfinite(array).all():
            place = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(
                f"number {place} of the observation is {array[place]}: no action is given for it"
            )
        return array

    def _run(self, observations: np.ndarray, noise: Mapping[str, np.ndarray] | None = None) -> Plan:
        inputs = {"observation": observations}
        if self._draws:
            inputs |= self.draw(len(observations)) if noise is None else noise
        found = self._engine(inputs)
        actions, distance = found["action"], found["distance"]
        flat = actions.ravel()
        if not math.isfinite(flat.dot(flat)) and not np.isfinite(flat).all():
            raise ValueError("the policy gives an action that is not finite: none is played")
        if math.isnan(distance.sum()):  # too far to be told must not look near
            distance = np.where(np.isnan(distance), np.float32(np.inf), distance)
        # The graph clips too; a file that does not must still not leave the range.
        actions = actions.clip(self._low, self._high)
        return Plan(actions, distance, found.get("code"), found.get("entropy"))

    def rehearse(self) -> None:
        """Plan once for an observation of zeros; an error where what comes out is no plan."""
        noise = {
            draw["name"]: np.full((1, *draw["shape"]), 0.5, np.float32) for draw in self._draws
        }
        plan = self._run(np.zeros((1, self._size), np.float32), noise)
        expected: dict[str, tuple[np.ndarray, tuple[int, ...], str]] = {}
        expected["action"] = plan.actions, (1, self.metadata["chunk"], len(self._low)), "f"
        expected["distance"] = plan.distance, (1,), "f"
        if plan.code is not None and plan.entropy is not None:
            expected["code"] = plan.code, (1,), "i"
            expected["entropy"] = plan.entropy, (1,), "f"
        for name, (array, shape, kind) in expected.items():
            if array.shape != shape or array.dtype.kind != kind:
                raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}")

    def draw(self, batch: int) -> dict[str, np.ndarray]:
        """Noise for a batch, by the names of the graph's inputs; nothing for a greedy policy."""
        random = self._random
        draws: Mapping[str, Callable[..., np.ndarray]] = {
            "gumbel": random.gumbel,
            "normal": random.normal,
            "uniform": random.random,
        }
        return {
            draw["name"]: draws[draw["distribution"]](size=(batch, *draw["shape"])).astype("f4")
            for draw in self._draws
        }


class OnnxEngine:
    """A graph in onnxruntime, on one core. Not for several threads at once."""

    def __init__(self, path: Path, content: bytes):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f'{path} needs onnxruntime: pip install "saqrl[export]", or export with '
                "--format npz, which needs NumPy only"
            ) from error
        _check_onnx(path, content)
        options = onnxruntime.SessionOptions()
        # More threads cost more to wake than they save on networks of this size.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            described = self._session.get_modelmeta().custom_metadata_map[METADATA_KEY]
            # One observation goes through buffers that stay where they are: less is made anew.
            self._given = {value.name: _single(value) for value in self._session.get_inputs()}
            self._found = {value.name: _single(value) for value in self._session.get_outputs()}
        except Exception as error:  # onnxruntime's own exceptions have no common base class
            raise PolicyFileError(
                f"{path} is no ONNX file that can be read (damaged, or another format?)"
            ) from error
        self.metadata = _read_metadata(path, described)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        for arrays, bind in (
            (self._given, self._binding.bind_input),
            (self._found, self._binding.bind_output),
        ):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._is_single(inputs):
            values = self._session.run(None, dict(inputs))
            return dict(zip(self._outputs, values, strict=True))
        for name, array in self._given.items():
            array[...] = inputs[name]
        self._session.run_with_iobinding(self._binding)
        return {name: array.copy() for name, array in self._found.items()}

    def _is_single(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether the inputs are those of one observation, exactly as the graph takes them."""
        if inputs.keys() != self._given.keys():
            return False
        pairs = ((inputs[name], array) for name, array in self._given.items())
        return all(one.shape == two.shape and one.dtype == two.dtype for one, two in pairs)


_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


def _single(value: Any) -> np.ndarray:
    """Room for an input or output of onnxruntime with a batch of one."""
    return np.zeros([1, *value.shape[1:]], _TYPES[value.type])


class NumpyEngine:
    """The same graph from an npz file, run operator by operator in NumPy."""

    def __init__(self, path: Path, content: bytes):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(member.file_size for member in archive.infolist()) > len(content):
                    raise ValueError("it says that it holds more than it does")
            with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
                arrays = dict(loaded)
            described = json.loads(str(arrays.pop("graph")))
            self.metadata = _read_metadata(path, described["metadata"])
            self._outputs: list[str] = list(described["outputs"])
            self._steps = [_compiled(path, node) for node in described["nodes"]]
        except PolicyFileError:
            raise
        except Exception as error:  # whatever a damaged or foreign archive makes NumPy raise
            raise PolicyFileError(
                f"{path} is no npz file that `saqrl export` wrote, or it is damaged "
                f"({type(error).__name__})"
            ) from error
        for name, array in arrays.items():
            _check_constant(path, name, array)
        self._constants = arrays

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {**self._constants, **inputs}
        # As in ONNX, a logarithm of 0 is -inf and nobody is told.
        with np.errstate(all="ignore"):
            for function, names, output in self._steps:
                values[output] = function(*[values[name] for name in names])
        return {name: values[name] for name in self._outputs}


def _read_metadata(path: Path, text: str) -> Mapping[str, Any]:
    try:
        metadata: Mapping[str, Any] = json.loads(text)
        version = metadata["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PolicyFileError(f"{path} has damaged metadata; export it again") from error
    if version != FORMAT:
        raise PolicyFileError(
            f"{path} has format {reprlib.repr(version)}, this runtime reads {FORMAT}; export it "
            "again, or use the saqrl that wrote it"
        )
    return metadata


def _check_metadata(path: object, metadata: Mapping[str, Any]) -> None:
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
    require("action_horizon", lambda v: v <= metadata["chunk"], "at most the chunk")
    for name in ("action_low", "action_high"):
        require(name, is_bound, f"{metadata['action_size']} finite numbers")
    lower = metadata["action_low"]
    ordered = all(map(float.__le__, map(float, lower), map(float, metadata["action_high"])))
    require("action_high", lambda v: ordered, "bounds that are not below action_low")
    require("act", lambda v: v in ("greedy", "sample"), "greedy or sample")
    require("agent", lambda v: v is None or isinstance(v, dict), "an object")
    require("draws", lambda v: isinstance(v, list) and all(map(is_draw, v)), "a list of draws")


def _check_constant(path: object, name: str, array: np.ndarray) -> None:
    """PolicyFileError for NaN, and for infinity among finite weights; bounds may be open."""
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


def _check_onnx(path: Path, content: bytes) -> None:
    """PolicyFileError unless the bytes are those that were written, and only compute.

    Whoever means harm writes a checksum too: so only our operators and constants are let through
    to onnxruntime, no loops, functions or files beside this one.
    """
    body, seal, digest = content[: -64 - len(SEAL)], content[-64 - len(SEAL) : -64], content[-64:]
    if seal != SEAL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise PolicyFileError(
            f"{path} is no ONNX file that `saqrl export` wrote, or it was changed or damaged since "
            "(its checksum does not agree); export it again"
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
                    _check_constant(path, str(bytes(found["name"])), weights)
            elif part == "node":
                node = list(_fields(message, _NODE))
                ops = [bytes(value).decode() for name, value in node if name == "op"]
                if len(ops) != 1 or ops[0] not in _OPERATORS:
                    raise PolicyFileError(_unknown(path, ops))
                for name, value in node:
                    if name == "attribute":
                        dict(_fields(value, _ATTRIBUTE))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        if isinstance(error, PolicyFileError):
            raise
        raise PolicyFileError(
            f"{path} holds what `saqrl export` does not write ({error})"
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
            raise ValueError("it is cut")
        yield names[number], message[place - size : place]


def _unknown(path: Path, op: object) -> str:
    return f"{path} uses the operator {reprlib.repr(op)}, which this runtime does not know"


def _compiled(
    path: Path, node: Mapping[str, Any]
) -> tuple[Callable[..., np.ndarray], Sequence[str], str]:
    op, attributes = node["op"], node["attributes"]
    if op not in _OPERATORS:
        raise PolicyFileError(_unknown(path, op))
    function = partial(_OPERATORS[op], **attributes) if attributes else _OPERATORS[op]
    return function, node["inputs"], node["output"]


def _reshape(value: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return value.reshape([value.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _expand(value: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.broadcast_to(value, np.broadcast_shapes(value.shape, tuple(shape)))


def _slice(
    value: np.ndarray, starts: np.ndarray, ends: np.ndarray, axes: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    index = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return value[tuple(index)]


def _reduction(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def reduce(value: np.ndarray, axes: np.ndarray, *, keepdims: int) -> np.ndarray:
        return function(value, axis=tuple(axes), keepdims=bool(keepdims))

    return reduce


def _extreme(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    return lambda value, *, axis, keepdims: function(value, axis=axis)


def _divide(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype.kind != "i":
        return np.divide(left, right)
    # Towards zero, as C and ONNX do and NumPy does not.
    return np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right))


def _normalize(
    value: np.ndarray, scale: np.ndarray, offset: np.ndarray, *, axis: int, epsilon: float
) -> np.ndarray:
    centred = value - value.mean(axis, keepdims=True)
    variance = np.square(centred).mean(axis, keepdims=True)
    return centred / np.sqrt(variance + np.float32(epsilon)) * scale + offset


def _log_softmax(value: np.ndarray, *, axis: int) -> np.ndarray:
    shifted = value - value.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def _sum_of_squares(value: np.ndarray, *, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    return np.square(value).sum(axis, keepdims=keepdims)


def _lookup_in_row(value: np.ndarray, index: np.ndarray, *, batch_dims: int) -> np.ndarray:
    return value[np.arange(len(value)), index[:, 0]]


def _erf(value: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float32])(value)


# By ONNX's names and rules (opset 18).
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "ArgMax": _extreme(np.argmax),
    "ArgMin": _extreme(np.argmin),
    "Cast": lambda value, *, to: value.astype({1: np.float32, 7: np.int64, 9: np.bool_}[to]),
    "Ceil": np.ceil,
    "Clip": lambda value, low, high: np.minimum(np.maximum(value, low), high),
    "Concat": lambda *values, axis: np.concatenate(values, axis),
    "Cos": np.cos,
    "Div": _divide,
    "Equal": np.equal,
    "Erf": _erf,
    "Exp": np.exp,
    "Expand": _expand,
    "Floor": np.floor,
    "Gather": lambda value, index, *, axis: np.take(value, index, axis),
    "GatherND": _lookup_in_row,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Identity": lambda value: value,
    "LayerNormalization": _normalize,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "LogSoftmax": _log_softmax,
    "MatMul": np.matmul,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": lambda left, right, *, fmod: np.fmod(left, right),
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": np.power,
    "Reciprocal": lambda value: np.float32(1) / value,
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "ReduceSumSquare": _reduction(_sum_of_squares),
    "Relu": lambda value: np.maximum(value, np.float32(0)),
    "Reshape": _reshape,
    "Round": np.round,
    "Shape": lambda value, *, start, end: np.asarray(value.shape[start:end]),
    "Sigmoid": lambda value: np.float32(1) / (np.float32(1) + np.exp(-value)),
    "Sign": np.sign,
    "Sin": np.sin,
    "Slice": _slice,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Tanh": np.tanh,
    "Transpose": lambda value, *, perm: np.transpose(value, perm),
    "Where": np.where,
}
