"""SAQ-IQL: implicit Q-learning with its policy in closed form.

Source: Kostrikov et al. 2021 (arXiv 2110.06169), eq. 5 and 6, on the codes of SAQ
(arXiv 2310.11731); the policy proportional to pi_b exp(Q / lambda) replaces eq. 7's regression.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.agents import CodedTransitions, operators
from saqrl.agents.values import CodeValues, CriticActor, ReweightedActor


class Networks(eqx.Module):
    critics: nn.Ensemble
    value: nn.MLP


class State(eqx.Module):
    networks: nn.TrainState[Networks]
    target: nn.Ensemble


@dataclass(frozen=True)
class IQL(CodeValues):
    """Implicit Q-learning on codes."""

    expectile: float = 0.9
    """tau: of Q, which V follows; 0.5 the mean, 1 the maximum over the data's codes."""
    temperature: float = 1.0
    """lambda in pi proportional to pi_b exp(Q / lambda): small trusts Q, large the behaviour."""
    prior_floor: float = -8.0
    """log pi_b is clipped below here before it is reweighted. An even prior over more than 2,981
    codes lies below -8: lower it there."""
    extraction: Literal["reweighted", "supported"] = "reweighted"
    """reweighted: pi_b exp(Q / lambda). supported: exp(Q / lambda) over the codes that the prior
    allows, whose argmax is the best of all that the data supports."""
    support: float = 1.0
    """supported: codes of at least this share of an even prior are allowed."""

    default_act = "sample"
    aliases: ClassVar[dict[str, str]] = {"tau": "expectile"}

    def __post_init__(self) -> None:
        super().__post_init__()
        nn.require_positive(temperature=self.temperature)

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        critics_key, value_key = jax.random.split(key)
        inputs = example.observations.shape[-1]
        critics = self.new_critics(critics_key, inputs, example.num_codes)
        networks = Networks(critics, self.network(value_key, inputs, 1))
        return State(nn.init_state(networks, self.optimiser()), jax.tree.map(jnp.copy, critics))

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        target_q = self.values_of(state.target, batch.observations, batch.codes)
        next_value = state.networks.model.value(batch.next_observations)[..., 0]
        targets = batch.rewards + batch.discounts * next_value

        def loss(networks: Networks) -> tuple[Float[Array, ""], nn.Metrics]:
            value = networks.value(batch.observations)[..., 0]
            advantage = target_q - value
            value_loss = nn.expectile_loss(advantage, expectile=self.expectile).mean()
            q_loss, of_q = self.critic_loss(
                networks.critics, batch.observations, batch.codes, targets
            )
            metrics = {
                "value_loss": value_loss,
                "value": value.mean(),
                "advantage": advantage.mean(),
                **of_q,
            }
            return value_loss + q_loss, metrics

        networks, metrics = nn.gradient_step(state.networks, self.optimiser(), loss)
        target = nn.polyak_update(state.target, networks.model.critics, rate=self.target_rate)
        return State(networks, target), metrics

    def actor(self, state: State) -> "ReweightedActor | CriticActor":
        critics = state.networks.model.critics
        if self.extraction == "supported":
            support = operators.Support(share=self.support)
            return CriticActor(critics, support, self.temperature)
        return ReweightedActor(critics, self.temperature, self.prior_floor)
