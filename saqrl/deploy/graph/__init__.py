"""A JAX function of one example as a short list of ONNX operators over a batch.

`Graph` leaves the room. `tracing` runs the function once: what depends on weights alone is computed
now and becomes a constant, what depends on an input gets a batch axis in front and is written by a
rule of `lowering`; `rewriting` then joins what ONNX has one operator for. Actors, quantizers and
scalings therefore need no exporter of their own: one whose operators have rules can be exported,
one that has others is refused by their names. Random draws become named inputs, so the graph itself
is deterministic. `files` writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Attributes = Mapping[str, int | float | tuple[int, ...]]


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
