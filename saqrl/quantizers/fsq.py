"""Finite scalar quantization: a few bounded latent numbers, each rounded to a few levels.

There is no codebook to learn, so none can collapse. All combinations of levels are enumerated as
joint codes, so agents' expectations stay exact.
Source: Mentzer et al. 2023 (arXiv 2309.15505), section 3.1. Levels are evenly spaced in [-1, 1] for
even and odd numbers of levels, without the paper's shift for even ones.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.quantizers import ActionBatch, Quantization, autoencoder
from saqrl.quantizers import codebook as books
from saqrl.quantizers.binary import BinaryDimensions, find_binary, watch_binary
from saqrl.quantizers.joint import code_of, digits_of, require_enumerable, share_out


class State(eqx.Module):
    networks: nn.TrainState[autoencoder.Networks]
    usage: Float[Array, " codes"]
    binary: BinaryDimensions


@dataclass(frozen=True)
class FSQ(Quantization):
    """State-conditioned autoencoder with rounded latents."""

    codes: int = 64
    """Maximum number of joint codes, divided evenly over the latents: 64 is 4 x 4 x 4."""
    latents: int = 3
    """Number of rounded latents; fewer if 2 levels each would exceed the codes."""

    def __post_init__(self) -> None:
        require_enumerable(self.codes, "fsq")
        if self.latents < 1:
            raise ValueError(f"quantizer.latents is {self.latents}; it must be at least 1")

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of values of each latent."""
        return share_out(self.codes, max(min(self.latents, self.codes.bit_length() - 1), 1))

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        networks = autoencoder.make(self, jax.random.split(key), example, size=len(self.levels))
        usage = jnp.zeros(math.prod(self.levels))
        return State(nn.init_state(networks, self.optimiser()), usage, binary)

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        binary = watch_binary(state.binary, batch.actions)
        batch = ActionBatch(batch.observations, binary.widen(batch.actions))

        def loss(
            networks: autoencoder.Networks,
        ) -> tuple[Float[Array, ""], tuple[nn.Metrics, Array]]:
            bounded = jnp.tanh(
                networks.encoder(autoencoder.join(batch.observations, batch.actions))
            )
            digits = round_to_levels(bounded, self.levels)
            rounded = value_of(digits, self.levels)
            error = autoencoder.reconstruction(networks.decoder, batch, bounded, rounded)
            codes = jax.vmap(lambda row: code_of(row, self.levels))(digits)
            return error, ({"reconstruction": error}, codes)

        networks, (metrics, codes) = nn.gradient_step(state.networks, self.optimiser(), loss)
        usage = books.follow_usage(state.usage, codes)
        metrics |= books.usage_metrics(usage)
        return State(networks, usage, binary), metrics

    def codec(self, state: State) -> "FSQCodec":
        model = state.networks.model
        return FSQCodec(state.binary, model.encoder, model.decoder, self.levels)


class FSQCodec(autoencoder.Codec):
    """Rounded E(s, a); D(s, the values of the levels)."""

    levels: tuple[int, ...] = eqx.field(static=True)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def code(self, encoding: Float[Array, " latents"]) -> Int[Array, ""]:
        return code_of(round_to_levels(jnp.tanh(encoding), self.levels), self.levels)

    def latent(self, code: Int[Array, ""]) -> Float[Array, " latents"]:
        return value_of(digits_of(code, self.levels), self.levels)


def round_to_levels(
    bounded: Float[Array, "*batch latents"], levels: tuple[int, ...]
) -> Int[Array, "*batch latents"]:
    """The index of each latent's nearest level, from 0 at -1 to L - 1 at 1."""
    return jnp.round((bounded + 1) / 2 * (jnp.asarray(levels) - 1)).astype(jnp.int32)


def value_of(
    digits: Int[Array, "*batch latents"], levels: tuple[int, ...]
) -> Float[Array, "*batch latents"]:
    """The values of the levels in [-1, 1]."""
    return 2 * digits / (jnp.asarray(levels) - 1) - 1
