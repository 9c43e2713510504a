"""K-means: the same set of actions for every state, a baseline for state-conditioned codes.

Lloyd's algorithm on a sample of the data, then mini-batch refinement on all of it.
Source: Sculley 2010, "Web-scale k-means clustering" (WWW), algorithm 1.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.quantizers import ActionBatch, Quantization
from saqrl.quantizers import codebook as books
from saqrl.quantizers.binary import BinaryCodec, BinaryDimensions, find_binary, watch_binary


class State(eqx.Module):
    centres: Float[Array, "codes act"]
    counts: Float[Array, " codes"]
    """Number of actions of which each centre is the mean."""
    binary: BinaryDimensions


@dataclass(frozen=True)
class KMeans(Quantization):
    """Centres of the actions, independent of the state; the fields of the networks are not used."""

    codes: int = 64
    """Number K of centres."""
    steps: int = 2_000
    """Mini-batches of the refinement."""
    iterations: int = 30
    """Iterations of Lloyd's algorithm before the refinement."""

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        actions = binary.widen(example.actions)
        centres = books.choose_first_codes(
            key, actions, count=self.codes, iterations=self.iterations
        )
        assigned = books.nearest_codes(actions, centres)
        counts = jnp.bincount(assigned, length=self.codes).astype(jnp.float32)
        return State(centres, counts, binary)

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        binary = watch_binary(state.binary, batch.actions)
        batch = ActionBatch(batch.observations, binary.widen(batch.actions))
        assigned = books.nearest_codes(batch.actions, state.centres)
        error = jnp.square(batch.actions - state.centres[assigned]).sum(-1).mean()
        member = jax.nn.one_hot(assigned, self.codes)
        counts = state.counts + member.sum(0)
        drawn = member.T @ batch.actions - member.sum(0)[:, None] * state.centres
        centres = state.centres + drawn / jnp.maximum(counts, 1)[:, None]
        metrics = {"reconstruction": error, **books.usage_metrics(counts)}
        return State(centres, counts, binary), metrics

    def codec(self, state: State) -> "KMeansCodec":
        return KMeansCodec(state.binary, state.centres)


class KMeansCodec(BinaryCodec):
    """The nearest centre; the state is ignored."""

    centres: Float[Array, "codes act"]

    @property
    def num_codes(self) -> int:
        return len(self.centres)

    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        return books.nearest_code(self.binary.widen(action), self.centres)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        return self.binary.narrow(self.centres[code])
