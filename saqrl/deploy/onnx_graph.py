"""A JAX function of one example as a short list of ONNX operators over a batch.

The function is traced once. What depends on weights alone is computed now and becomes a constant;
what depends on an input gets a batch axis in front. Actors, quantizers and scalings therefore need
no exporter of their own: one whose operators are in RULES can be exported, one that has others is
refused by their names. Random draws become named inputs, so the graph itself is deterministic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Attributes = Mapping[str, int | float | tuple[int, ...]]

# Draws of jax.random by the name under which they are traced.
DRAWS = {"_gumbel": "gumbel", "_normal": "normal", "_uniform": "uniform"}


@dataclass(frozen=True)
class Node:
    """One operator of ONNX's opset 18."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


@dataclass(frozen=True)
class Tensor:
    """An input or output of one example; in the graph a batch axis comes first."""

    shape: tuple[int, ...]
    dtype: str
    distribution: str | None = None
    """Of an input that is noise: gumbel, normal or uniform (in [0, 1))."""


@dataclass
class Graph:
    """Operators in the order in which they run."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)


class UnsupportedOperator(ValueError):
    """The function uses an operator that has no rule here; the text names it."""


@dataclass(frozen=True)
class Batched:
    """A value that depends on the inputs. Axes of size 1 may stand for longer ones."""

    name: str
    shape: tuple[int, ...]


class _Draw:
    """A random key: nothing but a draw may look at it."""


Value = Any  # a Batched, a _Draw, or an array that is known now


def trace(
    function: Callable[..., Any],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    outputs: Sequence[str],
    *,
    draws: bool = False,
) -> Graph:
    """The graph of `function(*inputs)`, or of `function(*inputs, key)` with `draws`.

    `outputs` names what it returns, in order. UnsupportedOperator where a rule is missing.
    """
    key = (jax.eval_shape(lambda: jax.random.key(0)),) if draws else ()
    closed = jax.make_jaxpr(function)(*inputs.values(), *key)
    lowering = _Lowering()
    arguments: list[Value] = []
    for name, struct in inputs.items():
        lowering.graph.inputs[name] = Tensor(tuple(struct.shape), _dtype_name(struct.dtype))
        arguments.append(Batched(name, tuple(struct.shape)))
    arguments += [_Draw() for _ in key]
    results = lowering.run(closed.jaxpr, closed.consts, arguments)
    for name, variable, value in zip(outputs, closed.jaxpr.outvars, results, strict=True):
        shape = tuple(variable.aval.shape)
        whole = lowering.full(value, shape)
        lowering.graph.nodes.append(Node("Identity", (whole,), name, {}))
        lowering.graph.outputs[name] = Tensor(shape, _dtype_name(variable.aval.dtype))
    _normalize_in_one(lowering.graph)
    _log_softmax_in_one(lowering.graph)
    _drop_unused(lowering.graph)
    _name_outputs(lowering.graph)
    return lowering.graph


def draws_of(function: Callable[..., Any], *arguments: Any) -> list[jax.Array]:
    """What the random draws inside `function(*arguments)` come out as, in the graph's order."""
    closed = jax.make_jaxpr(function)(*arguments)
    found: list[jax.Array] = []
    _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), found)
    return found


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], found: list[Any]) -> Any:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for equation in jaxpr.eqns:
        values = [known[v] if not hasattr(v, "val") else v.val for v in equation.invars]
        inner = _inner(equation)
        if inner is None:
            results = _bind(equation, values)
        elif equation.params.get("name") in DRAWS:
            results = _evaluate(inner.jaxpr, inner.consts, values, [])
            found.extend(results)
        else:
            results = _evaluate(inner.jaxpr, inner.consts, values, found)
        known.update(zip(equation.outvars, results, strict=True))
    return [known[v] if not hasattr(v, "val") else v.val for v in jaxpr.outvars]


def _inner(equation: Any) -> Any:
    """The function that an equation only calls, or None."""
    for name in ("jaxpr", "call_jaxpr"):
        if equation.primitive.name in _CALLS and name in equation.params:
            return equation.params[name]
    return None


_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")


def _bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    results = equation.primitive.bind(*values, **equation.params)
    return list(results) if equation.primitive.multiple_results else [results]


def _dtype_name(dtype: Any) -> str:
    """Every integer of a graph is int64, which is what ONNX's indices are."""
    return "int64" if jnp.issubdtype(dtype, jnp.integer) else np.dtype(dtype).name


def _drop_unused(graph: Graph) -> None:
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    graph.nodes[:] = reversed(kept)
    graph.constants = {name: a for name, a in graph.constants.items() if name in needed}


def _name_outputs(graph: Graph) -> None:
    """Where a value is only copied to an output, its operator writes the output itself."""
    copied = {node.inputs[0]: node.output for node in graph.nodes if node.op == "Identity"}
    made = {node.output for node in graph.nodes}
    named = {
        inner: outer
        for inner, outer in copied.items()
        if inner in made and inner not in graph.outputs and outer in graph.outputs
    }
    graph.nodes[:] = [
        replace(
            node,
            inputs=tuple(named.get(name, name) for name in node.inputs),
            output=named.get(node.output, node.output),
        )
        for node in graph.nodes
        if not (node.op == "Identity" and named.get(node.inputs[0]) == node.output)
    ]


_CENTRED = ("Sub", "signal", ("Div", ("ReduceSum", "signal", "axes"), "width"))
_VARIANCE = ("Div", ("ReduceSumSquare", _CENTRED, "axes"), "width")
_NORMAL = ("Mul", _CENTRED, ("Reciprocal", ("Sqrt", ("Add", _VARIANCE, "epsilon"))))
# `nn.normalize` with its scale and offset; names stand for whatever is there.
_LAYER_NORM = ("Add", ("Mul", _NORMAL, "scale"), "offset")


def _normalize_in_one(graph: Graph) -> None:
    """Replace the dozen operators of each layer normalisation by the one that ONNX has."""
    made_by = {node.output: node for node in graph.nodes}
    for position, node in enumerate(graph.nodes):
        found: dict[str, str] = {}
        if not _matches(_LAYER_NORM, node.output, made_by, found):
            continue
        known = {k: graph.constants.get(v) for k, v in found.items()}
        width, axes, epsilon = known["width"], known["axes"], known["epsilon"]
        if width is None or axes is None or epsilon is None or axes.tolist() != [1]:
            continue
        if any(k is None or k.shape != (int(width),) for k in (known["scale"], known["offset"])):
            continue
        inputs = (found["signal"], found["scale"], found["offset"])
        attributes = {"axis": -1, "epsilon": float(epsilon)}
        graph.nodes[position] = Node("LayerNormalization", inputs, node.output, attributes)


_SHIFTED = ("Sub", "signal", ("ReduceMax", "signal", "axes"))
# `jax.nn.log_softmax`.
_LOG_SOFTMAX = ("Sub", _SHIFTED, ("Log", ("ReduceSum", ("Exp", _SHIFTED), "axes")))


def _log_softmax_in_one(graph: Graph) -> None:
    made_by = {node.output: node for node in graph.nodes}
    for position, node in enumerate(graph.nodes):
        found: dict[str, str] = {}
        if not _matches(_LOG_SOFTMAX, node.output, made_by, found):
            continue
        if graph.constants[found["axes"]].tolist() == [1]:
            inputs = (found["signal"],)
            graph.nodes[position] = Node("LogSoftmax", inputs, node.output, {"axis": -1})


def _matches(pattern: Any, name: str, made_by: Mapping[str, Node], found: dict[str, str]) -> bool:
    """Whether the value is made as the pattern says; what its names stand for goes to `found`."""
    if isinstance(pattern, str):
        return found.setdefault(pattern, name) == name
    node = made_by.get(name)
    if node is None or node.op != pattern[0] or len(node.inputs) != len(pattern) - 1:
        return False
    return all(
        _matches(part, given, made_by, found)
        for part, given in zip(pattern[1:], node.inputs, strict=True)
    )


class _Lowering:
    def __init__(self) -> None:
        self.graph = Graph()
        self._emitted: dict[tuple[Any, ...], str] = {}
        self._made: dict[str, Node] = {}
        self._reshaped: dict[str, Batched] = {}
        self.bounds: dict[str, tuple[float, float]] = {}
        """What a value is at least and at most, where that is known."""
        self.reduced_vectors: set[str] = set()
        """Numbers that a whole vector was reduced to."""
        self.stacked: dict[str, tuple[int, tuple[Value, ...]]] = {}
        """Axis and parts of values that were stacked."""
        self._constants: dict[tuple[Any, ...], str] = {}

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        for equation in jaxpr.eqns:
            values = [known[v] if not hasattr(v, "val") else v.val for v in equation.invars]
            results = self._apply(equation, values)
            known.update(zip(equation.outvars, results, strict=True))
        return [known[v] if not hasattr(v, "val") else v.val for v in jaxpr.outvars]

    def _apply(self, equation: Any, values: list[Value]) -> list[Value]:
        name, inner = equation.primitive.name, _inner(equation)
        keyed = any(isinstance(value, _Draw) for value in values)
        if keyed and equation.params.get("name") in DRAWS:
            return [self._noise(equation, values)]
        if inner is not None:
            return self.run(inner.jaxpr, inner.consts, values)
        if keyed:
            if not all(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in equation.outvars):
                raise UnsupportedOperator(
                    f"the operator {name} of a random key; draws that can be exported are "
                    f"{', '.join(DRAWS.values())}"
                )
            return [_Draw() for _ in equation.outvars]
        if not any(isinstance(value, Batched) for value in values):
            return _bind(equation, values)
        if name not in RULES:
            raise UnsupportedOperator(f"the operator {name}")
        result = RULES[name](self, equation, *values)
        return result if isinstance(result, list) else [result]

    def _noise(self, equation: Any, values: Sequence[Value]) -> Batched:
        distribution = DRAWS[equation.params["name"]]
        if distribution == "uniform" and [float(v) for v in values[1:]] != [0.0, 1.0]:
            raise UnsupportedOperator("a uniform draw outside [0, 1)")
        taken = sum(tensor.distribution is not None for tensor in self.graph.inputs.values())
        name = "noise" if not taken else f"noise{taken + 1}"
        shape = tuple(equation.outvars[0].aval.shape)
        self.graph.inputs[name] = Tensor(shape, "float32", distribution)
        return Batched(name, shape)

    def emit(self, op: str, *inputs: str, **attributes: int | tuple[int, ...]) -> str:
        """The name of the operator's output; the same operator is not written twice."""
        key = (op, inputs, tuple(sorted(attributes.items())))
        if key not in self._emitted:
            output = f"{op.lower()}_{len(self._emitted)}"
            self._made[output] = Node(op, inputs, output, attributes)
            self.graph.nodes.append(self._made[output])
            self._emitted[key] = output
        return self._emitted[key]

    def made_by(self, value: Value, op: str) -> Node | None:
        """The operator that makes the value, if it is of this kind."""
        node = self._made.get(value.name) if isinstance(value, Batched) else None
        return node if node is not None and node.op == op else None

    def name(self, value: Value) -> str:
        """Of a value in the graph; a known array becomes a constant."""
        if isinstance(value, Batched):
            return value.name
        array = np.asarray(value)
        array = array.astype(_dtype_name(array.dtype))
        key = (array.shape, array.dtype.str, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.graph.constants[self._constants[key]] = array
        return self._constants[key]

    def integers(self, *numbers: int) -> str:
        return self.name(np.asarray(numbers, np.int64))

    def full(self, value: Value, shape: tuple[int, ...]) -> str:
        """The name of the value with every axis of one example as long as it says."""
        if not isinstance(value, Batched):
            return self.emit("Expand", self.name(value), self.integers(1, *shape))
        if value.shape == shape:
            return value.name
        return self.emit("Expand", value.name, self.integers(1, *shape))

    def reshape(self, value: Batched, shape: Sequence[int]) -> Batched:
        """The same numbers in another shape; reshaping twice is reshaping once."""
        source, wanted = self._reshaped.get(value.name, value), tuple(shape)
        if source.shape == wanted:
            return source
        if wanted == (1,) and source.name in self.reduced_vectors:
            node = self._made[source.name]
            return Batched(self.emit(node.op, *node.inputs, keepdims=1), wanted)
        # 0 stands for the batch's own size.
        result = Batched(self.emit("Reshape", source.name, self.integers(0, *wanted)), wanted)
        self._reshaped[result.name] = source
        if source.name in self.bounds:
            self.bounds[result.name] = self.bounds[source.name]
        return result


def _shape(equation: Any, position: int = 0) -> tuple[int, ...]:
    return tuple(equation.invars[position].aval.shape)


def _result(equation: Any) -> tuple[int, ...]:
    return tuple(equation.outvars[0].aval.shape)


def _elementwise(lowering: _Lowering, op: str, values: Sequence[Value]) -> Batched:
    rank = max(len(v.shape) if isinstance(v, Batched) else np.ndim(v) for v in values)
    aligned = [
        lowering.reshape(v, (1,) * rank) if isinstance(v, Batched) and len(v.shape) < rank else v
        for v in values
    ]
    shape = np.broadcast_shapes(
        *(np.shape(v) if not isinstance(v, Batched) else v.shape for v in aligned)
    )
    return Batched(lowering.emit(op, *map(lowering.name, aligned)), shape)


def _number(value: Value) -> float | None:
    """Of a value that is one known number."""
    return float(value) if not isinstance(value, Batched) and np.ndim(value) == 0 else None


def _bounds(lowering: _Lowering, value: Batched) -> tuple[float, float]:
    return lowering.bounds.get(value.name, (-np.inf, np.inf))


def _less(lowering: _Lowering, equation: Any, left: Value, right: Value) -> Value:
    # Indexing by a code asks first whether it counts from the end. An argmax never does.
    number = _number(right)
    if isinstance(left, Batched) and number is not None and _bounds(lowering, left)[0] >= number:
        return np.False_
    return _elementwise(lowering, "Less", (left, right))


def _plain(op: str) -> Callable[..., Batched]:
    return lambda lowering, equation, *values: _elementwise(lowering, op, values)


def _same(lowering: _Lowering, equation: Any, value: Value) -> Value:
    return value


def _maximum(lowering: _Lowering, equation: Any, left: Value, right: Value) -> Batched:
    for known, other in ((left, right), (right, left)):
        if (number := _number(known)) is None or not isinstance(other, Batched):
            continue
        low, high = _bounds(lowering, other)
        if low >= number:
            return other
        if number == 0 and np.asarray(known).dtype.kind == "f":
            result = Batched(lowering.emit("Relu", other.name), other.shape)
        else:
            result = _elementwise(lowering, "Max", (known, other))
        lowering.bounds[result.name] = number, max(high, number)
        return result
    return _elementwise(lowering, "Max", (left, right))


def _minimum(lowering: _Lowering, equation: Any, left: Value, right: Value) -> Batched:
    for known, other in ((left, right), (right, left)):
        if (number := _number(known)) is None or not isinstance(other, Batched):
            continue
        low, high = _bounds(lowering, other)
        if high <= number:
            return other
        limited = lowering.made_by(other, "Max")
        floating = np.asarray(known).dtype.kind == "f"
        if limited is not None and floating and -np.inf < low <= number:
            # The known limit comes first, as it does here.
            limit, signal = limited.inputs
            name = lowering.emit("Clip", signal, limit, lowering.name(known))
            result = Batched(name, other.shape)
        else:
            result = _elementwise(lowering, "Min", (known, other))
        lowering.bounds[result.name] = min(low, number), number
        return result
    return _elementwise(lowering, "Min", (left, right))


def _divide(lowering: _Lowering, equation: Any, left: Value, right: Value) -> Value:
    return left if _number(right) == 1 else _elementwise(lowering, "Div", (left, right))


def _square(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    return _elementwise(lowering, "Mul", (value, value))


def _integer_power(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    if equation.params["y"] == 2:
        return _square(lowering, equation, value)
    return _elementwise(lowering, "Pow", (value, np.float32(equation.params["y"])))


def _inverse_root(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    root = lowering.emit("Sqrt", value.name)
    return Batched(lowering.emit("Reciprocal", root), value.shape)


def _log_of_one_plus(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    return _elementwise(lowering, "Log", (_elementwise(lowering, "Add", (value, np.float32(1))),))


def _exp_minus_one(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    return _elementwise(lowering, "Sub", (_elementwise(lowering, "Exp", (value,)), np.float32(1)))


def _not_equal(lowering: _Lowering, equation: Any, left: Value, right: Value) -> Batched:
    equal = _elementwise(lowering, "Equal", (left, right))
    return Batched(lowering.emit("Not", equal.name), equal.shape)


def _remainder(lowering: _Lowering, equation: Any, left: Value, right: Value) -> Batched:
    # fmod 1: the sign of the dividend, as in C and in lax.rem.
    plain = _elementwise(lowering, "Add", (left, right))
    name = lowering.emit("Mod", lowering.name(left), lowering.name(right), fmod=1)
    return Batched(name, plain.shape)


def _round(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    if int(equation.params["rounding_method"]) != 1:
        raise UnsupportedOperator("rounding half away from zero")
    return _elementwise(lowering, "Round", (value,))


def _clamp(lowering: _Lowering, equation: Any, low: Value, value: Value, high: Value) -> Batched:
    return _minimum(lowering, equation, high, _maximum(lowering, equation, low, value))


def _select(lowering: _Lowering, equation: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2:
        raise UnsupportedOperator(f"a choice among {len(cases)} cases")
    if not isinstance(which, Batched) and np.all(which) == np.any(which):
        return cases[int(np.all(which))]
    return _elementwise(lowering, "Where", (which, cases[1], cases[0]))


_CASTS = {"float32": 1, "int64": 7, "bool": 9}  # onnx.TensorProto's numbers


def _convert(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    before = _dtype_name(equation.invars[0].aval.dtype)
    after = _dtype_name(equation.params["new_dtype"])
    if before == after:
        return value
    if after not in _CASTS:
        raise UnsupportedOperator(f"numbers of type {after}")
    return Batched(lowering.emit("Cast", value.name, to=_CASTS[after]), value.shape)


def _reduce(op: str) -> Callable[..., Batched]:
    def rule(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
        axes = lowering.integers(*(axis + 1 for axis in equation.params["axes"]))
        whole = lowering.full(value, _shape(equation))
        operator = op
        product = lowering.made_by(Batched(whole, _shape(equation)), "Mul")
        if op == "ReduceSum" and product is not None and len(set(product.inputs)) == 1:
            operator, whole = "ReduceSumSquare", product.inputs[0]
        name = lowering.emit(operator, whole, axes, keepdims=0)
        if len(_shape(equation)) == 1:
            lowering.reduced_vectors.add(name)
        return Batched(name, _result(equation))

    return rule


def _reduce_extreme(op: str, pairwise: str) -> Callable[..., Batched]:
    along = _reduce(op)

    def rule(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
        axis, parts = lowering.stacked.get(value.name, (None, ()))
        if parts and tuple(equation.params["axes"]) == (axis,):
            return _elementwise(lowering, pairwise, parts)
        return along(lowering, equation, value)

    return rule


def _first_extreme(op: str) -> Callable[..., Batched]:
    def rule(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
        (axis,) = equation.params["axes"]
        whole = lowering.full(value, _shape(equation))
        name = lowering.emit(op, whole, axis=axis + 1, keepdims=0)
        lowering.bounds[name] = 0, _shape(equation)[axis] - 1
        return Batched(name, _result(equation))

    return rule


def _broadcast(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    # Left as short as it is: what reads it broadcasts, or asks for the whole.
    shape = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = size
    return lowering.reshape(value, shape)


def _reshape(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    whole = Batched(lowering.full(value, _shape(equation)), _shape(equation))
    return lowering.reshape(whole, _result(equation))


def _concatenate(lowering: _Lowering, equation: Any, *values: Value) -> Batched:
    first = next(v for v in values if isinstance(v, Batched))
    names = []
    for position, value in enumerate(values):
        shape = _shape(equation, position)
        if isinstance(value, Batched):
            names.append(lowering.full(value, shape))
        else:
            names.append(_repeated(lowering, value, shape, first))
    axis = equation.params["dimension"] + 1
    return Batched(lowering.emit("Concat", *names, axis=axis), _result(equation))


def _repeated(lowering: _Lowering, value: Value, shape: tuple[int, ...], like: Batched) -> str:
    """A constant once for every row of the batch of `like`."""
    batch = lowering.emit("Shape", like.name, start=0, end=1)
    whole = lowering.emit("Concat", batch, lowering.integers(*shape), axis=0) if shape else batch
    return lowering.emit("Expand", lowering.name(np.asarray(value)[None]), whole)


def _stack(lowering: _Lowering, equation: Any, *values: Value) -> Batched:
    first = next(v for v in values if isinstance(v, Batched))
    axis, names = equation.params["axis"], []
    for position, value in enumerate(values):
        shape = _shape(equation, position)
        if isinstance(value, Batched):
            name = lowering.full(value, shape)
        else:
            name = _repeated(lowering, value, shape, first)
        whole = Batched(name, shape)
        names.append(lowering.reshape(whole, (*shape[:axis], 1, *shape[axis:])).name)
    name = lowering.emit("Concat", *names, axis=axis + 1)
    lowering.stacked[name] = axis, values
    return Batched(name, _result(equation))


def _slice(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    shape, parameters = _shape(equation), equation.params
    axes = tuple(range(1, len(shape) + 1))
    strides = parameters["strides"] or (1,) * len(shape)
    name = lowering.emit(
        "Slice",
        lowering.full(value, shape),
        lowering.integers(*parameters["start_indices"]),
        lowering.integers(*parameters["limit_indices"]),
        lowering.integers(*axes),
        lowering.integers(*strides),
    )
    return Batched(name, _result(equation))


def _split(lowering: _Lowering, equation: Any, value: Batched) -> list[Batched]:
    whole, axis = lowering.full(value, _shape(equation)), equation.params["axis"]
    parts, start = [], 0
    for size, variable in zip(equation.params["sizes"], equation.outvars, strict=True):
        bounds = (lowering.integers(n) for n in (start, start + size, axis + 1, 1))
        parts.append(Batched(lowering.emit("Slice", whole, *bounds), tuple(variable.aval.shape)))
        start += size
    return parts


def _transpose(lowering: _Lowering, equation: Any, value: Batched) -> Batched:
    order = (0, *(axis + 1 for axis in equation.params["permutation"]))
    whole = lowering.full(value, _shape(equation))
    return Batched(lowering.emit("Transpose", whole, perm=order), _result(equation))


def _product(lowering: _Lowering, equation: Any, left: Value, right: Value) -> Batched:
    (contracted, batched) = equation.params["dimension_numbers"]
    if any(batched) or any(len(axes) != 1 for axes in contracted):
        raise UnsupportedOperator("a product over several axes at once")
    shapes = [_shape(equation, position) for position in (0, 1)]
    free = [
        tuple(size for axis, size in enumerate(shape) if axis != axes[0])
        for shape, axes in zip(shapes, contracted, strict=True)
    ]
    size = shapes[0][contracted[0][0]]
    # The contracted axis last: a known side as (rows, size), one in the graph as it is.
    sides: list[Value] = []
    for value, shape, axes, rest in zip((left, right), shapes, contracted, free, strict=True):
        order = (*(axis for axis in range(len(shape)) if axis != axes[0]), axes[0])
        if not isinstance(value, Batched):
            sides.append(np.asarray(value).transpose(order).reshape(int(np.prod(rest)), size))
            continue
        name = lowering.full(value, shape)
        if order != tuple(sorted(order)):
            name = lowering.emit("Transpose", name, perm=(0, *(axis + 1 for axis in order)))
        sides.append(Batched(name, tuple(shape[axis] for axis in order)))
    first, second = sides
    plain: tuple[int, ...]
    if isinstance(first, Batched) and not isinstance(second, Batched):
        name = lowering.emit("MatMul", first.name, lowering.name(second.T))
        plain = (*free[0], len(second))
    elif isinstance(second, Batched) and not isinstance(first, Batched):
        name = lowering.emit("MatMul", second.name, lowering.name(first.T))
        plain = (*free[1], len(first))
        if free[0] and free[1]:
            # (batch, right..., left) -> (batch, left, right...)
            turn = (0, len(plain), *range(1, len(plain)))
            name = lowering.emit("Transpose", name, perm=turn)
            plain = (plain[-1], *plain[:-1])
    else:
        heights = [int(np.prod(rest)) for rest in free]
        one = lowering.reshape(first, (heights[0], size))
        two = lowering.reshape(second, (heights[1], size))
        turned = lowering.emit("Transpose", two.name, perm=(0, 2, 1))
        name, plain = lowering.emit("MatMul", one.name, turned), (heights[0], heights[1])
    result = _result(equation)
    return lowering.reshape(Batched(name, plain), result)


def _dynamic_slice(lowering: _Lowering, equation: Any, operand: Value, *starts: Value) -> Batched:
    shape, sizes = _shape(equation), equation.params["slice_sizes"]
    moving = [axis for axis, start in enumerate(starts) if isinstance(start, Batched)]
    whole = all(size == sizes[axis] for axis, size in enumerate(shape) if axis not in moving)
    if len(moving) != 1 or not whole or sizes[moving[0]] != 1:
        raise UnsupportedOperator("a slice that is no single row")
    (axis,) = moving
    row = _row(lowering, operand, shape, axis, starts[axis])
    return lowering.reshape(row, _result(equation))


def _row(
    lowering: _Lowering, operand: Value, shape: tuple[int, ...], axis: int, index: Batched
) -> Batched:
    """operand[..., index, ...] with one index for each example; clipped into the axis."""
    bounds = (np.int64(0), np.int64(shape[axis] - 1))
    within = _clamp(lowering, None, bounds[0], index, bounds[1])
    rest = shape[:axis] + shape[axis + 1 :]
    if not isinstance(operand, Batched):
        rows = lowering.name(np.moveaxis(np.asarray(operand), axis, 0))
        flat = lowering.emit("Gather", rows, within.name, axis=0)
        return Batched(flat, rest)
    name = lowering.full(operand, shape)
    if axis:
        order = (axis, *(a for a in range(len(shape)) if a != axis))
        name = lowering.emit("Transpose", name, perm=(0, *(a + 1 for a in order)))
    column = lowering.reshape(within, (1,))
    return Batched(lowering.emit("GatherND", name, column.name, batch_dims=1), rest)


def _gather(lowering: _Lowering, equation: Any, operand: Value, indices: Value) -> Batched:
    numbers, shape = equation.params["dimension_numbers"], _shape(equation)
    sizes = equation.params["slice_sizes"]
    one_axis = len(numbers.start_index_map) == 1 and not numbers.operand_batching_dims
    if not one_axis or numbers.collapsed_slice_dims != numbers.start_index_map:
        raise UnsupportedOperator("a lookup over several axes at once")
    (axis,) = numbers.start_index_map
    if any(size != sizes[a] for a, size in enumerate(shape) if a != axis):
        raise UnsupportedOperator("a lookup of parts of rows")
    places, result = _shape(equation, 1)[:-1], _result(equation)
    if not isinstance(indices, Batched):
        chosen = np.clip(np.asarray(indices)[..., 0], 0, shape[axis] - 1)
        expected = tuple(range(axis, axis + len(places)))
        outside = tuple(a for a in range(len(result)) if a not in expected)
        if tuple(numbers.offset_dims) != outside:
            raise UnsupportedOperator("a lookup that moves axes")
        whole = lowering.full(operand, shape)
        name = lowering.emit("Gather", whole, lowering.name(chosen), axis=axis + 1)
        return Batched(name, result)
    if places:
        raise UnsupportedOperator("several lookups at once")
    index = lowering.reshape(Batched(lowering.full(indices, (1,)), (1,)), ())
    return _row(lowering, operand, shape, axis, index)


RULES: Mapping[str, Callable[..., Any]] = {
    **{
        name: _plain(op)
        for name, op in {
            "abs": "Abs",
            "add": "Add",
            "add_any": "Add",
            "and": "And",
            "ceil": "Ceil",
            "cos": "Cos",
            "eq": "Equal",
            "erf": "Erf",
            "exp": "Exp",
            "floor": "Floor",
            "ge": "GreaterOrEqual",
            "gt": "Greater",
            "le": "LessOrEqual",
            "log": "Log",
            "logistic": "Sigmoid",
            "mul": "Mul",
            "neg": "Neg",
            "not": "Not",
            "or": "Or",
            "pow": "Pow",
            "sign": "Sign",
            "sin": "Sin",
            "sqrt": "Sqrt",
            "sub": "Sub",
            "tanh": "Tanh",
        }.items()
    },
    "copy": _same,
    "stop_gradient": _same,
    "lt": _less,
    "max": _maximum,
    "min": _minimum,
    "div": _divide,
    "square": _square,
    "integer_pow": _integer_power,
    "rsqrt": _inverse_root,
    "log1p": _log_of_one_plus,
    "expm1": _exp_minus_one,
    "ne": _not_equal,
    "rem": _remainder,
    "round": _round,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce_extreme("ReduceMax", "Max"),
    "reduce_min": _reduce_extreme("ReduceMin", "Min"),
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
    "split": _split,
    "transpose": _transpose,
    "dot_general": _product,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
}
