"""SAQ-IQL: implicit Q-learning with its policy in closed form.

Source: Kostrikov et al. 2021 (arXiv 2110.06169), eq. 5 and 6, on the codes of SAQ
(arXiv 2310.11731); the policy proportional to pi_b exp(Q / lambda) replaces eq. 7's regression.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.agents import CodedTransitions, operators
from saqrl.agents.critics import Critics, of_code


class Networks(eqx.Module):
    critics: Critics
    value: nn.MLP


class State(eqx.Module):
    networks: nn.Learner[Networks]
    target: Critics


@dataclass(frozen=True)
class IQL(nn.CriticTraining):
    """Implicit Q-learning on codes."""

    tau: float = 0.9
    """Expectile of Q that V follows: 0.5 the mean, 1 the maximum over the data's codes."""
    temperature: float = 1.0
    """lambda in pi proportional to pi_b exp(Q / lambda): small trusts Q, large the behaviour."""
    prior_floor: float = -8.0
    """log pi_b is clipped below here before it is reweighted. An even prior over more than 2,981
    codes lies below -8: lower it there."""

    default_act = "sample"

    def __post_init__(self) -> None:
        nn.require_positive(temperature=self.temperature)

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        critics_key, value_key = jax.random.split(key)
        inputs = example.observations.shape[-1]
        critics = Critics(
            critics_key,
            inputs,
            self.hidden,
            example.num_codes,
            count=self.critics,
            layer_norm=self.layer_norm,
        )
        value = nn.MLP(value_key, inputs, self.hidden, 1, layer_norm=self.layer_norm)
        learner = nn.start(Networks(critics, value), self.optimiser())
        return State(learner, jax.tree.map(jnp.copy, critics))

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        target_q = of_code(state.target.pessimistic(batch.observations), batch.codes)
        next_value = state.networks.model.value(batch.next_observations)[..., 0]
        targets = batch.rewards + batch.discounts * next_value

        def loss(networks: Networks) -> tuple[Float[Array, ""], nn.Metrics]:
            value = networks.value(batch.observations)[..., 0]
            advantage = target_q - value
            value_loss = nn.expectile_loss(advantage, tau=self.tau).mean()
            data_q = jax.vmap(of_code, (0, None))(networks.critics(batch.observations), batch.codes)
            bellman = jnp.square(data_q - targets).mean(-1).sum()
            metrics = {
                "value_loss": value_loss,
                "bellman_error": bellman,
                "value": value.mean(),
                "advantage": advantage.mean(),
            }
            return value_loss + bellman, metrics

        networks, metrics = nn.descend(state.networks, self.optimiser(), loss)
        target = nn.follow(state.target, networks.model.critics, rate=self.target_rate)
        return State(networks, target), metrics

    def actor(self, state: State) -> "ReweightedActor":
        return ReweightedActor(state.networks.model.critics, self.temperature, self.prior_floor)


class ReweightedActor(eqx.Module):
    """pi proportional to pi_b exp(Q / lambda)."""

    critics: Critics
    temperature: float = eqx.field(static=True)
    prior_floor: float = eqx.field(static=True)

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        return operators.reweighted_prior(
            log_prior,
            self.critics.pessimistic(observation),
            temperature=self.temperature,
            floor=self.prior_floor,
        )
