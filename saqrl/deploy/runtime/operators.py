"""The operators of exported graphs in NumPy."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


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
OPERATORS: Mapping[str, Callable[..., Any]] = {
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
