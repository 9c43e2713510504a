"""FQL: a flow clones the behaviour; a one-step policy is distilled from it and maximises Q.

Source: Park, Li, Levine 2025, Flow Q-Learning (arXiv 2502.02538), with the settings of its authors'
code. Flow matching: Lipman et al. 2022 (arXiv 2210.02747). Two differences: networks are ReLU and
as wide as every agent's here (theirs: four layers of 512, GELU), and LayerNorm is before the
activation (theirs: after it).
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.critics import q_values


class Flow(eqx.Module):
    """The velocity v(s, x, t) of a point x between noise (t = 0) and an action (t = 1)."""

    network: nn.MLP

    def __call__(
        self,
        observations: Float[Array, "*batch features"],
        points: Float[Array, "*batch act"],
        times: Float[Array, "*batch"],
    ) -> Float[Array, "*batch act"]:
        inputs = [observations, points, times[..., None]]
        return self.network(jnp.concatenate(inputs, axis=-1))

    def actions(
        self,
        observations: Float[Array, "*batch features"],
        noise: Float[Array, "*batch act"],
        *,
        steps: int,
    ) -> Float[Array, "*batch act"]:
        """The end point of the noise after this many Euler steps, clipped to [-1, 1]."""

        def advance(step: Array, points: Array) -> Array:
            times = jnp.full(points.shape[:-1], step / steps)
            return points + self(observations, points, times) / steps

        return jnp.clip(jax.lax.fori_loop(0, steps, advance, noise), -1, 1)


class Policy(eqx.Module):
    """mu(s, z): from noise to an action in one step; acting clips it to [-1, 1]."""

    network: nn.MLP

    def __call__(
        self, observations: Float[Array, "*batch features"], noise: Float[Array, "*batch act"]
    ) -> Float[Array, "*batch act"]:
        return self.network(jnp.concatenate([observations, noise], axis=-1))

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        """Greedy: at z = 0, the mode of the noise; this may be no mode of the actions."""
        shape = self.network.biases[-1].shape
        noise = jnp.zeros(shape) if greedy else jax.random.normal(key, shape)
        return jnp.clip(self(observation, noise), -1, 1)


class State(eqx.Module):
    critics: nn.TrainState[nn.Ensemble]
    flow: nn.TrainState[Flow]
    policy: nn.TrainState[Policy]
    target: nn.Ensemble


@dataclass(frozen=True)
class FQL(nn.CriticTraining):
    """Flow Q-learning."""

    critics: int = 2
    """Number of Q networks; the policy uses their mean."""
    alpha: float = 10.0
    """Weight of distillation against Q; tune it for each environment. Published, for unscaled
    rewards (--reward-scale none): antmaze, antsoccer 10; humanoidmaze 30; cube, scene 300; puzzle
    1,000; Adroit 3,000 to 30,000. If rewards are scaled by c, scale alpha by c."""
    normalize_q: bool = False
    """Divide Q in the policy's loss by its mean size; alpha is then independent of the rewards'
    scale, and the authors advise 0.03 to 10 for new environments."""
    target_q: Literal["mean", "min"] = "mean"
    """How the target critics are combined at the next state; min for antmaze-large, -giant and
    Adroit."""
    flow_steps: int = 10
    """Euler steps from noise to the action that is distilled."""

    default_act = "sample"

    def __post_init__(self) -> None:
        nn.require_positive(flow_steps=self.flow_steps)
        if not self.alpha >= 0:
            raise ValueError(f"agent.alpha is {self.alpha}; it must be at least 0")

    def init(self, key: Key[Array, ""], example: ContinuousTransitions) -> State:
        critics_key, flow_key, policy_key = jax.random.split(key, 3)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        critics = self.ensemble(critics_key, inputs + act, 1, count=self.critics)
        flow = Flow(nn.MLP(flow_key, inputs + act + 1, self.hidden, act))
        policy = Policy(nn.MLP(policy_key, inputs + act, self.hidden, act))
        return State(
            nn.init_state(critics, self.optimiser()),
            nn.init_state(flow, self.optimiser()),
            nn.init_state(policy, self.optimiser()),
            jax.tree.map(jnp.copy, critics),
        )

    def update(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        """One simultaneous step of all three: each uses the others' state before the step."""
        target_key, flow_key, policy_key = jax.random.split(key, 3)
        y = self.targets(state.target, state.policy.model, batch, target_key)

        def critic_loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            data_q = q_values(critics, batch.observations, batch.actions)
            bellman = nn.bellman_error(data_q, y)
            return bellman, {"bellman_error": bellman, "data_q": data_q.mean()}

        critics, metrics = nn.gradient_step(state.critics, self.optimiser(), critic_loss)
        flow, of_flow = nn.gradient_step(
            state.flow, self.optimiser(), lambda flow: self.flow_loss(flow, batch, flow_key)
        )
        policy, of_policy = nn.gradient_step(
            state.policy,
            self.optimiser(),
            lambda policy: self.policy_loss(
                policy, state.flow.model, state.critics.model, batch, policy_key
            ),
        )
        target = nn.polyak_update(state.target, critics.model, rate=self.target_rate)
        return State(critics, flow, policy, target), metrics | of_flow | of_policy

    def targets(
        self, target: nn.Ensemble, policy: Policy, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> Float[Array, " batch"]:
        """Y = r + g (1-d) Qbar(s', mu(s', z')), Qbar the mean or min of the target critics."""
        noise = jax.random.normal(key, batch.actions.shape)
        actions = jnp.clip(policy(batch.next_observations, noise), -1, 1)
        q = q_values(target, batch.next_observations, actions)
        next_q = q.min(0) if self.target_q == "min" else q.mean(0)
        return batch.rewards + batch.discounts * next_q

    def flow_loss(
        self, flow: Flow, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], nn.Metrics]:
        """Mean of (v(s, x_t, t) - (a - x_0))^2 at x_t = (1-t) x_0 + t a, x_0 noise, t uniform."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, batch.actions.shape)
        times = jax.random.uniform(time_key, batch.rewards.shape)
        points = (1 - times[:, None]) * noise + times[:, None] * batch.actions
        velocity = flow(batch.observations, points, times)
        error = jnp.square(velocity - (batch.actions - noise)).mean()
        return error, {"flow_error": error}

    def policy_loss(
        self,
        policy: Policy,
        flow: Flow,
        critics: nn.Ensemble,
        batch: ContinuousTransitions,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], nn.Metrics]:
        """Mean of alpha (mu(s, z) - flow(s, z))^2 - Q(s, mu(s, z)); Q over mean |Q| if normalised.

        The square is a mean over the action's dimensions; Q gets the clipped action.
        """
        noise = jax.random.normal(key, batch.actions.shape)
        cloned = flow.actions(batch.observations, noise, steps=self.flow_steps)
        actions = policy(batch.observations, noise)
        distance = jnp.square(actions - cloned).mean()
        q = q_values(critics, batch.observations, jnp.clip(actions, -1, 1)).mean(0)
        size = jax.lax.stop_gradient(jnp.abs(q).mean())
        divisor = jnp.maximum(size, 1e-8) if self.normalize_q else 1.0
        metrics = {"distillation_error": distance, "policy_q": q.mean()}
        return self.alpha * distance - q.mean() / divisor, metrics

    def actor(self, state: State) -> Policy:
        return state.policy.model
