"""Continuous behaviour cloning: regression of the action on the state, or maximum likelihood."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.distributions import tanh_gaussian_log_density
from saqrl.baselines.policies import REACH, GaussianPolicy, TanhGaussianActor, check_reach


@dataclass(frozen=True)
class Cloning(nn.Training):
    """The shared part of behaviour cloning: one model with one loss."""

    weight_decay: float = 1e-4
    discount: float = 0.99
    """Not used by the loss."""

    default_act = "greedy"

    def model(self, key: Key[Array, ""], inputs: int, act: int) -> Any:
        """The model to train."""
        raise NotImplementedError

    def loss(self, model: Any, batch: ContinuousTransitions) -> tuple[Array, nn.Metrics]:
        """The loss of the model on the batch, and metrics."""
        raise NotImplementedError

    def init(self, key: Key[Array, ""], example: ContinuousTransitions) -> nn.TrainState[Any]:
        model = self.model(key, example.observations.shape[-1], example.actions.shape[-1])
        return nn.init_state(model, self.optimiser())

    def update(
        self, state: nn.TrainState[Any], batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[nn.TrainState[Any], nn.Metrics]:
        return nn.gradient_step(state, self.optimiser(), lambda model: self.loss(model, batch))


@dataclass(frozen=True)
class ContinuousBC(Cloning):
    """Least squares: the mean action of a state."""

    def model(self, key: Key[Array, ""], inputs: int, act: int) -> nn.MLP:
        return self.network(key, inputs, act)

    def loss(self, model: nn.MLP, batch: ContinuousTransitions) -> tuple[Array, nn.Metrics]:
        error = jnp.square(model(batch.observations) - batch.actions).sum(-1).mean()
        return error, {"squared_error": error}

    def actor(self, state: nn.TrainState[nn.MLP]) -> "RegressionActor":
        return RegressionActor(state.model)


class RegressionActor(eqx.Module):
    """One action per state; there is nothing to sample."""

    network: nn.MLP

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        return jnp.clip(self.network(observation), -1, 1)


@dataclass(frozen=True)
class GaussianBC(Cloning):
    """Maximum likelihood of a tanh-Gaussian; its deviation depends on the state."""

    reach: float = REACH
    """Factor on the tanh before clipping to [-1, 1]; 1: plain tanh, which never reaches the
    bounds."""

    def __post_init__(self) -> None:
        check_reach(self.reach)

    def model(self, key: Key[Array, ""], inputs: int, act: int) -> GaussianPolicy:
        return GaussianPolicy(self.network(key, inputs, 2 * act))

    def loss(self, model: GaussianPolicy, batch: ContinuousTransitions) -> tuple[Array, nn.Metrics]:
        return clone_loss(model, batch, reach=self.reach)

    def actor(self, state: nn.TrainState[GaussianPolicy]) -> TanhGaussianActor:
        return TanhGaussianActor(state.model, self.reach)


def clone_loss(
    policy: GaussianPolicy, batch: ContinuousTransitions, *, reach: float
) -> tuple[Float[Array, ""], nn.Metrics]:
    """Mean negative log-likelihood of the data's actions."""
    mean, log_deviation = policy(batch.observations)
    density = jax.vmap(partial(tanh_gaussian_log_density, reach=reach))
    likelihood = density(batch.actions, mean, log_deviation).mean()
    return -likelihood, {"log_likelihood": likelihood}
