"""JAX's operators on one example as ONNX's operators on a batch.

RULES has one function for each operator, called with the `Lowering` that writes the graph, the
traced equation (its parameters and the shapes of one example) and its values.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saqrl.deploy.graph import Graph, Node, UnsupportedOperator


@dataclass(frozen=True)
class Batched:
    """A value that depends on the inputs. Axes of size 1 may stand for longer ones."""

    name: str
    shape: tuple[int, ...]


Value = Any  # a Batched, or an array that is known now


def dtype_name(dtype: Any) -> str:
    """Every integer of a graph is int64, which is what ONNX's indices are."""
    return "int64" if jnp.issubdtype(dtype, jnp.integer) else np.dtype(dtype).name


class Lowering:
    """Writes operators into a graph, none of them twice."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._emitted: dict[tuple[Any, ...], Node] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._reshaped: dict[str, Batched] = {}
        self.bounds: dict[str, tuple[float, float]] = {}
        """What a value is at least and at most, where that is known."""
        self.vector_sums: dict[str, Node] = {}
        """What reduced a whole vector to this number."""
        self.stacked: dict[str, tuple[int, tuple[Value, ...]]] = {}
        """Axis and parts of values that were stacked."""

    def emit(self, op: str, *inputs: str, **attributes: int | tuple[int, ...]) -> str:
        """The name of the operator's output."""
        key = (op, inputs, tuple(sorted(attributes.items())))
        if key not in self._emitted:
            node = Node(op, inputs, f"{op.lower()}_{len(self._emitted)}", attributes)
            self.graph.nodes.append(node)
            self._emitted[key] = node
        return self._emitted[key].output

    def name(self, value: Value) -> str:
        """Of a value in the graph; a known array becomes a constant."""
        if isinstance(value, Batched):
            return value.name
        array = np.asarray(value)
        array = array.astype(dtype_name(array.dtype))
        key = (array.shape, array.dtype.str, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.graph.constants[self._constants[key]] = array
        return self._constants[key]

    def bounds_of(self, value: Batched) -> tuple[float, float]:
        return self.bounds.get(value.name, (-math.inf, math.inf))

    def integers(self, *numbers: int) -> str:
        return self.name(np.asarray(numbers, np.int64))

    def full(self, value: Value, shape: tuple[int, ...]) -> Batched:
        """The value with every axis of one example as long as `shape` says."""
        if not isinstance(value, Batched):
            # Once for every row of the batch.
            batch = self.emit("Shape", next(iter(self.graph.inputs)), start=0, end=1)
            whole = self.emit("Concat", batch, self.integers(*shape), axis=0) if shape else batch
            return Batched(self.emit("Expand", self.name(np.asarray(value)[None]), whole), shape)
        if value.shape == shape:
            return value
        return Batched(self.emit("Expand", value.name, self.integers(1, *shape)), shape)

    def reshape(self, value: Batched, shape: Sequence[int]) -> Batched:
        """The same numbers in another shape; reshaping twice is reshaping once."""
        source, wanted = self._reshaped.get(value.name, value), tuple(shape)
        if source.shape == wanted:
            return source
        if wanted == (1,) and (reduction := self.vector_sums.get(source.name)):
            return Batched(self.emit(reduction.op, *reduction.inputs, keepdims=1), wanted)
        # 0 stands for the batch's own size.
        result = Batched(self.emit("Reshape", source.name, self.integers(0, *wanted)), wanted)
        self._reshaped[result.name] = source
        self.bounds[result.name] = self.bounds_of(source)
        return result

    def transpose(self, value: Batched, order: Sequence[int]) -> Batched:
        if list(order) == sorted(order):
            return value
        name = self.emit("Transpose", value.name, perm=(0, *(axis + 1 for axis in order)))
        return Batched(name, tuple(value.shape[axis] for axis in order))

    def elementwise(self, op: str, *values: Value, **attributes: int) -> Batched:
        rank = max(np.ndim(v) if not isinstance(v, Batched) else len(v.shape) for v in values)
        aligned = [
            self.reshape(v, (1,) * rank) if isinstance(v, Batched) and len(v.shape) < rank else v
            for v in values
        ]
        shape = np.broadcast_shapes(
            *(v.shape if isinstance(v, Batched) else np.shape(v) for v in aligned)
        )
        return Batched(self.emit(op, *map(self.name, aligned), **attributes), shape)


def _shape(equation: Any, position: int = 0) -> tuple[int, ...]:
    return tuple(equation.invars[position].aval.shape)


def _result(equation: Any) -> tuple[int, ...]:
    return tuple(equation.outvars[0].aval.shape)


def _plain(op: str) -> Callable[..., Batched]:
    return lambda lowering, equation, *values: lowering.elementwise(op, *values)


def _same(lowering: Lowering, equation: Any, value: Value) -> Value:
    return value


def _extreme(op: str, choose: Callable[[float, float], float]) -> Callable[..., Batched]:
    def rule(lowering: Lowering, equation: Any, *values: Value) -> Batched:
        # A known limit comes first, where `rewriting` expects it.
        limit, value = sorted(values, key=lambda one: isinstance(one, Batched))
        if isinstance(limit, Batched) or np.ndim(limit):
            return lowering.elementwise(op, limit, value)
        low, high = lowering.bounds_of(value)
        narrowed = choose(low, float(limit)), choose(high, float(limit))
        if narrowed == (low, high):
            return value
        result = lowering.elementwise(op, limit, value)
        lowering.bounds[result.name] = narrowed
        return result

    return rule


_maximum, _minimum = _extreme("Max", max), _extreme("Min", min)


def _less(lowering: Lowering, equation: Any, left: Value, right: Value) -> Value:
    # Indexing by a code asks first whether it counts from the end. An argmax never does.
    known = isinstance(left, Batched) and not isinstance(right, Batched)
    if known and np.all(lowering.bounds_of(left)[0] >= right):
        return np.False_
    return lowering.elementwise("Less", left, right)


def _divide(lowering: Lowering, equation: Any, left: Value, right: Value) -> Value:
    if not isinstance(right, Batched) and np.ndim(right) == 0 and right == 1:
        return left
    return lowering.elementwise("Div", left, right)


def _inverse_root(lowering: Lowering, equation: Any, value: Batched) -> Batched:
    return lowering.elementwise("Reciprocal", lowering.elementwise("Sqrt", value))


def _remainder(lowering: Lowering, equation: Any, left: Value, right: Value) -> Batched:
    # fmod 1: the sign of the dividend, as in C and in lax.rem.
    return lowering.elementwise("Mod", left, right, fmod=1)


def _round(lowering: Lowering, equation: Any, value: Batched) -> Batched:
    if int(equation.params["rounding_method"]) != 1:
        raise UnsupportedOperator("rounding half away from zero")
    return lowering.elementwise("Round", value)


def _select(lowering: Lowering, equation: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2:
        raise UnsupportedOperator(f"a choice among {len(cases)} cases")
    if not isinstance(which, Batched) and np.all(which) == np.any(which):
        return cases[int(np.all(which))]
    return lowering.elementwise("Where", which, cases[1], cases[0])


_CASTS = {"float32": 1, "int64": 7, "bool": 9}  # onnx.TensorProto's numbers


def _convert(lowering: Lowering, equation: Any, value: Batched) -> Batched:
    before = dtype_name(equation.invars[0].aval.dtype)
    after = dtype_name(equation.params["new_dtype"])
    if before == after:
        return value
    if after not in _CASTS:
        raise UnsupportedOperator(f"numbers of type {after}")
    return lowering.elementwise("Cast", value, to=_CASTS[after])


def _reduce(op: str, pairwise: str | None = None) -> Callable[..., Batched]:
    """`pairwise` is the same of two values: a reduction over values that were just stacked."""

    def rule(lowering: Lowering, equation: Any, value: Batched) -> Batched:
        axes = tuple(equation.params["axes"])
        axis, parts = lowering.stacked.get(value.name, (None, ()))
        if pairwise is not None and axes == (axis,):
            return functools.reduce(functools.partial(lowering.elementwise, pairwise), parts)
        shifted = lowering.integers(*(axis + 1 for axis in axes))
        inputs = (lowering.full(value, _shape(equation)).name, shifted)
        name = lowering.emit(op, *inputs, keepdims=0)
        if len(_shape(equation)) == 1:
            lowering.vector_sums[name] = Node(op, inputs, name, {})
        return Batched(name, _result(equation))

    return rule


def _first_extreme(op: str) -> Callable[..., Batched]:
    def rule(lowering: Lowering, equation: Any, value: Batched) -> Batched:
        (axis,) = equation.params["axes"]
        whole = lowering.full(value, _shape(equation))
        name = lowering.emit(op, whole.name, axis=axis + 1, keepdims=0)
        lowering.bounds[name] = 0, whole.shape[axis] - 1
        return Batched(name, _result(equation))

    return rule


def _broadcast(lowering: Lowering, equation: Any, value: Batched) -> Batched:
    # Left as short as it is: what reads it broadcasts, or asks for the whole.
    shape = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = size
    return lowering.reshape(value, shape)


def _reshape(lowering: Lowering, equation: Any, value: Batched) -> Batched:
    return lowering.reshape(lowering.full(value, _shape(equation)), _result(equation))


def _concatenate(lowering: Lowering, equation: Any, *values: Value) -> Batched:
    parts = [lowering.full(v, _shape(equation, place)).name for place, v in enumerate(values)]
    axis = equation.params["dimension"] + 1
    return Batched(lowering.emit("Concat", *parts, axis=axis), _result(equation))


def _stack(lowering: Lowering, equation: Any, *values: Value) -> Batched:
    axis, shape = equation.params["axis"], _shape(equation)
    expanded = (*shape[:axis], 1, *shape[axis:])
    parts = [lowering.reshape(lowering.full(value, shape), expanded).name for value in values]
    name = lowering.emit("Concat", *parts, axis=axis + 1)
    lowering.stacked[name] = axis, values
    return Batched(name, _result(equation))


def _slice(lowering: Lowering, equation: Any, value: Batched) -> Batched:
    shape, parameters = _shape(equation), equation.params
    strides = parameters["strides"] or (1,) * len(shape)
    axes = range(1, len(shape) + 1)
    bounds = (parameters["start_indices"], parameters["limit_indices"], axes, strides)
    whole = lowering.full(value, shape).name
    name = lowering.emit("Slice", whole, *(lowering.integers(*numbers) for numbers in bounds))
    return Batched(name, _result(equation))


def _transpose(lowering: Lowering, equation: Any, value: Batched) -> Batched:
    whole = lowering.full(value, _shape(equation))
    return lowering.transpose(whole, equation.params["permutation"])


def _product(lowering: Lowering, equation: Any, left: Value, right: Value) -> Batched:
    (contracted, batched) = equation.params["dimension_numbers"]
    if any(batched) or any(len(axes) != 1 for axes in contracted):
        raise UnsupportedOperator("a product over several axes at once")
    (left_axis,), (right_axis,) = contracted
    left = _axis_last(lowering, left, _shape(equation), left_axis)
    right = _axis_last(lowering, right, _shape(equation, 1), right_axis)
    rows, columns = left.shape[:-1], right.shape[:-1]
    if not isinstance(right, Batched):
        product = _times_known(lowering, left, right)
    elif not isinstance(left, Batched):
        product = _times_known(lowering, right, left)
        if rows and columns:
            # (columns..., rows) -> (rows, columns...)
            product = lowering.transpose(product, (len(columns), *range(len(columns))))
    else:
        size = left.shape[-1]
        left = lowering.reshape(left, (math.prod(rows), size))
        right = lowering.reshape(right, (math.prod(columns), size))
        name = lowering.emit("MatMul", left.name, lowering.transpose(right, (1, 0)).name)
        product = Batched(name, (math.prod(rows), math.prod(columns)))
    return lowering.reshape(product, _result(equation))


def _axis_last(lowering: Lowering, value: Value, shape: tuple[int, ...], axis: int) -> Value:
    if not isinstance(value, Batched):
        return np.moveaxis(np.asarray(value), axis, -1)
    order = [*(a for a in range(len(shape)) if a != axis), axis]
    return lowering.transpose(lowering.full(value, shape), order)


def _times_known(lowering: Lowering, value: Batched, known: np.ndarray) -> Batched:
    """Over the last axis of both; the other axes of `known` become one."""
    matrix = known.reshape(-1, known.shape[-1]).T
    name = lowering.emit("MatMul", value.name, lowering.name(matrix))
    return Batched(name, (*value.shape[:-1], matrix.shape[1]))


def _dynamic_slice(lowering: Lowering, equation: Any, operand: Value, *starts: Value) -> Batched:
    shape, sizes = _shape(equation), equation.params["slice_sizes"]
    moving = [axis for axis, start in enumerate(starts) if isinstance(start, Batched)]
    whole = all(size == sizes[axis] for axis, size in enumerate(shape) if axis not in moving)
    if len(moving) != 1 or not whole or sizes[moving[0]] != 1:
        raise UnsupportedOperator("a slice that is no single row")
    (axis,) = moving
    row = _row(lowering, operand, shape, axis, starts[axis])
    return lowering.reshape(row, _result(equation))


def _gather(lowering: Lowering, equation: Any, operand: Value, indices: Value) -> Batched:
    numbers, shape = equation.params["dimension_numbers"], _shape(equation)
    sizes = equation.params["slice_sizes"]
    one_axis = len(numbers.start_index_map) == 1 and not numbers.operand_batching_dims
    if not one_axis or numbers.collapsed_slice_dims != numbers.start_index_map:
        raise UnsupportedOperator("a lookup over several axes at once")
    (axis,) = numbers.start_index_map
    if any(size != sizes[a] for a, size in enumerate(shape) if a != axis):
        raise UnsupportedOperator("a lookup of parts of rows")
    places, result = _shape(equation, 1)[:-1], _result(equation)
    if isinstance(indices, Batched):
        if places:
            raise UnsupportedOperator("several lookups at once")
        index = lowering.reshape(lowering.full(indices, (1,)), ())
        return _row(lowering, operand, shape, axis, index)
    expected = range(axis, axis + len(places))
    if tuple(numbers.offset_dims) != tuple(a for a in range(len(result)) if a not in expected):
        raise UnsupportedOperator("a lookup that moves axes")
    chosen = np.clip(np.asarray(indices)[..., 0], 0, shape[axis] - 1)
    whole = lowering.full(operand, shape).name
    name = lowering.emit("Gather", whole, lowering.name(chosen), axis=axis + 1)
    return Batched(name, result)


def _row(
    lowering: Lowering, operand: Value, shape: tuple[int, ...], axis: int, index: Batched
) -> Batched:
    """operand[..., index, ...] with one index for each example; clipped into the axis."""
    at_least_0 = _maximum(lowering, None, np.int64(0), index)
    index = _minimum(lowering, None, np.int64(shape[axis] - 1), at_least_0)
    rest = shape[:axis] + shape[axis + 1 :]
    if not isinstance(operand, Batched):
        rows = lowering.name(np.moveaxis(np.asarray(operand), axis, 0))
        return Batched(lowering.emit("Gather", rows, index.name, axis=0), rest)
    order = [axis, *(a for a in range(len(shape)) if a != axis)]
    rows = lowering.transpose(lowering.full(operand, shape), order).name
    column = lowering.reshape(index, (1,)).name
    return Batched(lowering.emit("GatherND", rows, column, batch_dims=1), rest)


def _power(value: Any, *, y: int) -> Any:
    product = functools.reduce(operator.mul, [value] * abs(y))
    return product if y > 0 else 1 / product


def _parts(value: Any, *, sizes: Sequence[int], axis: int) -> list[Any]:
    ends = itertools.accumulate(sizes)
    return [jax.lax.slice_in_dim(value, e - n, e, axis=axis) for n, e in zip(sizes, ends)]  # noqa: B905


# Of operators that others of JAX express: traced in their place, with their parameters.
EQUIVALENTS: Mapping[str, Callable[..., Any]] = {
    "square": lambda value: value * value,
    "integer_pow": _power,
    "log1p": lambda value, **_: jnp.log(value + 1),
    "expm1": lambda value, **_: jnp.exp(value) - 1,
    "ne": lambda left, right: ~(left == right),
    "split": _parts,
    "clamp": lambda low, value, high: jax.lax.min(high, jax.lax.max(low, value)),
}

RULES: Mapping[str, Callable[..., Any]] = {
    **{
        name: _plain(name.capitalize())
        for name in (
            *("abs", "add", "and", "ceil", "cos", "erf", "exp", "floor", "log", "mul", "neg"),
            *("not", "or", "pow", "sign", "sin", "sqrt", "sub", "tanh"),
        )
    },
    "add_any": _plain("Add"),
    "eq": _plain("Equal"),
    "ge": _plain("GreaterOrEqual"),
    "gt": _plain("Greater"),
    "le": _plain("LessOrEqual"),
    "logistic": _plain("Sigmoid"),
    "copy": _same,
    "stop_gradient": _same,
    "lt": _less,
    "max": _maximum,
    "min": _minimum,
    "div": _divide,
    "rsqrt": _inverse_root,
    "rem": _remainder,
    "round": _round,
    "select_n": _select,
    "convert_element_type": _convert,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax", "Max"),
    "reduce_min": _reduce("ReduceMin", "Min"),
    "reduce_prod": _reduce("ReduceProd"),
    "argmax": _first_extreme("ArgMax"),
    "argmin": _first_extreme("ArgMin"),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "transpose": _transpose,
    "dot_general": _product,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
}
