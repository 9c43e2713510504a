"""Continuous behaviour cloning: regression of the action on the state, or its likelihood."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.distributions import tanh_gaussian_log_density
from saqrl.baselines.policies import REACH, GaussianPolicy, TanhGaussianActor, check_reach

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


@dataclass(frozen=True)
class GaussianBC(nn.Training):
    """Maximum likelihood of a tanh-Gaussian; its deviation depends on the state."""

    weight_decay: float = 1e-4
    discount: float = 0.99
    """Not in the loss."""
    reach: float = REACH
    """Largest action before clipping: 1 is the plain tanh, which no action on the bounds has."""

    default_act = "greedy"

    def __post_init__(self) -> None:
        check_reach(self.reach)

    def init(
        self, key: Key[Array, ""], example: ContinuousTransitions
    ) -> nn.Learner[GaussianPolicy]:
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        policy = GaussianPolicy(key, inputs, self.hidden, act, layer_norm=self.layer_norm)
        return nn.start(policy, self.optimiser())

    def update(
        self,
        state: nn.Learner[GaussianPolicy],
        batch: ContinuousTransitions,
        key: Key[Array, ""],
    ) -> tuple[nn.Learner[GaussianPolicy], nn.Metrics]:
        return nn.descend(
            state, self.optimiser(), lambda policy: clone_loss(policy, batch, reach=self.reach)
        )

    def actor(self, state: nn.Learner[GaussianPolicy]) -> TanhGaussianActor:
        return TanhGaussianActor(state.model, self.reach)


def clone_loss(
    policy: GaussianPolicy, batch: ContinuousTransitions, *, reach: float
) -> tuple[Float[Array, ""], nn.Metrics]:
    """Mean negative log-likelihood of the data's actions."""
    mean, log_deviation = policy(batch.observations)
    density = jax.vmap(partial(tanh_gaussian_log_density, reach=reach))
    likelihood = density(batch.actions, mean, log_deviation).mean()
    return -likelihood, {"log_likelihood": likelihood}
