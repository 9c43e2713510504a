"""SAQ-IQL: implicit Q-learning with its policy in closed form.

Source: Kostrikov et al. 2021 (arXiv 2110.06169), eq. 5 and 6, on the codes of SAQ
(arXiv 2310.11731); the policy proportional to pi_b exp(Q / lambda) replaces eq. 7's regression.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.agents import ActionActor, Actor, CodedTransitions, operators
from saqrl.agents.values import ActionValueActor, CodeValues, Reweighted, Supported, ValueActor

# Maximum weight of a row in a weighted prior (as in IQL's own regression, its appendix B).
LARGEST_WEIGHT = 100.0


class Networks(eqx.Module):
    critics: nn.Ensemble
    value: nn.MLP
    prior: nn.MLP | None
    """The value-weighted prior; None without prior_temperature."""


class State(eqx.Module):
    networks: nn.TrainState[Networks]
    target: nn.Ensemble


@dataclass(frozen=True)
class IQL(CodeValues):
    """Implicit Q-learning on codes."""

    expectile: float = 0.9
    """tau: the expectile of Q that V learns; 0.5: the mean, towards 1: the maximum over the data's
    codes."""
    temperature: float = 1.0
    """lambda of the policy pi_b exp(Q / lambda): small trusts Q, large the behaviour."""
    prior_floor: float = -8.0
    """Lower bound of log pi_b before it is reweighted. A uniform prior over more than 2,981 codes
    is below -8: use a lower bound there."""
    q_of: Literal["codes", "actions"] = "codes"
    """codes: Q has an output for each code. actions: Q reads state and action, as it does without
    codes, and values a code by its decoded action; codes of similar actions share data."""
    extraction: Literal["reweighted", "supported"] = "reweighted"
    """reweighted: pi_b exp(Q / lambda). supported: exp(Q / lambda) over the codes that the prior
    allows; its argmax is the best of all supported codes."""
    support: float = 1.0
    """With supported: minimum prior probability of an allowed code, as a share of the uniform
    probability 1 / codes."""
    prior_temperature: float | None = None
    """T of IQL's own prior, whose cross-entropy is weighted by exp(advantage / T), at most 100;
    default: no own prior, the behaviour's is used."""

    default_act = "sample"
    aliases: ClassVar[dict[str, str]] = {"tau": "expectile"}

    def __post_init__(self) -> None:
        super().__post_init__()
        nn.require_positive(temperature=self.temperature)
        if self.prior_temperature is not None:
            nn.require_positive(prior_temperature=self.prior_temperature)

    @property
    def reads_actions(self) -> bool:
        return self.q_of == "actions"

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        critics_key, value_key = jax.random.split(key)
        inputs = example.observations.shape[-1]
        outputs = 1 if self.reads_actions else example.num_codes
        critics = self.new_critics(critics_key, self._asked(example)[0].shape[-1], outputs)
        prior = None
        if self.prior_temperature is not None:
            prior = self.network(jax.random.fold_in(key, 2), inputs, example.num_codes)
        networks = Networks(critics, self.network(value_key, inputs, 1), prior)
        return State(nn.init_state(networks, self.optimiser()), jax.tree.map(jnp.copy, critics))

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        inputs, outputs = self._asked(batch)
        target_q = self.values_of(state.target, inputs, outputs)
        next_value = state.networks.model.value(batch.next_observations)[..., 0]
        targets = batch.rewards + batch.discounts * next_value

        def loss(networks: Networks) -> tuple[Float[Array, ""], nn.Metrics]:
            value = networks.value(batch.observations)[..., 0]
            advantage = target_q - value
            value_loss = nn.expectile_loss(advantage, expectile=self.expectile).mean()
            q_loss, of_q = self.critic_loss(networks.critics, inputs, outputs, targets)
            metrics = {
                "value_loss": value_loss,
                "value": value.mean(),
                "advantage": advantage.mean(),
                **of_q,
            }
            if networks.prior is None:
                return value_loss + q_loss, metrics
            assert self.prior_temperature is not None
            weights = jnp.exp(advantage / self.prior_temperature)
            weighted = weighted_cross_entropy(networks.prior, batch, weights)
            return value_loss + q_loss + weighted, {**metrics, "weighted_cross_entropy": weighted}

        networks, metrics = nn.gradient_step(state.networks, self.optimiser(), loss)
        target = nn.polyak_update(state.target, networks.model.critics, rate=self.target_rate)
        return State(networks, target), metrics

    def _asked(
        self, batch: CodedTransitions
    ) -> tuple[Float[Array, "batch inputs"], Int[Array, " batch"]]:
        """The critics' input of each row, and the index of its code among their outputs."""
        if not self.reads_actions:
            return batch.observations, batch.codes
        if batch.actions is None:
            raise ValueError("IQL with q-of actions needs the actions in its transitions")
        inputs = jnp.concatenate([batch.observations, batch.actions], axis=-1)
        return inputs, jnp.zeros_like(batch.codes)

    def shares(self, state: State) -> list[nn.MLP]:
        prior = state.networks.model.prior
        return [] if prior is None else [prior]

    def actor(self, state: State) -> Actor | ActionActor:
        networks = state.networks.model
        rule: Reweighted | Supported = Reweighted(self.temperature, self.prior_floor)
        if self.extraction == "supported":
            rule = Supported(operators.Support(share=self.support), self.temperature)
        if self.reads_actions:
            of_actions = ActionValueActor(networks.critics, rule)
            if networks.prior is None:
                return of_actions
            return OwnPriorActionActor(networks.prior, of_actions)
        of_codes = ValueActor(networks.critics, rule)
        return of_codes if networks.prior is None else OwnPriorActor(networks.prior, of_codes)


class OwnPriorActor(eqx.Module):
    """Acts as `actor` does, with its own prior in place of the behaviour's."""

    prior: nn.MLP
    actor: ValueActor

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        return self.actor.logits(observation, jax.nn.log_softmax(self.prior(observation)))


class OwnPriorActionActor(eqx.Module):
    """The same for an actor that scores codes by their decoded actions."""

    prior: nn.MLP
    actor: ActionValueActor

    def logits_of(
        self,
        observation: Float[Array, " features"],
        log_prior: Float[Array, " codes"],
        actions: Float[Array, "codes act"],
    ) -> Float[Array, " codes"]:
        own = jax.nn.log_softmax(self.prior(observation))
        return self.actor.logits_of(observation, own, actions)


def weighted_cross_entropy(
    prior: nn.MLP, batch: CodedTransitions, weights: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Mean over rows of min(weight, 100) times the cross-entropy of the data's code.

    The weights are constants. Source: IQL's regression (arXiv 2110.06169, eq. 7), on codes.
    """
    bounded = jax.lax.stop_gradient(jnp.minimum(weights, LARGEST_WEIGHT))
    logits = batch.existing(prior(batch.observations), batch.log_prior)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.codes)
    return (bounded * losses).mean()
