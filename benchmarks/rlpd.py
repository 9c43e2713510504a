"""RLPD: soft actor-critic from the first step on batches that are half recorded data.

Source: Ball et al. 2023 (arXiv 2302.02948), algorithm 1: layer normalisation and many critics, of
which a random subset gives the targets; the policy follows the mean of all. SAC with automatic
temperature: Haarnoja et al. 2018 (arXiv 1812.05905). The opponent of `finetune.py`; with no
recorded data in its batches it is SAC from nothing.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.cql import sample
from saqrl.baselines.critics import q_values
from saqrl.baselines.policies import GaussianPolicy, TanhGaussianActor


class State(eqx.Module):
    critics: nn.TrainState[nn.Ensemble]
    policy: nn.TrainState[GaussianPolicy]
    log_temperature: nn.TrainState[Float[Array, ""]]
    target: nn.Ensemble


@dataclass(frozen=True)
class RLPD(nn.CriticTraining):
    """Soft actor-critic with the choices that make recorded data useful online."""

    critics: int = 5
    """Number of Q networks (the source: 10)."""
    subset: int = 2
    """Of them, drawn anew in each step, whose minimum is the target."""

    default_act = "greedy"

    def __post_init__(self) -> None:
        if not 1 <= self.subset <= self.critics:
            raise ValueError(f"agent.subset is {self.subset}; from 1 to {self.critics} critics")

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
        target_key, policy_key = jax.random.split(key)
        temperature = jnp.exp(state.log_temperature.model)
        y = self.targets(state, batch, target_key)

        def critic_loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            data_q = q_values(critics, batch.observations, batch.actions)
            bellman = nn.bellman_error(data_q, y)
            return bellman, {"bellman_error": bellman, "data_q": data_q.mean()}

        critics, metrics = nn.gradient_step(state.critics, self.optimiser(), critic_loss)

        def policy_loss(policy: GaussianPolicy) -> tuple[Float[Array, ""], Float[Array, ""]]:
            actions, density = sample(policy, batch.observations, policy_key)
            q = q_values(critics.model, batch.observations, actions).mean(0)
            return (temperature * density - q).mean(), density.mean()

        policy, density = nn.gradient_step(state.policy, self.optimiser(), policy_loss)
        target_entropy = -batch.actions.shape[-1] / 2

        def temperature_loss(log_temperature: Float[Array, ""]) -> tuple[Float[Array, ""], None]:
            return -log_temperature * (density + target_entropy), None

        log_temperature, _ = nn.gradient_step(
            state.log_temperature, self.optimiser(), temperature_loss
        )
        target = nn.polyak_update(state.target, critics.model, rate=self.target_rate)
        metrics |= {"temperature": temperature, "entropy": -density}
        return State(critics, policy, log_temperature, target), metrics

    def targets(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> Float[Array, " batch"]:
        """Rewards + discounts [min over drawn critics of Qbar(s', a') - temperature log pi]."""
        action_key, subset_key = jax.random.split(key)
        actions, density = sample(state.policy.model, batch.next_observations, action_key)
        q = q_values(state.target, batch.next_observations, actions)
        drawn = jax.random.choice(subset_key, self.critics, (self.subset,), replace=False)
        entropy = -jnp.exp(state.log_temperature.model) * density
        return batch.rewards + batch.discounts * (q[drawn].min(0) + entropy)

    def actor(self, state: State) -> TanhGaussianActor:
        return TanhGaussianActor(state.policy.model)
