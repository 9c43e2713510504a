"""Action dimensions with two values, as a gripper's, or with one: decoded exactly.

Quantizers learn such a dimension as -1 and 1, whatever its values are, so that a gripper counts as
much as a motion over the whole range; and an action is given a code that decodes to its own value
wherever one of the state's codes does.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class BinaryDimensions(eqx.Module):
    """The smallest and largest value of each dimension, and where no other was seen."""

    low: Float[Array, " act"]
    high: Float[Array, " act"]
    only: Bool[Array, " act"]

    @property
    def two_valued(self) -> Bool[Array, " act"]:
        """Where there are two values; in the rest of `only` there is one."""
        return self.only & (self.low < self.high)

    @property
    def any_two_valued(self) -> bool:
        """Outside a program, or where the dimensions are its constants."""
        return bool((np.asarray(self.only) & (np.asarray(self.low) < np.asarray(self.high))).any())

    def wrong(
        self, decoded: Float[Array, "*batch act"], action: Float[Array, " act"]
    ) -> Int[Array, "*batch"]:
        """How many dimensions with two values came out as the other one."""
        other = self.widen(decoded) != self.widen(action)
        return (self.two_valued & other).sum(-1)

    def widen(self, action: Float[Array, "*batch act"]) -> Float[Array, "*batch act"]:
        """-1 and 1 for the lower and the higher of two values; elsewhere the action itself."""
        side = jnp.where(action - self.low > self.high - action, 1.0, -1.0)
        return jnp.where(self.two_valued, side, action)

    def narrow(self, decoded: Float[Array, "*batch act"]) -> Float[Array, "*batch act"]:
        """What a widened action stands for, by its sign where there are two values; in [-1, 1]."""
        side = jnp.where(decoded > 0, self.high, self.low)
        kept = jnp.where(self.only, self.low, jnp.clip(decoded, -1, 1))
        return jnp.where(self.two_valued, side, kept)


class BinaryCodec(eqx.Module):
    """A codec that has a choice of its own, and dimensions with two values that come before it."""

    binary: BinaryDimensions

    @property
    def exists(self) -> Bool[Array, " codes"] | None:
        """Which rows are codes, where some are spare; None: all are."""
        return None

    @property
    @abstractmethod
    def num_codes(self) -> int:
        """How many codes there are."""

    @abstractmethod
    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        """The codec's own choice."""

    @abstractmethod
    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        """The action that `code` stands for in this state."""

    def encode(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        """`nearest`, or what decodes nearest of the codes with more of the action's own values."""
        code = self.nearest(observation, action)

        def best() -> Int[Array, ""]:
            decoded = jax.vmap(self.decode, (None, 0))(observation, jnp.arange(self.num_codes))
            wrong = self.binary.wrong(decoded, action)
            if self.exists is not None:  # more than any code has
                wrong = jnp.where(self.exists, wrong, len(action) + 1)
            distance = jnp.square(decoded - action).sum(-1)
            closest = jnp.argmin(jnp.where(wrong == wrong.min(), distance, jnp.inf))
            return jnp.where(wrong[code] == wrong.min(), code, closest).astype(jnp.int32)

        # Where no dimension has two values nothing is decoded: all states share the condition, and
        # outside a program, as in an export, it is known.
        if isinstance(self.binary.only, jax.core.Tracer):
            return jax.lax.cond(self.binary.two_valued.any(), best, lambda: code)
        return best() if self.binary.any_two_valued else code


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
