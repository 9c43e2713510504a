"""A whole data set through a codec or a prior, in blocks."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saqrl.quantizers import ActionBatch, Codec, Prior, log_prior
from saqrl.quantizers.binary import BinaryCodec

# Rows that go through a network at once.
BLOCK = 4096


def encode_all(codec: Codec, data: ActionBatch) -> Int[Array, " n"]:
    """The code of every transition.

    Where a gripper's value comes before the distance, all codes of a state are decoded only where
    the nearest one has the other value.
    """
    if not (isinstance(codec, BinaryCodec) and codec.binary.any_two_valued):
        return _encode_rows(codec, data)
    codes, wrong = _nearest_rows(codec, data)
    rows = np.flatnonzero(np.asarray(wrong))
    if not len(rows):
        return codes
    # Few lengths, so that few programs are compiled.
    padded = np.resize(rows, 1 << (len(rows) - 1).bit_length())
    chosen = _encode_rows(codec, jax.tree.map(lambda leaf: leaf[padded], data))
    return codes.at[rows].set(chosen[: len(rows)])


@jax.jit
def _encode_rows(codec: Codec, data: ActionBatch) -> Int[Array, " n"]:
    return jax.lax.map(
        lambda row: type(codec).encode(codec, *row),
        (data.observations, data.actions),
        batch_size=BLOCK,
    )


@jax.jit
def _nearest_rows(
    codec: BinaryCodec, data: ActionBatch
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """The codec's own choices, and where they have a wrong value of two."""

    def look(row: tuple[Array, Array]) -> tuple[Array, Array]:
        code = type(codec).nearest(codec, *row)
        decoded = type(codec).decode(codec, row[0], code)
        return code, codec.binary.wrong(decoded, row[1]) > 0

    return jax.lax.map(look, (data.observations, data.actions), batch_size=BLOCK)


@jax.jit
def decode_all(
    codec: Codec, observations: Float[Array, "n features"], codes: Int[Array, " n"]
) -> Float[Array, "n chunk_act"]:
    """The action that each code stands for in its state."""
    return jax.lax.map(
        lambda row: type(codec).decode(codec, *row), (observations, codes), batch_size=BLOCK
    )


@jax.jit
def log_prior_of(prior: Prior, observations: Float[Array, "n features"]) -> Float[Array, "n codes"]:
    """Log pi_b(k|s) of every state."""
    return jax.lax.map(lambda row: log_prior(prior, row), observations, batch_size=BLOCK)
