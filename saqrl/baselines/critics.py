"""Critics of continuous actions: one network per head on state and action together."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn


class Critics(eqx.Module):
    """An ensemble of Q(s, a)."""

    heads: tuple[nn.MLP, ...]

    def __init__(
        self,
        key: Key[Array, ""],
        inputs: int,
        hidden: tuple[int, ...],
        act: int,
        *,
        count: int,
        layer_norm: bool,
    ):
        self.heads = tuple(
            nn.MLP(head_key, inputs + act, hidden, 1, layer_norm=layer_norm)
            for head_key in jax.random.split(key, count)
        )

    def __call__(
        self, observations: Float[Array, "*batch features"], actions: Float[Array, "*batch act"]
    ) -> Float[Array, "heads *batch"]:
        inputs = jnp.concatenate([observations, actions], axis=-1)
        return jnp.stack([head(inputs)[..., 0] for head in self.heads])

    def pessimistic(
        self, observations: Float[Array, "*batch features"], actions: Float[Array, "*batch act"]
    ) -> Float[Array, "*batch"]:
        """Min over the heads (clipped double Q: Fujimoto et al. 2018, arXiv 1802.09477)."""
        return self(observations, actions).min(0)
