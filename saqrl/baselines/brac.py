"""BRAC-v: behaviour-regularised actor-critic with a value penalty.

Source: Wu et al. 2019 (arXiv 1911.11361), eq. 4 to 6. The behaviour is a tanh-Gaussian that is
fitted first; KL(pi || pi_b) is estimated from samples of pi.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.bc import clone_loss
from saqrl.baselines.critics import pessimistic_q, q_values
from saqrl.baselines.distributions import gaussian_log_density, gaussian_sample
from saqrl.baselines.policies import REACH, GaussianPolicy, TanhGaussianActor, check_reach, squash


class State(eqx.Module):
    behaviour: nn.TrainState[GaussianPolicy]
    critics: nn.TrainState[nn.Ensemble]
    policy: nn.TrainState[GaussianPolicy]
    target: nn.Ensemble
    step: Int[Array, ""]


@dataclass(frozen=True)
class BRAC(nn.CriticTraining):
    """Behaviour-regularised actor-critic."""

    alpha: float = 1.0
    """Weight of KL(pi || pi_b) in the policy's loss and in the targets."""
    samples: int = 4
    """Number of sampled actions of pi that estimate a state's value and divergence."""
    behaviour_share: float = 0.25
    """Share of the steps that first fit pi_b; the remaining steps train pi and Q."""
    reach: float = REACH
    """Factor on the tanh of pi and pi_b before clipping to [-1, 1]; 1: plain tanh."""

    default_act = "greedy"

    def __post_init__(self) -> None:
        check_reach(self.reach)
        if not 0 < self.behaviour_share < 1:
            raise ValueError(
                f"agent.behaviour-share is {self.behaviour_share}; it must be between 0 and 1"
            )

    def init(self, key: Key[Array, ""], example: ContinuousTransitions) -> State:
        behaviour_key, critics_key, policy_key = jax.random.split(key, 3)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        critics = self.ensemble(critics_key, inputs + act, 1, count=self.critics)
        behaviour, policy = (
            GaussianPolicy(nn.MLP(own_key, inputs, self.hidden, 2 * act))
            for own_key in (behaviour_key, policy_key)
        )
        return State(
            nn.init_state(behaviour, self.optimiser()),
            nn.init_state(critics, self.optimiser()),
            nn.init_state(policy, self.optimiser()),
            jax.tree.map(jnp.copy, critics),
            jnp.zeros((), jnp.int32),
        )

    def update(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        fitting = state.step < int(self.behaviour_share * self.steps)
        return jax.lax.cond(fitting, self._fit_behaviour, self._improve, state, batch, key)

    def _fit_behaviour(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        behaviour, metrics = nn.gradient_step(
            state.behaviour,
            self.optimiser(),
            lambda policy: clone_loss(policy, batch, reach=self.reach),
        )
        # The policy starts as the behaviour, where the divergence is 0.
        policy = nn.TrainState(behaviour.model, state.policy.moments)
        # Both phases report the same metrics; those that this phase does not measure are 0.
        idle = dict.fromkeys(("bellman_error", "data_q", "divergence"), jnp.zeros(()))
        return (
            State(behaviour, state.critics, policy, state.target, state.step + 1),
            metrics | idle,
        )

    def _improve(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        target_key, policy_key = jax.random.split(key)
        behaviour = state.behaviour.model
        value, divergence = self.value_and_divergence(
            state.policy.model, behaviour, state.target, batch.next_observations, target_key
        )
        y = batch.rewards + batch.discounts * (value - self.alpha * divergence)

        def critic_loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            data_q = q_values(critics, batch.observations, batch.actions)
            bellman = nn.bellman_error(data_q, y)
            return bellman, {"bellman_error": bellman, "data_q": data_q.mean()}

        def policy_loss(policy: GaussianPolicy) -> tuple[Float[Array, ""], Float[Array, ""]]:
            value, divergence = self.value_and_divergence(
                policy, behaviour, state.critics.model, batch.observations, policy_key
            )
            return (self.alpha * divergence - value).mean(), divergence.mean()

        critics, metrics = nn.gradient_step(state.critics, self.optimiser(), critic_loss)
        policy, divergence = nn.gradient_step(state.policy, self.optimiser(), policy_loss)
        target = nn.polyak_update(state.target, critics.model, rate=self.target_rate)
        metrics |= {"divergence": divergence, "log_likelihood": jnp.zeros(())}
        return State(state.behaviour, critics, policy, target, state.step + 1), metrics

    def value_and_divergence(
        self,
        policy: GaussianPolicy,
        behaviour: GaussianPolicy,
        critics: nn.Ensemble,
        observations: Float[Array, "batch features"],
        key: Key[Array, ""],
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """Estimates of E_pi min_i Q_i(s, a) and of KL(pi || pi_b) from the same actions of pi."""
        ours, theirs = policy(observations), behaviour(observations)

        def once(
            noise: Float[Array, "batch act"],
        ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
            drawn = jax.vmap(gaussian_sample)(noise, *ours)
            q = pessimistic_q(critics, observations, squash(drawn, reach=self.reach))
            return q, jax.vmap(log_ratio)(drawn, ours, theirs)

        noise = jax.random.normal(key, (self.samples, *ours[0].shape))
        values, ratios = jax.vmap(once)(noise)
        return values.mean(0), ratios.mean(0)

    def actor(self, state: State) -> TanhGaussianActor:
        return TanhGaussianActor(state.policy.model, self.reach)


def log_ratio(
    value: Float[Array, " act"],
    policy: tuple[Float[Array, " act"], Float[Array, " act"]],
    behaviour: tuple[Float[Array, " act"], Float[Array, " act"]],
) -> Float[Array, ""]:
    """Log pi(a) - log pi_b(a) at a = reach tanh(value); the tanh's slope cancels exactly."""
    return gaussian_log_density(value, *policy) - gaussian_log_density(value, *behaviour)
