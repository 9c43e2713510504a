"""Residual vector quantization: a coarse code, and a fine one for what it leaves over.

Two codebooks of K1 and K2 vectors stand for K1 K2 latent vectors. The pair is one joint code, so
agents still enumerate every code, and their expectations stay exact.
Source: Zeghidour et al. 2021 (arXiv 2107.03312), algorithm 1, with two levels.
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


class Networks(eqx.Module):
    encoder: nn.MLP
    decoder: nn.MLP


class State(eqx.Module):
    networks: nn.Learner[Networks]
    coarse: books.Codebook
    fine: books.Codebook
    usage: Float[Array, " codes"]
    binary: BinaryDimensions
    step: Int[Array, ""]


@dataclass(frozen=True)
class ResidualVQ(Quantization):
    """State-conditioned VQ-VAE with two codebooks, the second on the residual of the first."""

    codes: int = 64
    """Joint codes K1 K2 at most, shared out evenly: 64 is 8 times 8."""
    code_size: int = 16
    """Length D of a code vector."""
    commitment: float = 4.0
    """beta: how strongly the encoder is drawn to its code, by the mean square over its D
    numbers."""
    decay: float = 0.99
    """Of the moving averages that move the codes."""
    revive_below: float = 0.3
    """A code used less often than this share of an even use is moved onto an encoding; 0 never."""
    revive_until: float = 0.6
    """Share of the steps after which codes stay where they are, to be learned in peace."""

    def __post_init__(self) -> None:
        require_enumerable(self.codes, "residual")

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        example = ActionBatch(example.observations, binary.widen(example.actions))
        encoder_key, decoder_key, coarse_key, fine_key = jax.random.split(key, 4)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        encoder = nn.MLP(
            encoder_key, inputs + act, self.hidden, self.code_size, layer_norm=self.layer_norm
        )
        decoder = nn.MLP(
            decoder_key, inputs + self.code_size, self.hidden, act, layer_norm=self.layer_norm
        )
        joined = jnp.concatenate([example.observations, example.actions], -1)
        encodings = books.bounded(encoder(joined))
        coarse_codes, fine_codes = share_out(self.codes, 2)
        coarse = books.choose_first_codes(coarse_key, encodings, count=coarse_codes)
        residuals = encodings - coarse[books.nearest_codes(encodings, coarse)]
        fine = books.choose_first_codes(fine_key, residuals, count=fine_codes)
        return State(
            nn.start(Networks(encoder, decoder), self.optimiser()),
            books.start_codebook(coarse),
            books.start_codebook(fine),
            jnp.zeros(coarse_codes * fine_codes),
            binary,
            jnp.zeros((), jnp.int32),
        )

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        binary = watch_binary(state.binary, batch.actions)
        batch = ActionBatch(batch.observations, binary.widen(batch.actions))
        Aux = tuple[nn.Metrics, Array, Array, Array, Array]

        def loss(networks: Networks) -> tuple[Float[Array, ""], Aux]:
            joined = jnp.concatenate([batch.observations, batch.actions], axis=-1)
            encodings = books.bounded(networks.encoder(joined))
            first = books.nearest_codes(encodings, state.coarse.codes)
            residuals = encodings - state.coarse.codes[first]
            second = books.nearest_codes(residuals, state.fine.codes)
            chosen = state.coarse.codes[first] + state.fine.codes[second]
            through = encodings + jax.lax.stop_gradient(chosen - encodings)
            decoded = networks.decoder(jnp.concatenate([batch.observations, through], axis=-1))
            reconstruction = jnp.square(batch.actions - decoded).sum(-1).mean()
            committed = jnp.square(encodings - jax.lax.stop_gradient(chosen)).mean()
            metrics = {"reconstruction": reconstruction, "commitment": committed}
            total = reconstruction + self.commitment * committed
            return total, (metrics, encodings, residuals, first, second)

        networks, (metrics, encodings, residuals, first, second) = nn.descend(
            state.networks, self.optimiser(), loss
        )
        coarse_key, fine_key = jax.random.split(key)
        coarse = self._follow(state, state.coarse, encodings, first, coarse_key)
        fine = self._follow(state, state.fine, residuals, second, fine_key)
        joint = first * len(state.fine.codes) + second
        usage = books.follow_usage(state.usage, joint, decay=self.decay)
        metrics |= books.usage_metrics(usage)
        return State(networks, coarse, fine, usage, binary, state.step + 1), metrics

    def codec(self, state: State) -> "ResidualCodec":
        model = state.networks.model
        return ResidualCodec(
            model.encoder, model.decoder, state.coarse.codes, state.fine.codes, state.binary
        )

    def _follow(
        self, state: State, book: books.Codebook, vectors: Array, assigned: Array, key: Array
    ) -> books.Codebook:
        followed = books.follow_assignments(book, vectors, assigned, decay=self.decay)
        if not self.revive_below:
            return followed
        reviving = state.step < self.revive_until * self.steps
        even_use = self.batch_size / len(book.codes)
        minimum = jnp.where(reviving, self.revive_below * even_use, 0.0)
        return books.revive_unused(followed, key, vectors, minimum_count=minimum)


class ResidualCodec(eqx.Module):
    """Nearest coarse code of E(s, a), nearest fine code of the rest; D(s, their sum)."""

    encoder: nn.MLP
    decoder: nn.MLP
    coarse: Float[Array, "coarse size"]
    fine: Float[Array, "fine size"]
    binary: BinaryDimensions

    @property
    def levels(self) -> tuple[int, int]:
        return len(self.coarse), len(self.fine)

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
        encoding = books.bounded(self.encoder(jnp.concatenate([observation, widened])))
        first = books.nearest_code(encoding, self.coarse)
        second = books.nearest_code(encoding - self.coarse[first], self.fine)
        return code_of(jnp.stack([first, second]), self.levels)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        first, second = digits_of(code, self.levels)
        vector = self.coarse[first] + self.fine[second]
        decoded = self.decoder(jnp.concatenate([observation, vector]))
        return self.binary.narrow(decoded)
