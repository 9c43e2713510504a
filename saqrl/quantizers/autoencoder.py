"""The shared part of the quantizers with an encoder E(s, a) and a decoder D(s, z)."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.quantizers import ActionBatch, Quantization
from saqrl.quantizers import codebook as books
from saqrl.quantizers.binary import BinaryCodec


class Networks(eqx.Module):
    encoder: nn.MLP
    decoder: nn.MLP


def make(
    training: nn.Training, keys: Iterable[Key[Array, ""]], example: ActionBatch, *, size: int
) -> Networks:
    """Encoder and decoder around a latent vector of `size` numbers, a key for each."""
    encoder_key, decoder_key = keys
    inputs, act = example.observations.shape[-1], example.actions.shape[-1]
    return Networks(
        training.network(encoder_key, inputs + act, size),
        training.network(decoder_key, inputs + size, act),
    )


def join(
    observations: Float[Array, "*batch features"],
    rest: Float[Array, "*batch rest"],
    *,
    scale: float = 1.0,
) -> Float[Array, "*batch joined"]:
    """The input of a network: the state times `scale` (zeros if scale is 0), and `rest`."""
    seen = scale * observations if scale else jnp.zeros_like(observations)
    return jnp.concatenate([seen, rest], axis=-1)


def reconstruction(
    decoder: nn.MLP,
    batch: ActionBatch,
    encodings: Float[Array, "batch size"],
    chosen: Float[Array, "batch size"],
    *,
    scale: float = 1.0,
) -> Float[Array, ""]:
    """Mean of |a - D(s, chosen)|^2, straight-through: the gradient of `chosen` goes to `encodings`.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), section 3.2.
    """
    through = encodings + jax.lax.stop_gradient(chosen - encodings)
    decoded = decoder(join(batch.observations, through, scale=scale))
    return jnp.square(batch.actions - decoded).sum(-1).mean()


def commitment(
    encodings: Float[Array, "batch size"], chosen: Float[Array, "batch size"]
) -> Float[Array, ""]:
    """Mean square of encoding - code; moves only the encodings (arXiv 1711.00937, eq. 3)."""
    return jnp.square(encodings - jax.lax.stop_gradient(chosen)).mean()


class Codec(BinaryCodec):
    """E(s, a) gives a code, and D(s, the code's latent vector) an action."""

    encoder: nn.MLP
    decoder: nn.MLP

    @abstractmethod
    def code(self, encoding: Float[Array, " size"]) -> Int[Array, ""]:
        """The code of an encoding."""

    @abstractmethod
    def latent(self, code: Int[Array, ""]) -> Float[Array, " size"]:
        """The latent vector of a code, which the decoder reads."""

    def join(
        self, observation: Float[Array, " features"], rest: Float[Array, " rest"]
    ) -> Float[Array, " joined"]:
        """The input of encoder and decoder."""
        return join(observation, rest)

    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        return self.code(self.encoder(self.join(observation, self.binary.widen(action))))

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        return self.decode_latent(observation, self.latent(code))

    def decode_latent(
        self, observation: Float[Array, " features"], latent: Float[Array, " size"]
    ) -> Float[Array, " act"]:
        """The decoded action of any latent vector."""
        return self.binary.narrow(self.decoder(self.join(observation, latent)))


@dataclass(frozen=True)
class VectorQuantization(Quantization):
    """Additional settings of quantizers with codebooks."""

    code_size: int = 16
    """Length D of a code vector."""
    commitment: float = 4.0
    """beta: weight of the mean square distance from an encoding to its code, which moves the
    encoder."""
    decay: float = 0.99
    """Decay of the moving averages that move the codes."""
    revive_below: float = 0.3
    """A code is moved onto an encoding of the batch if its use is below this share of uniform use;
    0: never. With fewer codes than this share of the batch size, almost all codes are moved at
    every step, and the decoder learns to decode any encoding."""
    revive_until: float = 0.6
    """Share of the steps after which codes are no longer revived and only follow their
    encodings."""

    def move(
        self,
        book: books.Codebook,
        key: Key[Array, ""],
        vectors: Float[Array, "n size"],
        assigned: Int[Array, " n"],
        *,
        step: Int[Array, ""],
    ) -> books.Codebook:
        """The codebook after a batch: codes follow their vectors, unused ones are revived."""
        followed = books.follow_assignments(book, vectors, assigned, decay=self.decay)
        if not self.revive_below:
            return followed
        even_use = self.batch_size / len(book.codes)
        reviving = step < self.revive_until * self.steps
        minimum = jnp.where(reviving, self.revive_below * even_use, 0.0)
        return books.revive_unused(followed, key, vectors, minimum_count=minimum)
