"""The state-conditioned VQ-VAE: a small codebook of actions for every state.

Source: SAQ (arXiv 2310.11731), section 4.1; VQ-VAE: van den Oord et al. 2017 (arXiv 1711.00937),
eq. 3, its moving-average codebook from appendix A.1.
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.quantizers import ActionBatch, Quantization
from saqrl.quantizers import codebook as books
from saqrl.quantizers.binary import BinaryDimensions, encode_exactly, find_binary, watch_binary


class Networks(eqx.Module):
    encoder: nn.MLP
    decoder: nn.MLP
    codes: Float[Array, "codes size"] | None
    """The codebook where gradients move it, else None."""


class State(eqx.Module):
    networks: nn.Learner[Networks]
    codebook: books.Codebook
    usage: Float[Array, " codes"]
    binary: BinaryDimensions
    step: Int[Array, ""]


@dataclass(frozen=True)
class VQVAE(Quantization):
    """State-conditioned vector quantization of actions."""

    codes: int = 64
    """Codebook size K."""
    code_size: int = 16
    """Length D of a code vector."""
    encodings: Literal["bounded", "free"] = "bounded"
    """Of a root mean square of at most 1, or as the encoder makes them (the paper's)."""
    commitment: float = 4.0
    """beta: how strongly the encoder is drawn to its code, by the mean square over its D
    numbers."""
    first_codes: Literal["kmeans", "random"] = "kmeans"
    """Clusters of the first encodings, or vectors drawn evenly within sqrt(3 / K), as the authors'
    code has them."""
    codebook: Literal["average", "gradient"] = "average"
    """What moves the codes: moving averages of their encodings, or the codebook loss."""
    decay: float = 0.99
    """Of the moving averages."""
    revive_below: float = 0.3
    """A code used less often than this share of an even use is moved onto an encoding; 0 never.
    Where there are fewer codes than this share of the batch, all are drawn anew at almost every
    step: the decoder learns to decode whatever encoding it is given."""
    revive_until: float = 0.6
    """Share of the steps after which codes only follow their encodings."""
    state_scale: float = 1.0
    """Factor on the state that encoder and decoder see. Smaller: a code means more nearly the same
    in neighbouring states, as few demonstrations need it; 0: zeros in place of the state (the
    paper's ablation)."""

    def __post_init__(self) -> None:
        if self.codebook == "gradient" and self.revive_below:
            raise ValueError(
                "quantizer.codebook gradient moves codes by their loss alone: set "
                "--quantizer.revive-below 0"
            )

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        example = ActionBatch(example.observations, binary.widen(example.actions))
        encoder_key, decoder_key, codes_key = jax.random.split(key, 3)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        encoder = nn.MLP(
            encoder_key, inputs + act, self.hidden, self.code_size, layer_norm=self.layer_norm
        )
        decoder = nn.MLP(
            decoder_key, inputs + self.code_size, self.hidden, act, layer_norm=self.layer_norm
        )
        if self.first_codes == "kmeans":
            encodings = self._encode(encoder, example)
            codes = books.choose_first_codes(codes_key, encodings, count=self.codes)
        else:
            reach = math.sqrt(3 / self.codes)
            shape = (self.codes, self.code_size)
            codes = jax.random.uniform(codes_key, shape, minval=-reach, maxval=reach)
        by_gradient = codes if self.codebook == "gradient" else None
        learner = nn.start(Networks(encoder, decoder, by_gradient), self.optimiser())
        book = books.start_codebook(jnp.copy(codes))
        return State(learner, book, jnp.zeros(self.codes), binary, jnp.zeros((), jnp.int32))

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        binary = watch_binary(state.binary, batch.actions)
        batch = ActionBatch(batch.observations, binary.widen(batch.actions))

        def loss(networks: Networks) -> tuple[Float[Array, ""], tuple[nn.Metrics, Array, Array]]:
            codes = state.codebook.codes if networks.codes is None else networks.codes
            encodings = self._encode(networks.encoder, batch)
            assigned = books.nearest_codes(encodings, codes)
            # A product with one-hot rows: its gradient is a matrix product, not a slow scatter.
            chosen = jax.nn.one_hot(assigned, self.codes) @ codes
            through = encodings + jax.lax.stop_gradient(chosen - encodings)
            decoded = networks.decoder(self._join(batch.observations, through))
            reconstruction = jnp.square(batch.actions - decoded).sum(-1).mean()
            pulled = jnp.square(jax.lax.stop_gradient(encodings) - chosen).mean()
            committed = jnp.square(encodings - jax.lax.stop_gradient(chosen)).mean()
            total = reconstruction + self.commitment * committed
            if networks.codes is not None:
                total = total + pulled
            metrics = {"reconstruction": reconstruction, "commitment": committed}
            return total, (metrics, encodings, assigned)

        networks, (metrics, encodings, assigned) = nn.descend(
            state.networks, self.optimiser(), loss
        )
        followed = books.follow_assignments(state.codebook, encodings, assigned, decay=self.decay)
        if networks.model.codes is not None:
            followed = eqx.tree_at(lambda book: book.codes, followed, networks.model.codes)
        # Of its own: a code that is drawn anew counts as used in the codebook.
        usage = books.follow_usage(state.usage, assigned, decay=self.decay)
        metrics |= books.usage_metrics(usage)
        if self.revive_below:
            even_use = self.batch_size / self.codes
            reviving = state.step < self.revive_until * self.steps
            minimum = jnp.where(reviving, self.revive_below * even_use, 0.0)
            followed = books.revive_unused(followed, key, encodings, minimum_count=minimum)
        return State(networks, followed, usage, binary, state.step + 1), metrics

    def codec(self, state: State) -> "VQCodec":
        model = state.networks.model
        codes = state.codebook.codes if model.codes is None else model.codes
        return VQCodec(
            model.encoder,
            model.decoder,
            codes,
            state.binary,
            self.state_scale,
            self.encodings == "bounded",
        )

    def _encode(self, encoder: nn.MLP, batch: ActionBatch) -> Float[Array, "batch size"]:
        encodings = encoder(self._join(batch.observations, batch.actions))
        return books.bounded(encodings) if self.encodings == "bounded" else encodings

    def _join(
        self, observations: Float[Array, "*batch features"], rest: Float[Array, "*batch rest"]
    ) -> Float[Array, "*batch joined"]:
        return _join(observations, rest, scale=self.state_scale)


@dataclass(frozen=True)
class UnconditionedVQVAE(VQVAE):
    """The paper's ablation: encoder and decoder see zeros in place of the state."""

    state_scale: float = 0.0


class VQCodec(eqx.Module):
    """Nearest code of E(s, a); D(s, code)."""

    encoder: nn.MLP
    decoder: nn.MLP
    codes: Float[Array, "codes size"]
    binary: BinaryDimensions
    state_scale: float = eqx.field(static=True)
    bounded: bool = eqx.field(static=True)
    """Whether long encodings are shortened."""

    @property
    def num_codes(self) -> int:
        return len(self.codes)

    def encode(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        return encode_exactly(self, observation, action)

    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        joined = _join(observation, self.binary.widen(action), scale=self.state_scale)
        encoding = self.encoder(joined)
        return books.nearest_code(books.bounded(encoding) if self.bounded else encoding, self.codes)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        vector = self.codes[code]
        joined = _join(observation, vector, scale=self.state_scale)
        return self.binary.narrow(self.decoder(joined))


def _join(
    observations: Float[Array, "*batch features"],
    rest: Float[Array, "*batch rest"],
    *,
    scale: float,
) -> Float[Array, "*batch joined"]:
    seen = scale * observations if scale else jnp.zeros_like(observations)
    return jnp.concatenate([seen, rest], axis=-1)
