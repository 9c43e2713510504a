"""Residual vector quantization: a coarse code, and a fine code for its residual.

Two codebooks of K1 and K2 vectors make K1 K2 latent vectors. The pair is one joint code, so agents
still enumerate every code, and their expectations stay exact.
Source: Zeghidour et al. 2021 (arXiv 2107.03312), algorithm 1, with two levels.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.quantizers import ActionBatch, autoencoder
from saqrl.quantizers import codebook as books
from saqrl.quantizers.binary import BinaryDimensions, find_binary, watch_binary
from saqrl.quantizers.joint import code_of, digits_of, require_enumerable, share_out


class State(eqx.Module):
    networks: nn.TrainState[autoencoder.Networks]
    coarse: books.Codebook
    fine: books.Codebook
    usage: Float[Array, " codes"]
    binary: BinaryDimensions
    step: Int[Array, ""]


@dataclass(frozen=True)
class ResidualVQ(autoencoder.VectorQuantization):
    """State-conditioned VQ-VAE with two codebooks, the second on the residual of the first."""

    codes: int = 64
    """Maximum number of joint codes K1 K2, divided evenly: 64 is 8 x 8."""

    def __post_init__(self) -> None:
        require_enumerable(self.codes, "residual")

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        example = ActionBatch(example.observations, binary.widen(example.actions))
        *network_keys, coarse_key, fine_key = jax.random.split(key, 4)
        networks = autoencoder.make(self, network_keys, example, size=self.code_size)
        joined = autoencoder.join(example.observations, example.actions)
        encodings = books.bounded(networks.encoder(joined))
        coarse_codes, fine_codes = share_out(self.codes, 2)
        coarse = books.choose_first_codes(coarse_key, encodings, count=coarse_codes)
        residuals = encodings - coarse[books.nearest_codes(encodings, coarse)]
        fine = books.choose_first_codes(fine_key, residuals, count=fine_codes)
        return State(
            nn.init_state(networks, self.optimiser()),
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

        def loss(networks: autoencoder.Networks) -> tuple[Float[Array, ""], Aux]:
            joined = autoencoder.join(batch.observations, batch.actions)
            encodings = books.bounded(networks.encoder(joined))
            first = books.nearest_codes(encodings, state.coarse.codes)
            residuals = encodings - state.coarse.codes[first]
            second = books.nearest_codes(residuals, state.fine.codes)
            chosen = state.coarse.codes[first] + state.fine.codes[second]
            reconstruction = autoencoder.reconstruction(networks.decoder, batch, encodings, chosen)
            committed = autoencoder.commitment(encodings, chosen)
            metrics = {"reconstruction": reconstruction, "commitment": committed}
            total = reconstruction + self.commitment * committed
            return total, (metrics, encodings, residuals, first, second)

        networks, (metrics, encodings, residuals, first, second) = nn.gradient_step(
            state.networks, self.optimiser(), loss
        )
        coarse_key, fine_key = jax.random.split(key)
        coarse = self.move(state.coarse, coarse_key, encodings, first, step=state.step)
        fine = self.move(state.fine, fine_key, residuals, second, step=state.step)
        joint = first * len(state.fine.codes) + second
        usage = books.follow_usage(state.usage, joint, decay=self.decay)
        metrics |= books.usage_metrics(usage)
        return State(networks, coarse, fine, usage, binary, state.step + 1), metrics

    def codec(self, state: State) -> "ResidualCodec":
        model = state.networks.model
        return ResidualCodec(
            state.binary, model.encoder, model.decoder, state.coarse.codes, state.fine.codes
        )


class ResidualCodec(autoencoder.Codec):
    """Nearest coarse code of E(s, a), nearest fine code of the residual; D(s, their sum)."""

    coarse: Float[Array, "coarse size"]
    fine: Float[Array, "fine size"]

    @property
    def levels(self) -> tuple[int, int]:
        return len(self.coarse), len(self.fine)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def code(self, encoding: Float[Array, " size"]) -> Int[Array, ""]:
        bounded = books.bounded(encoding)
        first = books.nearest_code(bounded, self.coarse)
        second = books.nearest_code(bounded - self.coarse[first], self.fine)
        return code_of(jnp.stack([first, second]), self.levels)

    def latent(self, code: Int[Array, ""]) -> Float[Array, " size"]:
        first, second = digits_of(code, self.levels)
        return self.coarse[first] + self.fine[second]
