"""Candidate actions: a network proposes K actions for a state; the code is the index of one.

Source: AQuaDem, Dadashi et al. 2021 (arXiv 2110.10149), section 3, eq. 3.
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
    network: nn.TrainState[nn.MLP]
    usage: Float[Array, " codes"]
    binary: BinaryDimensions


@dataclass(frozen=True)
class Candidates(Quantization):
    """K state-dependent candidate actions, fitted to the data by a soft minimum."""

    codes: int = 64
    """Number K of candidates for every state."""
    temperature: float = 0.01
    """T of the soft minimum, in squared units of the scaled action; towards 0 only the nearest
    candidate learns."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"quantizer.temperature is {self.temperature}; it must be positive")

    def init(self, key: Key[Array, ""], example: ActionBatch) -> State:
        binary = find_binary(example.actions)
        example = ActionBatch(example.observations, binary.widen(example.actions))
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        network_key, first_key = jax.random.split(key)
        network = self.network(network_key, inputs, self.codes * act)
        # Start at the clusters of the data, so that no candidate starts far from all actions.
        first = books.choose_first_codes(first_key, example.actions, count=self.codes)
        biases = (*network.biases[:-1], first.reshape(-1))
        network = eqx.tree_at(lambda net: net.biases, network, biases)
        usage = jnp.zeros(self.codes)
        return State(nn.init_state(network, self.optimiser()), usage, binary)

    def update(
        self, state: State, batch: ActionBatch, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        binary = watch_binary(state.binary, batch.actions)
        batch = ActionBatch(batch.observations, binary.widen(batch.actions))

        def loss(network: nn.MLP) -> tuple[Float[Array, ""], tuple[nn.Metrics, Array]]:
            proposed = network(batch.observations).reshape(len(batch.actions), self.codes, -1)
            squared = jnp.square(proposed - batch.actions[:, None]).sum(-1)
            value = jax.vmap(soft_minimum, (0, None))(squared, self.temperature).mean()
            return value, ({"reconstruction": squared.min(-1).mean()}, squared.argmin(-1))

        network, (metrics, codes) = nn.gradient_step(state.network, self.optimiser(), loss)
        usage = books.follow_usage(state.usage, codes)
        metrics |= books.usage_metrics(usage)
        return State(network, usage, binary), metrics

    def codec(self, state: State) -> "CandidatesCodec":
        return CandidatesCodec(state.binary, state.network.model)


def soft_minimum(values: Float[Array, " codes"], temperature: float) -> Float[Array, ""]:
    """-T log sum_k exp(-values[k] / T): at most the minimum, which is its limit as T goes to 0."""
    return -temperature * jax.nn.logsumexp(-values / temperature)


class CandidatesCodec(BinaryCodec):
    """The nearest of the state's candidates."""

    network: nn.MLP

    @property
    def num_codes(self) -> int:
        return len(self.network.biases[-1]) // len(self.binary.low)

    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        distance = jnp.square(self._candidates(observation) - action).sum(-1)
        return distance.argmin().astype(jnp.int32)

    def decode(
        self, observation: Float[Array, " features"], code: Int[Array, ""]
    ) -> Float[Array, " act"]:
        return self._candidates(observation)[code]

    def _candidates(self, observation: Float[Array, " features"]) -> Float[Array, "codes act"]:
        return self.binary.narrow(self.network(observation).reshape(self.num_codes, -1))
