"""Operators of a graph that ONNX has one operator for become that one."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from saqrl.deploy.graph import Attributes, Graph, Node

Names = Mapping[str, str]
Constants = Mapping[str, np.ndarray | None]
Replacement = tuple[str, tuple[str, ...], Attributes]


def rewrite(graph: Graph) -> None:
    """Apply REWRITES in their order, then drop what nothing reads any more."""
    made_by = {node.output: node for node in graph.nodes}
    for pattern, replacement in REWRITES:
        for position, node in enumerate(graph.nodes):
            found: dict[str, str] = {}
            if not _matches(pattern, node.output, made_by, found):
                continue
            known = {role: graph.constants.get(name) for role, name in found.items()}
            if (made := replacement(found, known, node.attributes)) is not None:
                op, inputs, attributes = made
                graph.nodes[position] = Node(op, inputs, node.output, attributes)
                made_by[node.output] = graph.nodes[position]
    _drop_unused(graph)
    _name_outputs(graph)


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


def _sum_of_squares(found: Names, known: Constants, attributes: Attributes) -> Replacement | None:
    return "ReduceSumSquare", (found["signal"], found["axes"]), attributes


def _relu(found: Names, known: Constants, attributes: Attributes) -> Replacement | None:
    return ("Relu", (found["signal"],), {}) if _number(known["low"]) == 0 else None


def _clip(found: Names, known: Constants, attributes: Attributes) -> Replacement | None:
    in_order = _number(known["low"]) <= _number(known["high"])
    return ("Clip", (found["signal"], found["low"], found["high"]), {}) if in_order else None


def _layer_norm(found: Names, known: Constants, attributes: Attributes) -> Replacement | None:
    width, epsilon = (_number(known[role]) for role in ("width", "epsilon"))
    shapes = [getattr(known[role], "shape", None) for role in ("scale", "offset")]
    if shapes != [(width,), (width,)] or not epsilon > 0 or not _is_last_of_vector(known["axes"]):
        return None
    inputs = (found["signal"], found["scale"], found["offset"])
    return "LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon}


def _log_softmax(found: Names, known: Constants, attributes: Attributes) -> Replacement | None:
    whole = _is_last_of_vector(known["axes"])
    return ("LogSoftmax", (found["signal"],), {"axis": -1}) if whole else None


def _number(constant: np.ndarray | None) -> float:
    """Of a constant that is one float; else NaN, of which every comparison is false."""
    if constant is None or constant.shape or constant.dtype.kind != "f":
        return math.nan
    return float(constant)


def _is_last_of_vector(axes: np.ndarray | None) -> bool:
    return axes is not None and axes.tolist() == [1]


_CENTRED = ("Sub", "signal", ("Div", ("ReduceSum", "signal", "axes"), "width"))
_VARIANCE = ("Div", ("ReduceSumSquare", _CENTRED, "axes"), "width")
_NORMAL = ("Mul", _CENTRED, ("Reciprocal", ("Sqrt", ("Add", _VARIANCE, "epsilon"))))
_SHIFTED = ("Sub", "signal", ("ReduceMax", "signal", "axes"))

# (operator, inputs...) where an input is such a pattern or a name for whatever is there, and what
# it becomes, if the constants allow.
REWRITES: tuple[tuple[Any, Callable[..., Replacement | None]], ...] = (
    (("ReduceSum", ("Mul", "signal", "signal"), "axes"), _sum_of_squares),
    (("Min", "high", ("Max", "low", "signal")), _clip),
    (("Max", "low", "signal"), _relu),
    # `nn.normalize` with its scale and offset.
    (("Add", ("Mul", _NORMAL, "scale"), "offset"), _layer_norm),
    # `jax.nn.log_softmax`.
    (("Sub", _SHIFTED, ("Log", ("ReduceSum", ("Exp", _SHIFTED), "axes"))), _log_softmax),
)


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
    """Where a value is copied to an output, its operator writes the output itself."""
    made = {node.output for node in graph.nodes}
    copies = {node.inputs[0]: node.output for node in graph.nodes if node.op == "Identity"}
    named = {inner: outer for inner, outer in copies.items() if inner in made}
    graph.nodes[:] = [
        Node(
            node.op,
            tuple(named.get(name, name) for name in node.inputs),
            named.get(node.output, node.output),
            node.attributes,
        )
        for node in graph.nodes
        if node.op != "Identity" or named.get(node.inputs[0]) != node.output
    ]
