"""Plays an exported policy next to the robot: NumPy, and onnxruntime for .onnx files.

This file stands alone: no JAX, no pickle, nothing else of the package.

    policy = saqrl.deploy.runtime.load("policy.onnx")
    decision = policy.act(observation)   # decision.action, decision.distance, ...
"""

import json
import math
import os
import zipfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

# 1 had `execute` in place of `action_horizon`.
FORMAT = 2
METADATA_KEY = "saqrl"


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
    if engine.metadata["part"] != "policy":
        raise PolicyFileError(
            f"{path} holds the {engine.metadata['part']} of a quantizer, not a policy; "
            "export one with --part policy"
        )
    return RobotPolicy(engine, seed=seed)


def load_graph(path: str | os.PathLike[str]) -> Engine:
    """Any exported file (policy, encoder or decoder) as arrays in, arrays out."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(2, "no such file", str(file))
    content = file.read_bytes()
    if zipfile.is_zipfile(file):
        return NumpyEngine(file)
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
        """The next action. ValueError for another size, or a number that is not finite."""
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
        # The graph clips too; a file that does not must still not leave the range.
        actions = found["action"].clip(self._low, self._high)
        return Plan(actions, found["distance"], found.get("code"), found.get("entropy"))

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
        options = onnxruntime.SessionOptions()
        # More threads cost more to wake than they save on networks of this size.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            described = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        except Exception as error:  # onnxruntime's own exceptions have no common base class
            raise PolicyFileError(
                f"{path} is no ONNX file that can be read (damaged, or another format?)"
            ) from error
        if described is None:
            raise PolicyFileError(
                f"{path} is an ONNX file, but none that `saqrl export` wrote: it has no metadata"
            )
        self.metadata = _read_metadata(path, described)
        self._outputs = [output.name for output in self._session.get_outputs()]
        # One observation goes through buffers that stay where they are: less is made anew.
        self._binding = self._session.io_binding()
        self._given = {value.name: _single(value) for value in self._session.get_inputs()}
        self._found = {value.name: _single(value) for value in self._session.get_outputs()}
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

    def __init__(self, path: Path):
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = dict(archive)
            described = json.loads(str(arrays.pop("graph")))
        except Exception as error:  # whatever a damaged or foreign archive makes NumPy raise
            raise PolicyFileError(
                f"{path} is no npz file that `saqrl export` wrote, or it is damaged "
                f"({type(error).__name__})"
            ) from error
        self.metadata = _read_metadata(path, described["metadata"])
        self._outputs: list[str] = described["outputs"]
        self._constants = arrays
        self._steps = [_compiled(path, node) for node in described["nodes"]]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {**self._constants, **inputs}
        # As in ONNX, a logarithm of 0 is -inf and nobody is told.
        with np.errstate(all="ignore"):
            for function, names, output in self._steps:
                values[output] = function(*[values[name] for name in names])
        return {name: values[name] for name in self._outputs}


def _read_metadata(path: Path, text: str) -> Mapping[str, Any]:
    try:
        metadata = json.loads(text)
        version = metadata["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyFileError(f"{path} has damaged metadata; export it again") from error
    if version != FORMAT:
        raise PolicyFileError(
            f"{path} has format {version}, this runtime reads {FORMAT}; export it again, or use "
            "the saqrl that wrote it"
        )
    return metadata


def _compiled(
    path: Path, node: Mapping[str, Any]
) -> tuple[Callable[..., np.ndarray], Sequence[str], str]:
    op, attributes = node["op"], node["attributes"]
    if op not in _OPERATORS:
        raise PolicyFileError(f"{path} uses the operator {op}, which this runtime does not know")
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
