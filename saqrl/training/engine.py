"""The one loop that trains everything: quantizers, discrete agents, continuous counterparts.

The data lies on the device and a whole logging interval is one compiled program. The randomness of
step i depends only on the key and on i, so a run cut anywhere and resumed at an interval's start
repeats itself exactly, and evaluating more or less often changes nothing.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
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


class Algorithm(Protocol):
    """Whatever the engine can train: hashable hyperparameters with pure methods."""

    steps: int
    batch_size: int
    precision: nn.Precision

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

    def close(self) -> None:
        """Let go of its parts; no other is asked for."""
        ...


class Interval(NamedTuple):
    """What a logging interval leaves: the step reached, the state, metrics averaged over it."""

    step: int
    state: Any
    metrics: dict[str, float]


class Advance(NamedTuple):
    """A request to train the steps first_step..last_step-1, made by yielding it.

    Who drives the training sends (state, mean metrics) back: alone, or with the equal requests of
    other seeds in one program.
    """

    algorithm: Algorithm
    state: Any
    data: Any
    key: Key[Array, ""]
    first_step: int
    last_step: int


Answer = tuple[Any, nn.Metrics]


@partial(jax.jit, static_argnames="algorithm")
def initialise(algorithm: Algorithm, key: Key[Array, ""], data: Any) -> Any:
    """The state before the first step. Compiled, so that no two leaves share a buffer."""
    init_key, rows_key = jax.random.split(jax.random.fold_in(key, INIT_FOLD))
    rows = jax.random.choice(rows_key, _length(data), (min(EXAMPLE_ROWS, _length(data)),), False)
    return algorithm.init(init_key, jax.tree.map(lambda column: column[rows], data))


def steps(
    algorithm: Algorithm,
    state: Any,
    data: Any,
    key: Key[Array, ""],
    first_step: int,
    last_step: int,
) -> Generator[Advance, Answer, Interval]:
    """Ask for the steps first_step..last_step-1, for each part of a `Stream` on its own."""
    step, sums = first_step, defaultdict[str, float](float)
    stream = data if isinstance(data, Stream) else None
    while step < last_step:
        until = last_step
        if stream is not None:
            data = stream.part(step // stream.every)
            until = min(last_step, (step // stream.every + 1) * stream.every)
        state, metrics = yield Advance(algorithm, state, data, key, step, until)
        for name, value in metrics.items():
            sums[name] += (until - step) * float(value)
        step = until
    count = last_step - first_step
    return Interval(last_step, state, {name: total / count for name, total in sums.items()})


def begin(algorithm: Algorithm, key: Key[Array, ""], data: Any) -> Any:
    """The initial state; of a `Stream` the first part is the example that it is made for."""
    return initialise(algorithm, key, data.part(0) if isinstance(data, Stream) else data)


def intervals(
    algorithm: Algorithm,
    data: Any,
    key: Key[Array, ""],
    *,
    pauses: Sequence[int],
    state: Any = None,
    first_step: int = 0,
) -> Iterator[Interval]:
    """Train alone to algorithm.steps, pausing at every multiple of one of `pauses`.

    A yielded state is consumed by the next interval: take what you need of it before going on.
    To resume, give the state and the step of an interval that was yielded before.
    """
    cohort = Cohort()
    state = begin(algorithm, key, data) if state is None else state
    step = first_step
    while step < algorithm.steps:
        end = next_pause(step, algorithm.steps, pauses)
        training, answer = steps(algorithm, state, data, key, step, end), None
        try:
            while True:
                request = training.send(answer)  # type: ignore[arg-type]
                (answer,) = cohort.advance([request])
        except StopIteration as done:
            interval: Interval = done.value
        step, state = interval.step, interval.state
        yield interval


def next_pause(step: int, last_step: int, pauses: Sequence[int]) -> int:
    """The nearest multiple of one of `pauses` above `step`, at most last_step."""
    return min(last_step, *((step // pause + 1) * pause for pause in pauses))


class Cohort:
    """Answers requests, those of several seeds in one compiled program.

    On a CPU one seed follows the other inside the program: the same operations as alone, so the
    same bits. Elsewhere they run side by side (vmap): sums may be ordered otherwise, so that a
    seed equals its lone run only to rounding (nobody has measured how closely). On several devices
    the seeds are divided among them where their number is a multiple of the devices', else all
    stay on the first one. Of a lone seed the batches are divided, where their size is such a
    multiple (equal to rounding).
    """

    def __init__(self) -> None:
        # The data that was placed last; the originals are kept so that their ids stay theirs.
        self._originals: list[Any] = []
        self._placed: Any = None

    def advance(self, requests: Sequence[Advance]) -> list[Answer]:
        """(state, mean metrics) for each request, in their order; their states are consumed."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            groups[_kind(request)].append(position)
        answers: dict[int, Answer] = {}
        for members in groups.values():
            together = [requests[position] for position in members]
            answers |= zip(members, self._advance_alike(together), strict=True)
        return [answers[position] for position in range(len(requests))]

    def _advance_alike(self, requests: Sequence[Advance]) -> Sequence[Answer]:
        algorithm, state, data, key, first, last = requests[0]
        bounds = jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32)
        devices = jax.local_devices()
        datas = [request.data for request in requests]
        if len(requests) == 1:
            divided = len(devices) > 1 and algorithm.batch_size % len(devices) == 0
            if divided:
                everywhere = _sharding()
                data = self._place(datas, lambda: jax.device_put(data, everywhere))
                state = jax.device_put(state, everywhere)
            state, means = advance(algorithm, divided, state, data, key, *bounds)
            return [(jax.device_put(state, devices[0]) if divided else state, means)]
        states = _stack([request.state for request in requests])
        keys = jnp.stack([request.key for request in requests])
        lengths = jnp.asarray([_length(data) for data in datas])
        divided = len(devices) > 1 and len(requests) % len(devices) == 0
        stacked = self._place(datas, lambda: _spread(_stack(_padded(datas)), divided))
        states, keys, lengths = _spread((states, keys, lengths), divided)
        states, means = advance_seeds(algorithm, divided, states, stacked, lengths, keys, *bounds)
        if divided:
            states, means = jax.device_put((states, means), devices[0])
        return [
            jax.tree.map(lambda leaf, seed=seed: leaf[seed], (states, means))
            for seed in range(len(requests))
        ]

    def _place(self, originals: list[Any], place: Callable[[], Any]) -> Any:
        """What `place` makes of the originals, made once while they stay the same."""
        known = len(originals) == len(self._originals)
        if not known or any(a is not b for a, b in zip(originals, self._originals, strict=True)):
            self._originals, self._placed = [], None  # freed before the next is made
            self._placed = place()
            self._originals = originals
        return self._placed


def _kind(request: Advance) -> Any:
    """Requests of the same kind fit into one program."""

    def shapes(tree: Any, skipped_axes: int) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        return structure, tuple((leaf.shape[skipped_axes:], leaf.dtype) for leaf in leaves)

    bounds = request.first_step, request.last_step
    return request.algorithm, *bounds, shapes(request.state, 0), shapes(request.data, 1)


def _train(
    algorithm: Algorithm,
    state: Any,
    data: Any,
    length: int | Int[Array, ""],
    key: Key[Array, ""],
    first_step: Int[Array, ""],
    last_step: Int[Array, ""],
    place: Callable[[Any], Any] = lambda batch: batch,
) -> Answer:
    """Updates first_step..last_step-1 on batches of the first `length` rows; mean metrics."""

    def update(state: Any, index: Int[Array, ""]) -> Answer:
        batch_key, update_key = jax.random.split(jax.random.fold_in(key, index))
        rows = jax.random.randint(batch_key, (algorithm.batch_size,), 0, length)
        batch = place(jax.tree.map(lambda column: column[rows], data))
        with _products(algorithm.precision):
            return algorithm.update(state, batch, update_key)

    def step(index: Int[Array, ""], carry: Answer) -> Answer:
        state, sums = carry
        state, metrics = update(state, index)
        return state, jax.tree.map(jnp.add, sums, metrics)

    shapes = jax.eval_shape(update, state, first_step)[1]
    zeros = jax.tree.map(lambda metric: jnp.zeros(metric.shape, jnp.float32), shapes)
    state, sums = jax.lax.fori_loop(first_step, last_step, step, (state, zeros))
    return state, jax.tree.map(lambda total: total / (last_step - first_step), sums)


@partial(jax.jit, static_argnames=("algorithm", "divided"), donate_argnames="state")
def advance(
    algorithm: Algorithm,
    divided: bool,
    state: Any,
    data: Any,
    key: Key[Array, ""],
    first_step: Int[Array, ""],
    last_step: Int[Array, ""],
) -> Answer:
    """One seed, its batches divided among the devices or not.

    The bounds are traced: intervals of any length share a program.
    """

    def place(batch: Any) -> Any:
        if not divided:
            return batch
        return jax.lax.with_sharding_constraint(batch, _sharding("devices"))  # type: ignore[no-untyped-call]

    return _train(algorithm, state, data, _length(data), key, first_step, last_step, place)


@partial(jax.jit, static_argnames=("algorithm", "divided"), donate_argnames="states")
def advance_seeds(
    algorithm: Algorithm,
    divided: bool,
    states: Any,
    data: Any,
    lengths: Int[Array, " seeds"],
    keys: Key[Array, " seeds"],
    first_step: Int[Array, ""],
    last_step: Int[Array, ""],
) -> Answer:
    """Several seeds, each on the first `length` rows of its own data."""

    def one(seed: tuple[Any, Any, Int[Array, ""], Key[Array, ""]]) -> Answer:
        return _train(algorithm, *seed, first_step, last_step)

    def here(*seeds: Any) -> Answer:
        if jax.default_backend() == "cpu":
            return jax.lax.map(one, seeds)
        return jax.vmap(lambda *seed: one(seed))(*seeds)

    if divided:
        over = _sharding("devices")
        each = over.spec
        here = jax.shard_map(
            here, mesh=over.mesh, in_specs=(each,) * 4, out_specs=each, check_vma=False
        )
    return here(states, data, lengths, keys)


def _products(precision: nn.Precision) -> contextlib.AbstractContextManager[Any]:
    """Where the backend's own default is not asked for (on GPUs that is TensorFloat-32)."""
    if precision == "bfloat16":
        return jax.default_matmul_precision("bfloat16")
    return contextlib.nullcontext()


def _sharding(*axes: str) -> NamedSharding:
    """Over all devices: the first axis of an array divided by `"devices"`, copies without."""
    mesh = Mesh(jax.local_devices(), ("devices",))
    return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]


def _spread(tree: Any, divided: bool) -> Any:
    return jax.device_put(tree, _sharding("devices")) if divided else tree


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _padded(datas: Sequence[Any]) -> list[Any]:
    """All as long as the longest, with zeros that are never drawn."""
    longest = max(map(_length, datas))

    def pad(column: Array) -> Array:
        return jnp.pad(column, [(0, longest - len(column)), *[(0, 0)] * (column.ndim - 1)])

    return [jax.tree.map(pad, data) for data in datas]


def _length(data: Any) -> int:
    return len(jax.tree.leaves(data)[0])
