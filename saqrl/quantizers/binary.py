"""Action dimensions with two values, such as a gripper's, or with one: decoded exactly.

Quantizers learn a dimension with two values as -1 and 1, whatever these values are, so that a
gripper has the weight of a motion over the whole range. An action is encoded by a code that decodes
to the same value, if the state has such a code.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class BinaryDimensions(eqx.Module):
    """The smallest and largest value of each dimension, and whether all values are one of them."""

    low: Float[Array, " act"]
    high: Float[Array, " act"]
    only: Bool[Array, " act"]

    @property
    def two_valued(self) -> Bool[Array, " act"]:
        """Dimensions with two values; the others of `only` have one value."""
        return self.only & (self.low < self.high)

    @property
    def any_two_valued(self) -> bool:
        """Only outside of a traced program, or if the dimensions are constants of it."""
        return bool((np.asarray(self.only) & (np.asarray(self.low) < np.asarray(self.high))).any())

    def wrong(
        self, decoded: Float[Array, "*batch act"], action: Float[Array, " act"]
    ) -> Int[Array, "*batch"]:
        """How many dimensions with two values are decoded to the wrong one."""
        other = self.widen(decoded) != self.widen(action)
        return (self.two_valued & other).sum(-1)

    def widen(self, action: Float[Array, "*batch act"]) -> Float[Array, "*batch act"]:
        """-1 and 1 for the lower and the higher of two values; other dimensions are unchanged."""
        side = jnp.where(action - self.low > self.high - action, 1.0, -1.0)
        return jnp.where(self.two_valued, side, action)

    def narrow(self, decoded: Float[Array, "*batch act"]) -> Float[Array, "*batch act"]:
        """The inverse of `widen`, by sign if there are two values; clipped to [-1, 1]."""
        side = jnp.where(decoded > 0, self.high, self.low)
        kept = jnp.where(self.only, self.low, jnp.clip(decoded, -1, 1))
        return jnp.where(self.two_valued, side, kept)


class BinaryCodec(eqx.Module):
    """A codec that first matches dimensions with two values, then uses its `nearest` code."""

    binary: BinaryDimensions

    @property
    def exists(self) -> Bool[Array, " codes"] | None:
        """Which rows are codes, if some are spare; None: all are codes."""
        return None

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """How many codes there are."""

    @abstractmethod
    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        """The code without regard to dimensions with two values."""

    @abstractmethod
    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        """The action of `code` in this state."""

    def encode(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        """`nearest`, unless other codes match more two-valued dimensions: the closest of those."""
        code = self.nearest(observation, action)

        def best() -> Int[Array, ""]:
            decoded = jax.vmap(self.decode, (None, 0))(observation, jnp.arange(self.num_codes))
            wrong = self.binary.wrong(decoded, action)
            if self.exists is not None:  # spare rows get more than any code
                wrong = jnp.where(self.exists, wrong, len(action) + 1)
            distance = jnp.square(decoded - action).sum(-1)
            closest = jnp.argmin(jnp.where(wrong == wrong.min(), distance, jnp.inf))
            return jnp.where(wrong[code] == wrong.min(), code, closest).astype(jnp.int32)

        # If no dimension has two values, nothing is decoded. The condition is the same for all
        # states, and known outside of a traced program, as in an export.
        if isinstance(self.binary.only, jax.core.Tracer):
            return jax.lax.cond(self.binary.two_valued.any(), best, lambda: code)
        return best() if self.binary.any_two_valued else code


def find_binary(actions: Float[Array, "n act"]) -> BinaryDimensions:
    """The dimensions of `actions`."""
    low, high = actions.min(0), actions.max(0)
    return BinaryDimensions(low, high, ((actions == low) | (actions == high)).all(0))


def watch_binary(seen: BinaryDimensions, actions: Float[Array, "n act"]) -> BinaryDimensions:
    """`seen` updated by more actions; after a third value a dimension is never binary again."""
    more = find_binary(actions)
    low, high = jnp.minimum(seen.low, more.low), jnp.maximum(seen.high, more.high)
    kept = seen.only & more.only
    for value in (seen.low, seen.high, more.low, more.high):
        kept &= (value == low) | (value == high)
    return BinaryDimensions(low, high, kept)
