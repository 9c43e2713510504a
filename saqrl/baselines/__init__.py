"""The continuous counterparts: the same data, networks and budget without the codes.

They read `ContinuousTransitions` and leave an `Actor` that gives actions in [-1, 1]. A new one is
a file and a line in `saqrl.registry`.
"""

from typing import Any, Protocol

import equinox as eqx
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.registry import BASELINES as BASELINES


class ContinuousTransitions(eqx.Module):
    """Transitions as networks read them; `discounts` as in the coded transitions.

    `next_actions` is what the data did at `next_observations`, in the same episode; past its end
    the last action is repeated, as in chunks.
    """

    observations: Float[Array, "n features"]
    actions: Float[Array, "n act"]
    rewards: Float[Array, " n"]
    next_observations: Float[Array, "n features"]
    discounts: Float[Array, " n"]
    next_actions: Float[Array, "n act"]


class Actor(Protocol):
    """What is left of a baseline after training."""

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        """An action in [-1, 1]: the distribution's mode where greedy, else a sample."""
        ...


class Baseline(nn.Algorithm[ContinuousTransitions], Protocol):
    """Hyperparameters of a continuous agent, with pure methods."""

    discount: float

    def actor(self, state: Any) -> Actor: ...
