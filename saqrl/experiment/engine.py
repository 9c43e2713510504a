"""The one loop that trains everything: quantizers, discrete agents, continuous counterparts.

The data lies on the device and a whole logging interval is one compiled program. The randomness of
step i depends only on the key and on i, so a run cut anywhere and resumed at an interval's start
repeats itself exactly, and evaluating more or less often changes nothing.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from saqrl import nn

# Folded into the key for the initial state; no run has this many steps.
INIT_FOLD = 2**32 - 1
# Rows that an algorithm may look at before its first step (k-means of the first codes).
EXAMPLE_ROWS = 4096


class Algorithm(Protocol):
    """Whatever the engine can train: hashable hyperparameters with pure methods."""

    steps: int
    batch_size: int

    def init(self, key: Key[Array, ""], example: Any) -> Any: ...

    def update(self, state: Any, batch: Any, key: Key[Array, ""]) -> tuple[Any, nn.Metrics]: ...


@runtime_checkable
class Stream(Protocol):
    """Data larger than memory: another part of it lies on the device every so many steps."""

    every: int
    """Steps that a part is trained on."""

    def part(self, number: int) -> Any:
        """The data of the steps from number * every on: the same at every call, of equal shapes."""
        ...


class Interval(NamedTuple):
    """What a logging interval leaves: the step reached, the state, metrics averaged over it."""

    step: int
    state: Any
    metrics: dict[str, float]


@partial(jax.jit, static_argnames="algorithm")
def initialise(algorithm: Algorithm, key: Key[Array, ""], data: Any) -> Any:
    """The state before the first step. Compiled, so that no two leaves share a buffer."""
    init_key, rows_key = jax.random.split(jax.random.fold_in(key, INIT_FOLD))
    rows = jax.random.choice(rows_key, _length(data), (min(EXAMPLE_ROWS, _length(data)),), False)
    return algorithm.init(init_key, jax.tree.map(lambda column: column[rows], data))


@partial(jax.jit, static_argnames="algorithm", donate_argnames="state")
def advance(
    algorithm: Algorithm,
    state: Any,
    data: Any,
    key: Key[Array, ""],
    first_step: Int[Array, ""],
    last_step: Int[Array, ""],
) -> tuple[Any, nn.Metrics]:
    """Updates first_step..last_step-1 on batches drawn with replacement; metrics are means.

    The bounds are traced, so intervals of any length share one compiled program.
    """

    def update(state: Any, index: Int[Array, ""]) -> tuple[Any, nn.Metrics]:
        batch_key, update_key = jax.random.split(jax.random.fold_in(key, index))
        rows = jax.random.randint(batch_key, (algorithm.batch_size,), 0, _length(data))
        batch = jax.tree.map(lambda column: column[rows], data)
        return algorithm.update(state, batch, update_key)

    def step(index: Int[Array, ""], carry: tuple[Any, nn.Metrics]) -> tuple[Any, nn.Metrics]:
        state, sums = carry
        state, metrics = update(state, index)
        return state, jax.tree.map(jnp.add, sums, metrics)

    shapes = jax.eval_shape(update, state, first_step)[1]
    zeros = jax.tree.map(lambda metric: jnp.zeros(metric.shape, jnp.float32), shapes)
    state, sums = jax.lax.fori_loop(first_step, last_step, step, (state, zeros))
    return state, jax.tree.map(lambda total: total / (last_step - first_step), sums)


def intervals(
    algorithm: Algorithm,
    data: Any,
    key: Key[Array, ""],
    *,
    pauses: Sequence[int],
    state: Any = None,
    first_step: int = 0,
) -> Iterator[Interval]:
    """Train to algorithm.steps, pausing where every multiple of one of `pauses` is reached.

    A yielded state is consumed by the next interval: take what you need of it before going on.
    To resume, give the state and the step of an interval that was yielded before. Of a `Stream`
    the first part is the example that the initial state is made for.
    """
    stream = data if isinstance(data, Stream) else None
    if state is None:
        state = initialise(algorithm, key, data if stream is None else stream.part(0))
    step = first_step
    while step < algorithm.steps:
        begun, sums = step, defaultdict[str, float](float)
        end = min(algorithm.steps, *((step // pause + 1) * pause for pause in pauses))
        while step < end:
            last = end
            if stream is not None:
                data = stream.part(step // stream.every)
                last = min(end, (step // stream.every + 1) * stream.every)
            bounds = jnp.asarray(step, jnp.int32), jnp.asarray(last, jnp.int32)
            state, means = advance(algorithm, state, data, key, *bounds)
            for name, value in means.items():
                sums[name] += (last - step) * float(value)
            step = last
        yield Interval(end, state, {name: total / (end - begun) for name, total in sums.items()})


def _length(data: Any) -> int:
    return len(jax.tree.leaves(data)[0])
