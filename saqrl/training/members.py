"""Several agents trained as one: each with initial networks and batches of its own."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Key

from saqrl import nn


@dataclass(frozen=True)
class Members:
    """An ensemble of one algorithm, as an algorithm: its state has a first axis of members."""

    algorithm: nn.Algorithm[Any]
    count: int

    @property
    def steps(self) -> int:
        return self.algorithm.steps

    @property
    def batch_size(self) -> int:
        """Rows of all members' batches."""
        return self.count * self.algorithm.batch_size

    @property
    def precision(self) -> nn.Precision:
        return self.algorithm.precision

    def init(self, key: Key[Array, ""], example: Any) -> Any:
        return jax.vmap(self.algorithm.init, (0, None))(jax.random.split(key, self.count), example)

    def update(self, state: Any, batch: Any, key: Key[Array, ""]) -> tuple[Any, nn.Metrics]:
        """A step of every member on its share of the rows; metrics are means over members."""
        keys = jax.random.split(key, self.count)
        own = jax.tree.map(lambda rows: rows.reshape(self.count, -1, *rows.shape[1:]), batch)
        after, metrics = jax.vmap(self.algorithm.update)(state, own, keys)
        return after, jax.tree.map(lambda values: values.mean(0), metrics)


def ensemble(algorithm: Any, members: int) -> Any:
    """So many of the algorithm trained as one; of one itself, bit for bit."""
    return algorithm if members == 1 else Members(algorithm, members)


def states_of(algorithm: Any, state: Any) -> list[Any]:
    """The state of each member."""
    if not isinstance(algorithm, Members):
        return [state]
    return [jax.tree.map(lambda leaf, m=m: leaf[m], state) for m in range(algorithm.count)]
