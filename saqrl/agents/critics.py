"""Critics over codes: one network per head, all codes in one pass."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn


class Critics(eqx.Module):
    """An ensemble of Q(s, .) with a value for every code."""

    heads: tuple[nn.MLP, ...]

    def __init__(
        self,
        key: Key[Array, ""],
        inputs: int,
        hidden: tuple[int, ...],
        codes: int,
        *,
        count: int,
        layer_norm: bool,
    ):
        keys = jax.random.split(key, count)
        self.heads = tuple(
            nn.MLP(head_key, inputs, hidden, codes, layer_norm=layer_norm) for head_key in keys
        )

    def __call__(
        self, observations: Float[Array, "*batch features"]
    ) -> Float[Array, "heads *batch codes"]:
        return jnp.stack([head(observations) for head in self.heads])

    def pessimistic(
        self, observations: Float[Array, "*batch features"]
    ) -> Float[Array, "*batch codes"]:
        """Min over the heads (clipped double Q: Fujimoto et al. 2018, arXiv 1802.09477)."""
        return self(observations).min(0)


def of_code(
    values: Float[Array, "*batch codes"], codes: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """values[..., codes]: what the data's codes are worth."""
    return jnp.take_along_axis(values, codes[..., None], axis=-1)[..., 0]
