"""Quantizers: from actions to codes and back.

A quantizer is a frozen dataclass of hyperparameters whose training ends in a `Codec`: encode and
decode for one state. A codec with the behaviour prior pi_b(k|s) is an `ActionQuantizer`, which
other packages use. Observations here are network features and actions are in [-1, 1] (an action
chunk is a wider action). A new quantizer is a file and a line in `saqrl.registry`.
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
    """Training data of a quantizer."""

    observations: Float[Array, "n features"]
    actions: Float[Array, "n act"]


class Codec(Protocol):
    """Encodes and decodes actions, given the state. Arrays only, one example at a time."""

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
    """Settings of every quantizer in addition to its training."""

    codes: int = 64
    """Maximum number of codes; a quantizer with joint codes may use fewer (`Codec.num_codes`)."""
    patience: int = 0
    """Stop if the held-out error has not fallen by 1 % for this many steps; 0: never."""


class Quantizer(nn.Algorithm[ActionBatch], Protocol):
    """Hyperparameters of a quantizer, with pure methods."""

    codes: int
    patience: int

    def codec(self, state: Any) -> Codec:
        """The trained codec of this state."""
        ...


Prior = nn.MLP | nn.Ensemble
"""One or several networks of the behaviour on codes; the probabilities of several are averaged."""


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
        """The code of `action` in this state."""
        return self.codec.encode(observation, action)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        """The action of `code` in this state."""
        return self.codec.decode(observation, code)

    def decode_all(self, observation: Float[Array, " features"]) -> Float[Array, "codes act"]:
        """The action of every code in this state."""
        return jax.vmap(self.decode, (None, 0))(observation, jnp.arange(self.num_codes))

    def mean(
        self, observation: Float[Array, " features"], probabilities: Float[Array, " codes"]
    ) -> Float[Array, " act"]:
        """The expectation sum_k p_k D(s, k) of the decoded action, over all codes.

        A dimension that has only two values in the data, such as a gripper, takes the more probable
        value, at each step of a chunk separately; on ties the lower value.
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
        """`log_prior` of each of the prior's networks separately."""
        networks = [self.prior] if isinstance(self.prior, nn.MLP) else self.prior.heads
        return [log_prior(network, observation) for network in networks]


def log_prior(prior: Prior, observation: Float[Array, " features"]) -> Float[Array, " codes"]:
    """Log pi_b(k|s), normalised; for several networks the log of their mean probabilities."""
    logits = prior(observation)
    return jax.nn.log_softmax(logits) if isinstance(prior, nn.MLP) else nn.log_mixture(logits)
