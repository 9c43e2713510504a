"""Critics of continuous actions: an ensemble of networks on state and action together."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from saqrl import nn


def q_values(
    critics: nn.Ensemble,
    observations: Float[Array, "*batch features"],
    actions: Float[Array, "*batch act"],
) -> Float[Array, "heads *batch"]:
    """Q_i(s, a) of every head."""
    return critics(jnp.concatenate([observations, actions], axis=-1))[..., 0]


def pessimistic_q(
    critics: nn.Ensemble,
    observations: Float[Array, "*batch features"],
    actions: Float[Array, "*batch act"],
) -> Float[Array, "*batch"]:
    """min_i Q_i(s, a)."""
    return q_values(critics, observations, actions).min(0)
