"""The continuous counterparts: the same data, networks and budget without the codes.

They read `ContinuousTransitions` and return an `Actor` that gives actions in [-1, 1]. A new one is
a file and a line in `saqrl.registry`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.registry import BASELINES as BASELINES


class ContinuousTransitions(eqx.Module):
    """Transitions as networks read them; `discounts` as in the coded transitions.

    `next_actions` are the recorded actions at `next_observations` in the same episode; after its
    end the last action is repeated, as in chunks.
    """

    observations: Float[Array, "n features"]
    actions: Float[Array, "n act"]
    rewards: Float[Array, " n"]
    next_observations: Float[Array, "n features"]
    discounts: Float[Array, " n"]
    next_actions: Float[Array, "n act"]


class Actor(Protocol):
    """A trained baseline without its training state."""

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        """An action in [-1, 1]: the distribution's mode if greedy, else a sample."""
        ...


class Members(eqx.Module):
    """Actors of an ensemble: greedy plays the mean of their actions.

    Otherwise one member is drawn for each decision, and its action is played.
    """

    actors: tuple[Actor, ...]

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        member_key, action_key = jax.random.split(key)
        actions = [actor.act(observation, action_key, greedy=greedy) for actor in self.actors]
        if greedy:
            return jnp.stack(actions).mean(0)
        return jnp.stack(actions)[jax.random.categorical(member_key, jnp.zeros(len(actions)))]


def together(actors: Sequence[Actor]) -> Actor:
    """One actor as it is, several as `Members`."""
    return actors[0] if len(actors) == 1 else Members(tuple(actors))


class Baseline(nn.Algorithm[ContinuousTransitions], Protocol):
    """Hyperparameters of a continuous agent, with pure methods."""

    discount: float

    def actor(self, state: Any) -> Actor: ...
