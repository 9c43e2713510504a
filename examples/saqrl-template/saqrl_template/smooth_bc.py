"""Cloning with smoothed labels: some of the probability goes to every code.

Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.agents import CodedTransitions

State = nn.TrainState[nn.MLP]


@dataclass(frozen=True)
class SmoothBC(nn.Training):
    """Behaviour cloning on codes with label smoothing."""

    steps: int = 10_000
    smoothing: float = 0.1
    """Probability that the target spreads evenly over all codes."""
    discount: float = 0.99
    """Not in the loss: every agent states the discount that its transitions are coded with."""

    default_act = "sample"

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"agent.smoothing is {self.smoothing}; at least 0 and less than 1")

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        """Before the first step; of `example` only the shapes matter."""
        inputs = example.observations.shape[-1]
        network = nn.MLP(key, inputs, self.hidden, example.num_codes, layer_norm=self.layer_norm)
        return nn.init_state(network, self.optimiser())

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        """One gradient step; metrics are averaged over a logging interval."""

        def loss(network: nn.MLP) -> tuple[Float[Array, ""], nn.Metrics]:
            targets = jax.nn.one_hot(batch.codes, batch.num_codes)
            targets = optax.smooth_labels(targets, self.smoothing)
            losses = optax.softmax_cross_entropy(network(batch.observations), targets)
            return losses.mean(), {"cross_entropy": losses.mean()}

        return nn.gradient_step(state, self.optimiser(), loss)

    def actor(self, state: State) -> "SmoothActor":
        """What is left after training; a pytree of arrays."""
        return SmoothActor(state.model)


class SmoothActor(eqx.Module):
    """Scores the codes of one state."""

    network: nn.MLP

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        """Unnormalised log-probabilities."""
        return self.network(observation)
