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
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saqrl import nn
from saqrl.quantizers.binary import BinaryCodec
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


Prior = nn.MLP | nn.Ensemble
"""Networks of the behaviour on codes; of several the probabilities are averaged."""


class ActionQuantizer(eqx.Module):
    """A codec with the behaviour prior on its codes."""

    codec: Codec
    prior: Prior

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

    def decode_all(self, observation: Float[Array, " features"]) -> Float[Array, "codes act"]:
        """The action of every code in this state."""
        return jax.vmap(self.decode, (None, 0))(observation, jnp.arange(self.num_codes))

    def mean(
        self, observation: Float[Array, " features"], probabilities: Float[Array, " codes"]
    ) -> Float[Array, " act"]:
        """The expectation sum_k p_k D(s, k) of the decoded action, over all codes.

        A dimension that the codec knows to take two values, as a gripper's, takes the one with more
        probability, at each step of a chunk for itself; of equally probable ones the lower.
        """
        decoded = self.decode_all(observation)
        if not isinstance(self.codec, BinaryCodec):
            return probabilities @ decoded
        # Widened to -1 and 1, the sign of the mean is the majority.
        binary = self.codec.binary
        return binary.narrow(probabilities @ binary.widen(decoded))

    def log_prior(self, observation: Float[Array, " features"]) -> Float[Array, " codes"]:
        """Log pi_b(k|s), normalised."""
        return log_prior(self.prior, observation)

    def log_priors(self, observation: Float[Array, " features"]) -> list[Float[Array, " codes"]]:
        """`log_prior` of each of the prior's networks by itself."""
        networks = [self.prior] if isinstance(self.prior, nn.MLP) else self.prior.heads
        return [log_prior(network, observation) for network in networks]


def log_prior(prior: Prior, observation: Float[Array, " features"]) -> Float[Array, " codes"]:
    """Log pi_b(k|s), normalised; of several networks that of their mean probabilities."""
    logits = prior(observation)
    return jax.nn.log_softmax(logits) if isinstance(prior, nn.MLP) else nn.log_mixture(logits)
