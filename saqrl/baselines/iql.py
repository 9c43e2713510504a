"""IQL: implicit Q-learning with advantage-weighted regression of the policy.

Source: Kostrikov et al. 2021 (arXiv 2110.06169), eq. 5 to 7. As in its authors' code, the policy is
a Gaussian with mean tanh f(s) and a deviation that does not depend on the state.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.critics import pessimistic_q, q_values
from saqrl.baselines.distributions import gaussian_log_density, gaussian_sample
from saqrl.baselines.policies import LOG_DEVIATION_MAX, LOG_DEVIATION_MIN

MAX_WEIGHT = 100.0


class Policy(eqx.Module):
    """N(tanh f(s), exp(log_deviation)^2); acting clips it to [-1, 1]."""

    network: nn.MLP
    log_deviation: Float[Array, " act"]

    def __call__(
        self, observations: Float[Array, "*batch features"]
    ) -> tuple[Float[Array, "*batch act"], Float[Array, " act"]]:
        bounded = jnp.clip(self.log_deviation, LOG_DEVIATION_MIN, LOG_DEVIATION_MAX)
        return jnp.tanh(self.network(observations)), bounded

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        mean, log_deviation = self(observation)
        if greedy:
            return mean
        noise = jax.random.normal(key, mean.shape)
        return jnp.clip(gaussian_sample(noise, mean, log_deviation), -1, 1)


class Networks(eqx.Module):
    critics: nn.Ensemble
    value: nn.MLP
    policy: Policy


class State(eqx.Module):
    networks: nn.TrainState[Networks]
    target: nn.Ensemble


@dataclass(frozen=True)
class IQL(nn.CriticTraining):
    """Implicit Q-learning."""

    expectile: float = 0.7
    """tau: the expectile of Q that V learns."""
    beta: float = 3.0
    """Inverse temperature of the weights exp(beta A); 0: cloning, large: trusts Q."""

    default_act = "greedy"
    aliases: ClassVar[dict[str, str]] = {"tau": "expectile"}

    def init(self, key: Key[Array, ""], example: ContinuousTransitions) -> State:
        critics_key, value_key, policy_key = jax.random.split(key, 3)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        critics = self.ensemble(critics_key, inputs + act, 1, count=self.critics)
        value = self.network(value_key, inputs, 1)
        policy = Policy(nn.MLP(policy_key, inputs, self.hidden, act), jnp.zeros(act))
        learner = nn.init_state(Networks(critics, value, policy), self.optimiser())
        return State(learner, jax.tree.map(jnp.copy, critics))

    def update(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        networks, metrics = nn.gradient_step(
            state.networks, self.optimiser(), lambda model: self.loss(model, state.target, batch)
        )
        target = nn.polyak_update(state.target, networks.model.critics, rate=self.target_rate)
        return State(networks, target), metrics

    def loss(
        self, networks: Networks, target: nn.Ensemble, batch: ContinuousTransitions
    ) -> tuple[Float[Array, ""], nn.Metrics]:
        """L_V + L_Q + L_pi; each has gradients only for its own network."""
        target_q = pessimistic_q(target, batch.observations, batch.actions)
        advantage = target_q - networks.value(batch.observations)[..., 0]
        value_loss = nn.expectile_loss(advantage, expectile=self.expectile).mean()
        next_value = networks.value(batch.next_observations)[..., 0]
        y = jax.lax.stop_gradient(batch.rewards + batch.discounts * next_value)
        data_q = q_values(networks.critics, batch.observations, batch.actions)
        bellman = nn.bellman_error(data_q, y)
        mean, log_deviation = networks.policy(batch.observations)
        density = jax.vmap(gaussian_log_density, (0, 0, None))(batch.actions, mean, log_deviation)
        weights = advantage_weight(jax.lax.stop_gradient(advantage), beta=self.beta)
        metrics = {
            "value_loss": value_loss,
            "bellman_error": bellman,
            "advantage": advantage.mean(),
            "weight": weights.mean(),
            "log_likelihood": density.mean(),
        }
        return value_loss + bellman - (weights * density).mean(), metrics

    def actor(self, state: State) -> Policy:
        return state.networks.model.policy


def advantage_weight(advantage: Float[Array, "*batch"], *, beta: float) -> Float[Array, "*batch"]:
    """min(exp(beta A), 100). Source: arXiv 2110.06169, eq. 7, clipped as in its code."""
    # Clipped before exp, which would overflow.
    return jnp.exp(jnp.minimum(beta * advantage, jnp.log(MAX_WEIGHT)))
