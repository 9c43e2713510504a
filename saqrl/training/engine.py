"""The one loop that trains everything: quantizers, discrete agents, continuous counterparts.

The data are on the device, and a whole logging interval is one compiled program. The randomness of
step i depends only on the key and on i. So a run that is stopped anywhere and resumed at the start
of an interval is bit-exact, and the number of evaluations changes nothing.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from saqrl import nn

# Folded into the key for the initial state; no run has this many steps.
INIT_FOLD = 2**32 - 1
# Rows that an algorithm may look at before its first step (k-means of the first codes).
EXAMPLE_ROWS = 4096


Algorithm = nn.Algorithm[Any]


class Rows(NamedTuple):
    """A pytree of columns, of which only the first `length` rows are data.

    The others make the columns of several seeds equally long, so that they share compiled programs.
    """

    columns: Any
    length: int


def _rows(data: Any) -> Rows:
    """`Rows`; for other data all rows count."""
    return data if isinstance(data, Rows) else Rows(data, len(jax.tree.leaves(data)[0]))


@runtime_checkable
class Stream(Protocol):
    """Data larger than memory: the part on the device changes every `every` steps."""

    every: int
    """Number of steps per part."""

    def part(self, number: int) -> Any:
        """The data of the steps from number * every on: the same at every call, of equal shapes."""
        ...

    def close(self) -> None:
        """Release its parts; no other part will be requested."""
        ...


class Interval(NamedTuple):
    """Result of a logging interval: the step reached, the state, metrics averaged over it."""

    step: int
    state: Any
    metrics: dict[str, float]


def begin(algorithm: Algorithm, key: Key[Array, ""], data: Any) -> Any:
    """The state before the first step; for a `Stream`, from its first part."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError("JAX_ENABLE_X64 is set, but saqrl needs float32: unset JAX_ENABLE_X64")
    rows = _rows(data.part(0) if isinstance(data, Stream) else data)
    init_key, rows_key = jax.random.split(jax.random.fold_in(key, INIT_FOLD))
    some = jax.random.choice(rows_key, rows.length, (min(EXAMPLE_ROWS, rows.length),), False)
    return _initialise(algorithm, init_key, jax.tree.map(lambda c: c[some], rows.columns))


@partial(jax.jit, static_argnames="algorithm")
def _initialise(algorithm: Algorithm, key: Key[Array, ""], example: Any) -> Any:
    """Compiled, so that no two leaves share a buffer, which donation forbids."""
    return algorithm.init(key, example)


def intervals(
    algorithm: Algorithm,
    data: Any,
    key: Key[Array, ""],
    *,
    pauses: Sequence[int],
    state: Any = None,
    first_step: int = 0,
) -> Iterator[Interval]:
    """Train to algorithm.steps, pausing at every multiple of one of `pauses`.

    `data` is a pytree of equally long columns, `Rows` of them, or a `Stream`.
    A yielded state is consumed by the next interval: copy what you need before you continue.
    To resume, give the state and the step of an interval that was yielded earlier.
    """
    step, state = first_step, begin(algorithm, key, data) if state is None else state
    trainer = Trainer(algorithm, data, key)
    while step < algorithm.steps:
        end = min(algorithm.steps, *((step // pause + 1) * pause for pause in pauses))
        interval = trainer.advance(state, step, end)
        step, state = interval.step, interval.state
        yield interval


class Trainer:
    """Takes one algorithm from any step to any later one."""

    def __init__(self, algorithm: Algorithm, data: Any, key: Key[Array, ""]):
        """`data` and `key` as `intervals` takes them."""
        self._data, self._key, self._devices = data, key, _Devices(algorithm)

    def advance(self, state: Any, first: int, last: int) -> Interval:
        """After the steps first..last-1, at least one; the given state is consumed."""
        data, step, sums = self._data, first, defaultdict[str, float](float)
        while step < last:
            until, rows = last, data
            if isinstance(data, Stream):
                part = step // data.every
                until, rows = min(last, (part + 1) * data.every), data.part(part)
            state, metrics = self._devices.advance(state, _rows(rows), self._key, step, until)
            for name, value in metrics.items():
                sums[name] += (until - step) * float(value)
            step = until
        means = {name: total / (last - first) for name, total in sums.items()}
        return Interval(last, state, means)


class _Devices:
    """All devices of this machine train one algorithm.

    Batches are divided among them if their size is a multiple of the number of devices (equal to
    one device up to rounding); else only the first device trains.
    """

    def __init__(self, algorithm: Algorithm):
        self.algorithm = algorithm
        self.all = jax.local_devices()
        self.divided = len(self.all) > 1 and algorithm.batch_size % len(self.all) == 0
        self._original: Any = None
        self._copied: Any = None

    def advance(
        self, state: Any, rows: Rows, key: Key[Array, ""], first: int, last: int
    ) -> tuple[Any, nn.Metrics]:
        """(state, mean metrics) after the steps first..last-1; the given state is consumed."""
        columns = self._everywhere(rows.columns) if self.divided else rows.columns
        if self.divided:
            state = jax.device_put(state, _sharding())
        numbers = (jnp.asarray(number, jnp.int32) for number in (rows.length, first, last))
        state, metrics = _advance(self.algorithm, self.divided, state, columns, key, *numbers)
        return jax.device_put(state, self.all[0]) if self.divided else state, metrics

    def _everywhere(self, columns: Any) -> Any:
        """A copy on each device, made once while the data stays the same."""
        if columns is not self._original:
            self._copied = None  # freed before the next is made
            self._copied, self._original = jax.device_put(columns, _sharding()), columns
        return self._copied


@partial(jax.jit, static_argnames=("algorithm", "divided"), donate_argnames="state")
def _advance(
    algorithm: Algorithm,
    divided: bool,
    state: Any,
    columns: Any,
    key: Key[Array, ""],
    length: Int[Array, ""],
    first_step: Int[Array, ""],
    last_step: Int[Array, ""],
) -> tuple[Any, nn.Metrics]:
    """Updates first_step..last_step-1 on batches of the first `length` rows; mean metrics.

    Length and bounds are traced: data and intervals of any length share a program.
    """

    def update(state: Any, index: Int[Array, ""]) -> tuple[Any, nn.Metrics]:
        batch_key, update_key = jax.random.split(jax.random.fold_in(key, index))
        rows = jax.random.randint(batch_key, (algorithm.batch_size,), 0, length)
        batch = jax.tree.map(lambda column: column[rows], columns)
        if divided:
            batch = jax.lax.with_sharding_constraint(batch, _sharding("devices"))  # type: ignore[no-untyped-call]
        with _products(algorithm.precision):
            return algorithm.update(state, batch, update_key)

    def step(index: Int[Array, ""], carry: tuple[Any, nn.Metrics]) -> tuple[Any, nn.Metrics]:
        state, sums = carry
        state, metrics = update(state, index)
        return state, jax.tree.map(jnp.add, sums, metrics)

    shapes = jax.eval_shape(update, state, first_step)[1]
    zeros = jax.tree.map(lambda metric: jnp.zeros(metric.shape, jnp.float32), shapes)
    state, sums = jax.lax.fori_loop(first_step, last_step, step, (state, zeros))
    return state, jax.tree.map(lambda total: total / (last_step - first_step), sums)


def _products(precision: nn.Precision) -> contextlib.AbstractContextManager[Any]:
    """A context with this precision of products; float32 is the backend's default."""
    if precision == "bfloat16":
        return jax.default_matmul_precision("bfloat16")
    return contextlib.nullcontext()


def _sharding(*axes: str) -> NamedSharding:
    """Over all devices: the first axis of an array divided by `"devices"`, copies without."""
    mesh = Mesh(jax.local_devices(), ("devices",))
    return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
