"""Runs a JAX function once and keeps what depends on its inputs as a graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from saqrl.deploy.graph import Graph, Node, Tensor, UnsupportedOperator
from saqrl.deploy.graph.lowering import EQUIVALENTS, RULES, Batched, Lowering, Value, dtype_name
from saqrl.deploy.graph.rewriting import rewrite

# Draws of jax.random by the name under which they are traced.
DRAWS = {"_gumbel": "gumbel", "_normal": "normal", "_uniform": "uniform"}

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")


class _Key:
    """A random key: nothing but a draw may look at it."""


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
    graph = Graph({name: _tensor(struct) for name, struct in inputs.items()})
    lowering = Lowering(graph)
    arguments: list[Value] = [Batched(name, t.shape) for name, t in graph.inputs.items()]
    arguments += [_Key() for _ in key]
    results = _interpret(closed, arguments, lambda *step: _lower(lowering, *step))
    for name, variable, value in zip(outputs, closed.jaxpr.outvars, results, strict=True):
        graph.outputs[name] = _tensor(variable.aval)
        whole = lowering.full(value, graph.outputs[name].shape)
        graph.nodes.append(Node("Identity", (whole.name,), name, {}))
    rewrite(graph)
    return graph


def draws_of(function: Callable[..., Any], *arguments: Any) -> list[jax.Array]:
    """What the random draws inside `function(*arguments)` come out as, in the graph's order."""
    found: list[jax.Array] = []

    def apply(equation: Any, values: list[Any]) -> Sequence[Any]:
        if equation.params.get("name") in DRAWS:
            drawn = _bind(equation, values)
            found.extend(drawn)
            return drawn
        inner = _called(equation)
        return _bind(equation, values) if inner is None else _interpret(inner, values, apply)

    _interpret(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments), apply)
    return found


def _interpret(
    closed: Any, arguments: Sequence[Any], apply: Callable[[Any, list[Any]], Sequence[Any]]
) -> list[Any]:
    """Evaluate a closed jaxpr, each equation as `apply` says."""
    jaxpr = closed.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))

    def read(variables: Sequence[Any]) -> list[Any]:
        return [v.val if isinstance(v, Literal) else known[v] for v in variables]

    for equation in jaxpr.eqns:
        results = apply(equation, read(equation.invars))
        known.update(zip(equation.outvars, results, strict=True))
    return read(jaxpr.outvars)


def _lower(lowering: Lowering, equation: Any, values: list[Value]) -> Sequence[Value]:
    """The equation's results: known ones computed, others written into the graph."""
    name = equation.primitive.name
    keyed = any(isinstance(value, _Key) for value in values)
    if keyed and equation.params.get("name") in DRAWS:
        return [_noise(lowering.graph, equation, values)]
    inner = _called(equation)
    if inner is None and not keyed:
        if not any(isinstance(value, Batched) for value in values):
            return _bind(equation, values)
        if name in EQUIVALENTS:
            inner = jax.make_jaxpr(lambda *given: EQUIVALENTS[name](*given, **equation.params))(
                *(variable.aval for variable in equation.invars)
            )
    if inner is not None:
        return _interpret(inner, values, lambda *step: _lower(lowering, *step))
    if keyed:
        if not all(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in equation.outvars):
            raise UnsupportedOperator(
                f"the operator {name} of a random key; draws that can be exported are "
                f"{', '.join(DRAWS.values())}"
            )
        return [_Key() for _ in equation.outvars]
    if name not in RULES:
        raise UnsupportedOperator(f"the operator {name}")
    result = RULES[name](lowering, equation, *values)
    return result if isinstance(result, list) else [result]


def _noise(graph: Graph, equation: Any, values: Sequence[Value]) -> Batched:
    """An input of the graph in place of a draw."""
    distribution = DRAWS[equation.params["name"]]
    if distribution == "uniform" and [float(v) for v in values[1:]] != [0.0, 1.0]:
        raise UnsupportedOperator("a uniform draw outside [0, 1)")
    taken = sum(tensor.distribution is not None for tensor in graph.inputs.values())
    name = "noise" if not taken else f"noise{taken + 1}"
    shape = tuple(equation.outvars[0].aval.shape)
    graph.inputs[name] = Tensor(shape, "float32", distribution)
    return Batched(name, shape)


def _called(equation: Any) -> Any:
    """The closed jaxpr that an equation only calls, or None."""
    if equation.primitive.name not in _CALLS:
        return None
    return equation.params.get("jaxpr", equation.params.get("call_jaxpr"))


def _bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    results = equation.primitive.bind(*values, **equation.params)
    return list(results) if equation.primitive.multiple_results else [results]


def _tensor(described: Any) -> Tensor:
    return Tensor(tuple(described.shape), dtype_name(described.dtype))
