"""Transitions become codes.

A quantizer is a frozen dataclass of hyperparameters whose training ends in a `Codec`: encode and
decode for one state. With the behaviour prior pi_b(k|s) beside it, it is an `ActionQuantizer`,
which is what leaves the room. Observations here are network features and actions lie in [-1, 1]
(an action chunk is just a wider action). A new quantizer is a file and a line in
`saqrl.registry`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from saqrl import nn
from saqrl.registry import QUANTIZERS as QUANTIZERS


class ActionBatch(eqx.Module):
    """What a quantizer learns from."""

    observations: Float[Array, "n features"]
    actions: Float[Array, "n act"]


class Codec(Protocol):
    """Between actions and codes, given the state. Arrays only, one example at a time."""

    @property
    def num_codes(self) -> int: ...

    def encode(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]: ...

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]: ...


@dataclass(frozen=True)
class Quantization(nn.Training):
    """What every quantizer states about itself beside its training."""

    codes: int = 64
    """Codes asked for; a quantizer of joint codes may come out at fewer (`Codec.num_codes`)."""
    patience: int = 0
    """Stop where the held-out error has not fallen by 1 % for so many steps; 0 never."""


class Quantizer(nn.Algorithm[ActionBatch], Protocol):
    """Hyperparameters of a quantizer, with pure methods."""

    codes: int
    patience: int

    def codec(self, state: Any) -> Codec:
        """What the state has learned."""
        ...


class ActionQuantizer(eqx.Module):
    """A codec with the behaviour prior on its codes."""

    codec: Codec
    prior: nn.MLP

    def __repr__(self) -> str:
        return f"ActionQuantizer({type(self.codec).__name__}, {self.num_codes} codes)"

    @property
    def num_codes(self) -> int:
        return self.codec.num_codes

    def encode(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        """The code that stands for `action` in this state."""
        return self.codec.encode(observation, action)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        """The action that `code` stands for in this state."""
        return self.codec.decode(observation, code)

    def log_prior(self, observation: Float[Array, " features"]) -> Float[Array, " codes"]:
        """Log pi_b(k|s), normalised."""
        return jax.nn.log_softmax(self.prior(observation))
