"""Action dimensions with two values, as a gripper's, or with one: decoded exactly."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class BinaryDimensions(eqx.Module):
    """The smallest and largest value of each dimension, and where no other was seen."""

    low: Float[Array, " act"]
    high: Float[Array, " act"]
    only: Bool[Array, " act"]

    def snap(self, action: Float[Array, "*batch act"]) -> Float[Array, "*batch act"]:
        """The nearer of the two values where there are only two; elsewhere the action itself."""
        nearer = jnp.where(action - self.low > self.high - action, self.high, self.low)
        return jnp.where(self.only, nearer, action)


def find_binary(actions: Float[Array, "n act"]) -> BinaryDimensions:
    """What `actions` say about their dimensions."""
    low, high = actions.min(0), actions.max(0)
    return BinaryDimensions(low, high, ((actions == low) | (actions == high)).all(0))


def watch_binary(seen: BinaryDimensions, actions: Float[Array, "n act"]) -> BinaryDimensions:
    """`seen` after more actions: a third value ends a dimension's being binary for good."""
    more = find_binary(actions)
    low, high = jnp.minimum(seen.low, more.low), jnp.maximum(seen.high, more.high)
    kept = seen.only & more.only
    for value in (seen.low, seen.high, more.low, more.high):
        kept &= (value == low) | (value == high)
    return BinaryDimensions(low, high, kept)
