"""SAQ-BRAC: behaviour-regularised actor-critic with exact expectations and an exact KL.

Source: Wu et al. 2019 (arXiv 1911.11361), eq. 4 to 6 (value penalty and policy regularisation),
on the codes of SAQ (arXiv 2310.11731).
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.agents import CodedTransitions, operators
from saqrl.agents.values import CodeValues, Reweighted, ValueActor


class State(eqx.Module):
    critics: nn.TrainState[nn.Ensemble]
    policy: nn.TrainState[nn.MLP] | None
    """None with closed_form."""
    target: nn.Ensemble


@dataclass(frozen=True)
class BRAC(CodeValues):
    """Behaviour-regularised actor-critic on codes."""

    alpha: float = 1.0
    """Weight of KL(pi || pi_b) in the policy's loss and in the targets."""
    prior_floor: float = -8.0
    """Lower bound of log pi_b, so that one unseen code cannot dominate the KL. A uniform prior over
    more than 2,981 codes is below -8: use a lower bound there."""
    temperature: float = 1.0
    """Temperature of the learned policy if codes are sampled."""
    closed_form: bool = False
    """The policy is pi_b exp(Q / alpha), normalised, without a policy network or its loss."""

    default_act = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        nn.require_positive(temperature=self.temperature)
        if self.closed_form:
            nn.require_positive(alpha=self.alpha)

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        critics_key, policy_key = jax.random.split(key)
        inputs, codes = example.observations.shape[-1], example.num_codes
        critics = self.new_critics(critics_key, inputs, codes)
        policy = None
        if not self.closed_form:
            policy = nn.init_state(self.network(policy_key, inputs, codes), self.optimiser())
        target = jax.tree.map(jnp.copy, critics)
        return State(nn.init_state(critics, self.optimiser()), policy, target)

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        targets = self.targets(state, batch)

        def critic_loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            return self.critic_loss(critics, batch.observations, batch.codes, targets)

        def policy_loss(policy: nn.MLP) -> tuple[Float[Array, ""], nn.Metrics]:
            q = state.critics.model.pessimistic(batch.observations)
            logits = batch.existing(policy(batch.observations), batch.log_prior)
            value, divergence = self._value_and_divergence(logits, q, batch.log_prior)
            metrics = {"divergence": divergence.mean(), "policy_value": value.mean()}
            return (self.alpha * divergence - value).mean(), metrics

        critics, critic_metrics = nn.gradient_step(state.critics, self.optimiser(), critic_loss)
        policy = state.policy
        policy_metrics: nn.Metrics = {}
        if policy is not None:
            policy, policy_metrics = nn.gradient_step(policy, self.optimiser(), policy_loss)
        target = nn.polyak_update(state.target, critics.model, rate=self.target_rate)
        return State(critics, policy, target), critic_metrics | policy_metrics

    def targets(self, state: State, batch: CodedTransitions) -> Float[Array, " batch"]:
        """Y = r + g (1-d) [sum_k pi(k|s') min_i Qbar_i(s',k) - alpha KL(pi || pi_b)(s')].

        With closed_form the bracket is alpha logsumexp(log pi_b + Q / alpha).
        """
        q = state.target.pessimistic(batch.next_observations)
        if state.policy is None:
            values = jax.vmap(self._closed_value)(self._prior(batch.next_log_prior), q)
            return batch.rewards + batch.discounts * values
        policy = state.policy.model(batch.next_observations)
        logits = batch.existing(policy, batch.next_log_prior)
        value, divergence = self._value_and_divergence(logits, q, batch.next_log_prior)
        return batch.rewards + batch.discounts * (value - self.alpha * divergence)

    def actor(self, state: State) -> "PolicyActor | ValueActor":
        if state.policy is None:
            return ValueActor(state.critics.model, Reweighted(self.alpha, self.prior_floor))
        return PolicyActor(state.policy.model, self.temperature)

    def shares(self, state: State) -> list[nn.MLP]:
        return [] if state.policy is None else [state.policy.model]

    def _value_and_divergence(
        self,
        logits: Float[Array, "batch codes"],
        q: Float[Array, "batch codes"],
        log_prior: Float[Array, "batch codes"] | None,
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        log_policy, prior = jax.nn.log_softmax(logits), self._prior(log_prior)
        floored = jax.nn.log_softmax(operators.floored_prior(prior, self.prior_floor))
        value = jax.vmap(operators.expectation)(log_policy, q)
        return value, jax.vmap(operators.kl_divergence)(log_policy, floored)

    def _closed_value(
        self, log_prior: Float[Array, " codes"], q: Float[Array, " codes"]
    ) -> Float[Array, ""]:
        return operators.regularised_value(log_prior, q, alpha=self.alpha, floor=self.prior_floor)

    def _prior(self, log_prior: Float[Array, "batch codes"] | None) -> Float[Array, "batch codes"]:
        if log_prior is None:
            raise ValueError("BRAC needs the behaviour's log-probabilities in its transitions")
        return log_prior


class PolicyActor(eqx.Module):
    """The learned pi(k|s) at its temperature."""

    network: nn.MLP
    temperature: float = eqx.field(static=True)

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        return jax.nn.log_softmax(self.network(observation)) / self.temperature
