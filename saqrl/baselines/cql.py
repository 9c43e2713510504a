"""CQL(H): soft actor-critic with a penalty on Q outside of the data.

Source: Kumar et al. 2020 (arXiv 2006.04779), eq. 4 and appendix F: the log-sum-exp over actions is
estimated by importance sampling. As in its authors' code, targets have no entropy bonus.
Soft actor-critic with automatic temperature: Haarnoja et al. 2018 (arXiv 1812.05905).
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.critics import pessimistic_q, q_values
from saqrl.baselines.distributions import importance_logsumexp, tanh_gaussian_sample
from saqrl.baselines.policies import GaussianPolicy, TanhGaussianActor


class State(eqx.Module):
    critics: nn.TrainState[nn.Ensemble]
    policy: nn.TrainState[GaussianPolicy]
    log_temperature: nn.TrainState[Float[Array, ""]]
    target: nn.Ensemble


@dataclass(frozen=True)
class CQL(nn.CriticTraining):
    """Conservative Q-learning with a tanh-Gaussian actor."""

    alpha: float = 5.0
    """Weight of the conservative gap logsumexp Q - Q(data)."""
    samples: int = 10
    """Number of actions drawn from each of the three proposals: uniform, pi(s) and pi(s')."""

    default_act = "greedy"

    def init(self, key: Key[Array, ""], example: ContinuousTransitions) -> State:
        critics_key, policy_key = jax.random.split(key)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        critics = self.ensemble(critics_key, inputs + act, 1, count=self.critics)
        policy = GaussianPolicy(nn.MLP(policy_key, inputs, self.hidden, 2 * act))
        return State(
            nn.init_state(critics, self.optimiser()),
            nn.init_state(policy, self.optimiser()),
            nn.init_state(jnp.zeros(()), self.optimiser()),
            jax.tree.map(jnp.copy, critics),
        )

    def update(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        target_key, proposal_key, policy_key = jax.random.split(key, 3)
        policy = state.policy.model
        following, _ = sample(policy, batch.next_observations, target_key)
        next_q = pessimistic_q(state.target, batch.next_observations, following)
        y = batch.rewards + batch.discounts * next_q
        proposed, densities = self.proposals(policy, batch, proposal_key)
        temperature = jnp.exp(state.log_temperature.model)

        def critic_loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            data_q = q_values(critics, batch.observations, batch.actions)
            gap = conservative_gaps(critics, batch, proposed, densities).mean(-1)
            bellman = jnp.square(data_q - y).mean(-1)
            metrics = {"bellman_error": bellman.sum(), "conservative_gap": gap.mean()}
            return (bellman + self.alpha * gap).sum(), metrics | {"data_q": data_q.mean()}

        def policy_loss(policy: GaussianPolicy) -> tuple[Float[Array, ""], Float[Array, ""]]:
            actions, density = sample(policy, batch.observations, policy_key)
            q = pessimistic_q(state.critics.model, batch.observations, actions)
            return (temperature * density - q).mean(), density.mean()

        critics, metrics = nn.gradient_step(state.critics, self.optimiser(), critic_loss)
        learner, density = nn.gradient_step(state.policy, self.optimiser(), policy_loss)
        target_entropy = -batch.actions.shape[-1]

        def temperature_loss(log_temperature: Float[Array, ""]) -> tuple[Float[Array, ""], None]:
            return -log_temperature * (density + target_entropy), None

        log_temperature, _ = nn.gradient_step(
            state.log_temperature, self.optimiser(), temperature_loss
        )
        target = nn.polyak_update(state.target, critics.model, rate=self.target_rate)
        metrics |= {"temperature": temperature, "entropy": -density}
        return State(critics, learner, log_temperature, target), metrics

    def proposals(
        self, policy: GaussianPolicy, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[Float[Array, "samples batch act"], Float[Array, "samples batch"]]:
        """Uniform actions, actions of pi(s), then of pi(s'), with their log-densities."""
        uniform_key, noise_key = jax.random.split(key)
        shape = (self.samples, *batch.actions.shape)
        uniform = jax.random.uniform(uniform_key, shape, minval=-1, maxval=1)
        volume = shape[-1] * jnp.log(2.0)
        noise = jax.random.normal(noise_key, (2, *shape))
        both = jnp.stack([batch.observations, batch.next_observations])
        parameters = [jnp.broadcast_to(p[:, None], noise.shape) for p in policy(both)]
        of_policy, densities = _samples(noise, *parameters)
        return (
            jnp.concatenate([uniform, of_policy.reshape(-1, *shape[1:])]),
            jnp.concatenate([jnp.full(shape[:-1], -volume), densities.reshape(-1, shape[1])]),
        )

    def actor(self, state: State) -> TanhGaussianActor:
        return TanhGaussianActor(state.policy.model)


_samples = jnp.vectorize(tanh_gaussian_sample, signature="(a),(a),(a)->(a),()")


def sample(
    policy: GaussianPolicy, observations: Float[Array, "batch features"], key: Key[Array, ""]
) -> tuple[Float[Array, "batch act"], Float[Array, " batch"]]:
    """An action of the policy with its log-density for every state."""
    mean, log_deviation = policy(observations)
    return _samples(jax.random.normal(key, mean.shape), mean, log_deviation)


def conservative_gaps(
    critics: nn.Ensemble,
    batch: ContinuousTransitions,
    proposed: Float[Array, "samples batch act"],
    densities: Float[Array, "samples batch"],
) -> Float[Array, "heads batch"]:
    """Estimated log integral of exp Q(s, .) minus Q of the data's action, for every head."""
    shape = (*proposed.shape[:2], batch.observations.shape[-1])
    q = q_values(critics, jnp.broadcast_to(batch.observations, shape), proposed)
    over_batch = jax.vmap(importance_logsumexp, (1, 1))
    soft_maximum = jax.vmap(over_batch, (0, None))(q, densities)
    return soft_maximum - q_values(critics, batch.observations, batch.actions)
