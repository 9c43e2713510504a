"""Continuous behaviour cloning: regression of the action on the state."""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions

State = nn.Learner[nn.MLP]


@dataclass(frozen=True)
class ContinuousBC(nn.Training):
    """Least squares: the mean action of a state."""

    weight_decay: float = 1e-4
    discount: float = 0.99
    """Not in the loss."""

    default_act = "greedy"

    def init(self, key: Key[Array, ""], example: ContinuousTransitions) -> State:
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        network = nn.MLP(key, inputs, self.hidden, act, layer_norm=self.layer_norm)
        return nn.start(network, self.optimiser())

    def update(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        def loss(network: nn.MLP) -> tuple[Float[Array, ""], nn.Metrics]:
            errors = jnp.square(network(batch.observations) - batch.actions).sum(-1)
            return errors.mean(), {"squared_error": errors.mean()}

        return nn.descend(state, self.optimiser(), loss)

    def actor(self, state: State) -> "RegressionActor":
        return RegressionActor(state.model)


class RegressionActor(eqx.Module):
    """One action a state; there is nothing to sample."""

    network: nn.MLP

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        return jnp.clip(self.network(observation), -1, 1)
