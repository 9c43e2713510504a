"""Finite scalar quantization: a few bounded latent numbers, each rounded to a few levels.

There is no codebook to learn and none that can die. All combinations of levels are enumerated as
joint codes, so agents' expectations stay exact.
Source: Mentzer et al. 2023 (arXiv 2309.15505), section 3.1. Levels lie evenly in [-1, 1] for even
and odd numbers alike, which does without the paper's shift for even ones.
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
from saqrl.quantizers.binary import BinaryDimensions, encode_exactly, find_binary, watch_binary
from saqrl.quantizers.joint import code_of, digits_of, require_enumerable, share_out

# Of the moving average of the codes' use, which is only reported.
USAGE_DECAY = 0.99


class Networks(eqx.Module):
    encoder: nn.MLP
    decoder: nn.MLP


class State(eqx.Module):
    networks: nn.Learner[Networks]
    usage: Float[Array, " codes"]
    binary: BinaryDimensions


@dataclass(frozen=True)
class FSQ(Quantization):
    """State-conditioned autoencoder with rounded latents."""

    codes: int = 64
    """Joint codes at most, shared out evenly over the latents: 64 is 4 times 4 times 4."""
    latents: int = 3
    """Rounded latent numbers; fewer where 2 levels each would exceed the codes."""

    def __post_init__(self) -> None:
        require_enumerable(self.codes, "fsq")
        if self.latents < 1:
            raise ValueError(f"quantizer.latents is {self.latents}; at least 1")

    @property
    def levels(self) -> tuple[int, ...]:
        """How many values each latent takes."""
        return share_out(self.codes, max(min(self.latents, self.codes.bit_length() - 1), 1))

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        encoder_key, decoder_key = jax.random.split(key)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        latents = len(self.levels)
        networks = Networks(
            nn.MLP(encoder_key, inputs + act, self.hidden, latents, layer_norm=self.layer_norm),
            nn.MLP(decoder_key, inputs + latents, self.hidden, act, layer_norm=self.layer_norm),
        )
        usage = jnp.zeros(math.prod(self.levels))
        return State(nn.start(networks, self.optimiser()), usage, binary)

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        binary = watch_binary(state.binary, batch.actions)
        batch = ActionBatch(batch.observations, binary.widen(batch.actions))

        def loss(networks: Networks) -> tuple[Float[Array, ""], tuple[nn.Metrics, Array]]:
            latent = networks.encoder(jnp.concatenate([batch.observations, batch.actions], -1))
            bounded = jnp.tanh(latent)
            digits = round_to_levels(bounded, self.levels)
            rounded = value_of(digits, self.levels)
            through = bounded + jax.lax.stop_gradient(rounded - bounded)
            decoded = networks.decoder(jnp.concatenate([batch.observations, through], axis=-1))
            reconstruction = jnp.square(batch.actions - decoded).sum(-1).mean()
            codes = jax.vmap(lambda row: code_of(row, self.levels))(digits)
            return reconstruction, ({"reconstruction": reconstruction}, codes)

        networks, (metrics, codes) = nn.descend(state.networks, self.optimiser(), loss)
        usage = books.follow_usage(state.usage, codes, decay=USAGE_DECAY)
        metrics |= books.usage_metrics(usage)
        return State(networks, usage, binary), metrics

    def codec(self, state: State) -> "FSQCodec":
        model = state.networks.model
        return FSQCodec(model.encoder, model.decoder, state.binary, self.levels)


class FSQCodec(eqx.Module):
    """Rounded E(s, a); D(s, the values of the levels)."""

    encoder: nn.MLP
    decoder: nn.MLP
    binary: BinaryDimensions
    levels: tuple[int, ...] = eqx.field(static=True)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def encode(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        return encode_exactly(self, observation, action)

    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        widened = self.binary.widen(action)
        bounded = jnp.tanh(self.encoder(jnp.concatenate([observation, widened])))
        return code_of(round_to_levels(bounded, self.levels), self.levels)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        values = value_of(digits_of(code, self.levels), self.levels)
        decoded = self.decoder(jnp.concatenate([observation, values]))
        return self.binary.narrow(decoded)


def round_to_levels(
    bounded: Float[Array, "*batch latents"], levels: tuple[int, ...]
) -> Int[Array, "*batch latents"]:
    """The nearest of each latent's levels, counted from 0 at -1 to L - 1 at 1."""
    return jnp.round((bounded + 1) / 2 * (jnp.asarray(levels) - 1)).astype(jnp.int32)


def value_of(
    digits: Int[Array, "*batch latents"], levels: tuple[int, ...]
) -> Float[Array, "*batch latents"]:
    """Where the levels lie in [-1, 1]."""
    return 2 * digits / (jnp.asarray(levels) - 1) - 1
