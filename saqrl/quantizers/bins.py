"""Uniform bins: every dimension is divided separately, every combination is a code.

This is discretisation without learning. Its limit: b bins in each of A dimensions make b^A codes.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.quantizers import ActionBatch, Quantization
from saqrl.quantizers import codebook as books
from saqrl.quantizers.joint import (
    MAX_JOINT_CODES,
    code_of,
    digits_of,
    require_enumerable,
    share_out,
)


class State(eqx.Module):
    low: Float[Array, " act"]
    high: Float[Array, " act"]
    usage: Float[Array, " codes"]


@dataclass(frozen=True)
class Bins(Quantization):
    """Evenly spaced values from the smallest to the largest action of each dimension.

    Both ends are values, so a binary dimension is exact, and so is a constant one. The fields of
    the networks are not used.
    """

    codes: int = 64
    """Maximum number of joint codes, divided evenly over the dimensions: 64 in 3 is 4 x 4 x 4."""
    steps: int = 2_000
    """Batches from which the smallest and largest actions are taken."""

    def __post_init__(self) -> None:
        require_enumerable(self.codes, "bins")

    def levels(self, dimensions: int) -> tuple[int, ...]:
        """Bins of each dimension; ValueError if even 2 per dimension are too many."""
        if 2**dimensions > self.codes:
            need = (
                f"raise codes to {2**dimensions:,}"
                if 2**dimensions <= MAX_JOINT_CODES
                else "choose a learned quantizer"
            )
            raise ValueError(
                f"bins: 2 bins in each of {dimensions} action dimensions already make "
                f"{2**dimensions:,} joint codes, and 10 bins 10^{dimensions}, but codes is "
                f"{self.codes:,}: {need}"
            )
        return share_out(self.codes, dimensions)

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        actions = example.actions[: self.batch_size]
        usage = jnp.zeros(math.prod(self.levels(actions.shape[-1])))
        return State(actions.min(0), actions.max(0), usage)

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        low = jnp.minimum(state.low, batch.actions.min(0))
        high = jnp.maximum(state.high, batch.actions.max(0))
        codec = BinsCodec(low, high, self.levels(len(low)))
        codes = jax.vmap(codec.encode)(batch.observations, batch.actions)
        decoded = jax.vmap(codec.decode)(batch.observations, codes)
        error = jnp.square(batch.actions - decoded).sum(-1).mean()
        usage = state.usage + jnp.bincount(codes, length=len(state.usage))
        return State(low, high, usage), {"reconstruction": error, **books.usage_metrics(usage)}

    def codec(self, state: State) -> "BinsCodec":
        return BinsCodec(state.low, state.high, self.levels(len(state.low)))


class BinsCodec(eqx.Module):
    """The nearest of a dimension's evenly spaced values; the state is ignored."""

    low: Float[Array, " act"]
    high: Float[Array, " act"]
    levels: tuple[int, ...] = eqx.field(static=True)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def encode(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        span = self.high - self.low
        share = (action - self.low) / jnp.where(span > 0, span, 1)
        digits = jnp.round(jnp.clip(share, 0, 1) * (jnp.asarray(self.levels) - 1))
        return code_of(digits.astype(jnp.int32), self.levels)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        share = digits_of(code, self.levels) / (jnp.asarray(self.levels) - 1)
        # In this form both ends are bit-exact.
        return (1 - share) * self.low + share * self.high
