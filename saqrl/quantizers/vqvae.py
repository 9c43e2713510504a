"""The state-conditioned VQ-VAE: a small codebook of actions for every state.

Source: SAQ (arXiv 2310.11731), section 4.1; VQ-VAE: van den Oord et al. 2017 (arXiv 1711.00937),
eq. 3, its moving-average codebook from appendix A.1.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from saqrl import nn
from saqrl.quantizers import ActionBatch, autoencoder
from saqrl.quantizers import codebook as books
from saqrl.quantizers.binary import BinaryDimensions, find_binary, watch_binary


class Model(autoencoder.Networks):
    codes: Float[Array, "codes size"] | None
    """The codebook if gradients move it, else None."""


class State(eqx.Module):
    networks: nn.TrainState[Model]
    codebook: books.Codebook
    usage: Float[Array, " codes"]
    binary: BinaryDimensions
    step: Int[Array, ""]


@dataclass(frozen=True)
class VQVAE(autoencoder.VectorQuantization):
    """State-conditioned vector quantization of actions."""

    codes: int = 64
    """Codebook size K."""
    encodings: Literal["bounded", "free"] = "bounded"
    """bounded: scaled to a root mean square of at most 1. free: as the encoder gives them (as in
    the paper)."""
    first_codes: Literal["kmeans", "random"] = "kmeans"
    """kmeans: clusters of the first encodings. random: uniform within sqrt(3 / K), as in the
    authors' code."""
    codebook: Literal["average", "gradient"] = "average"
    """What moves the codes: moving averages of their encodings, or the codebook loss."""
    state_scale: float = 1.0
    """Factor on the state in the inputs of encoder and decoder. Smaller: a code changes less
    between neighbouring states, which helps with few demonstrations; 0: zeros in place of the state
    (the paper's ablation)."""
    spare: int = 0
    """Number of last rows that are not codes yet; `saqrl finetune --codebook grow` sets it."""

    def __post_init__(self) -> None:
        if self.codebook == "gradient" and self.revive_below:
            raise ValueError(
                "quantizer.codebook gradient moves codes only by their loss, so codes cannot be "
                "revived: set --quantizer.revive-below 0"
            )

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        example = ActionBatch(example.observations, binary.widen(example.actions))
        *network_keys, codes_key = jax.random.split(key, 3)
        networks = autoencoder.make(self, network_keys, example, size=self.code_size)
        if self.first_codes == "kmeans":
            encodings = self._encode(networks.encoder, example)
            codes = books.choose_first_codes(codes_key, encodings, count=self.codes)
        else:
            reach = math.sqrt(3 / self.codes)
            shape = (self.codes, self.code_size)
            codes = jax.random.uniform(codes_key, shape, minval=-reach, maxval=reach)
        by_gradient = codes if self.codebook == "gradient" else None
        model = Model(networks.encoder, networks.decoder, by_gradient)
        return State(
            nn.init_state(model, self.optimiser()),
            books.start_codebook(jnp.copy(codes), live=self._live),
            jnp.zeros(self.codes),
            binary,
            jnp.zeros((), jnp.int32),
        )

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        binary = watch_binary(state.binary, batch.actions)
        batch = ActionBatch(batch.observations, binary.widen(batch.actions))
        networks, (metrics, encodings, assigned) = self._descend(state, batch)
        book = self.move(state.codebook, key, encodings, assigned, step=state.step)
        if networks.model.codes is not None:
            book = eqx.tree_at(lambda book: book.codes, book, networks.model.codes)
        # Separate from the codebook's counts, where a revived code counts as used.
        usage = books.follow_usage(state.usage, assigned, decay=self.decay)
        metrics |= books.usage_metrics(usage)
        return State(networks, book, usage, binary, state.step + 1), metrics

    def refine(self, state: State, batch: ActionBatch) -> State:
        """A training step of encoder and decoder with fixed codes."""
        batch = ActionBatch(batch.observations, state.binary.widen(batch.actions))
        return replace(state, networks=self._descend(state, batch)[0])

    def _descend(
        self, state: State, batch: ActionBatch
    ) -> tuple[nn.TrainState[Model], tuple[nn.Metrics, Array, Array]]:
        """The networks after a step on widened actions, with metrics, encodings and codes."""

        def loss(networks: Model) -> tuple[Float[Array, ""], tuple[nn.Metrics, Array, Array]]:
            codes = state.codebook.codes if networks.codes is None else networks.codes
            encodings = self._encode(networks.encoder, batch)
            assigned = books.nearest_codes(encodings, codes, state.codebook.live)
            # A product with one-hot rows: its gradient is a matrix product, not a slow scatter.
            chosen = jax.nn.one_hot(assigned, self.codes) @ codes
            reconstruction = autoencoder.reconstruction(
                networks.decoder, batch, encodings, chosen, scale=self.state_scale
            )
            committed = autoencoder.commitment(encodings, chosen)
            total = reconstruction + self.commitment * committed
            if networks.codes is not None:
                total = total + jnp.square(jax.lax.stop_gradient(encodings) - chosen).mean()
            metrics = {"reconstruction": reconstruction, "commitment": committed}
            return total, (metrics, encodings, assigned)

        return nn.gradient_step(state.networks, self.optimiser(), loss)

    @property
    def _live(self) -> Bool[Array, " codes"] | None:
        return jnp.arange(self.codes) < self.codes - self.spare if self.spare else None

    def codec(self, state: State) -> "VQCodec":
        model = state.networks.model
        codes = state.codebook.codes if model.codes is None else model.codes
        return VQCodec(
            state.binary,
            model.encoder,
            model.decoder,
            codes,
            state.codebook.live,
            self.state_scale,
            self.encodings == "bounded",
        )

    def _encode(self, encoder: nn.MLP, batch: ActionBatch) -> Float[Array, "batch size"]:
        encodings = encoder(
            autoencoder.join(batch.observations, batch.actions, scale=self.state_scale)
        )
        return books.bounded(encodings) if self.encodings == "bounded" else encodings


@dataclass(frozen=True)
class UnconditionedVQVAE(VQVAE):
    """The paper's ablation: encoder and decoder get zeros in place of the state."""

    state_scale: float = 0.0


class VQCodec(autoencoder.Codec):
    """Nearest code of E(s, a); D(s, code)."""

    codes: Float[Array, "codes size"]
    live: Bool[Array, " codes"] | None
    state_scale: float = eqx.field(static=True)
    bounded: bool = eqx.field(static=True)
    """Whether encodings are scaled to a root mean square of at most 1."""

    @property
    def num_codes(self) -> int:
        return len(self.codes)

    @property
    def exists(self) -> Bool[Array, " codes"] | None:
        return self.live

    def code(self, encoding: Float[Array, " size"]) -> Int[Array, ""]:
        return books.nearest_code(self._bounded(encoding), self.codes, self.live)

    def encoding(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Float[Array, " size"]:
        """E(s, a), in the form that is compared with the codes."""
        return self._bounded(self.encoder(self.join(observation, self.binary.widen(action))))

    def latent(self, code: Int[Array, ""]) -> Float[Array, " size"]:
        return self.codes[code]

    def join(
        self, observation: Float[Array, " features"], rest: Float[Array, " rest"]
    ) -> Float[Array, " joined"]:
        return autoencoder.join(observation, rest, scale=self.state_scale)

    def _bounded(self, encoding: Float[Array, " size"]) -> Float[Array, " size"]:
        return books.bounded(encoding) if self.bounded else encoding
