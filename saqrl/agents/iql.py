"""SAQ-IQL: implicit Q-learning with its policy in closed form.

Source: Kostrikov et al. 2021 (arXiv 2110.06169), eq. 5 and 6, on the codes of SAQ
(arXiv 2310.11731); the policy proportional to pi_b exp(Q / lambda) replaces eq. 7's regression.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.agents import CodedTransitions, operators


class Networks(eqx.Module):
    critics: nn.Ensemble
    value: nn.MLP


class State(eqx.Module):
    networks: nn.TrainState[Networks]
    target: nn.Ensemble


@dataclass(frozen=True)
class IQL(nn.CriticTraining):
    """Implicit Q-learning on codes."""

    expectile: float = 0.9
    """tau: of Q, which V follows; 0.5 the mean, 1 the maximum over the data's codes."""
    temperature: float = 1.0
    """lambda in pi proportional to pi_b exp(Q / lambda): small trusts Q, large the behaviour."""
    prior_floor: float = -8.0
    """log pi_b is clipped below here before it is reweighted. An even prior over more than 2,981
    codes lies below -8: lower it there."""

    default_act = "sample"
    aliases: ClassVar[dict[str, str]] = {"tau": "expectile"}

    def __post_init__(self) -> None:
        nn.require_positive(temperature=self.temperature)

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        critics_key, value_key = jax.random.split(key)
        inputs = example.observations.shape[-1]
        critics = self.ensemble(critics_key, inputs, example.num_codes, count=self.critics)
        networks = Networks(critics, self.network(value_key, inputs, 1))
        return State(nn.init_state(networks, self.optimiser()), jax.tree.map(jnp.copy, critics))

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        target_q = operators.of_code(state.target.pessimistic(batch.observations), batch.codes)
        next_value = state.networks.model.value(batch.next_observations)[..., 0]
        targets = batch.rewards + batch.discounts * next_value

        def loss(networks: Networks) -> tuple[Float[Array, ""], nn.Metrics]:
            value = networks.value(batch.observations)[..., 0]
            advantage = target_q - value
            value_loss = nn.expectile_loss(advantage, expectile=self.expectile).mean()
            q = networks.critics(batch.observations)
            data_q = jax.vmap(operators.of_code, (0, None))(q, batch.codes)
            bellman = nn.bellman_error(data_q, targets)
            metrics = {
                "value_loss": value_loss,
                "bellman_error": bellman,
                "value": value.mean(),
                "advantage": advantage.mean(),
            }
            return value_loss + bellman, metrics

        networks, metrics = nn.gradient_step(state.networks, self.optimiser(), loss)
        target = nn.polyak_update(state.target, networks.model.critics, rate=self.target_rate)
        return State(networks, target), metrics

    def actor(self, state: State) -> "ReweightedActor":
        return ReweightedActor(state.networks.model.critics, self.temperature, self.prior_floor)


class ReweightedActor(eqx.Module):
    """pi proportional to pi_b exp(Q / lambda)."""

    critics: nn.Ensemble
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
