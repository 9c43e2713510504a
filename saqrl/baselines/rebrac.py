"""ReBRAC: TD3 with behaviour-cloning terms in actor and critic.

Source: Tarasov et al. 2023 (arXiv 2305.09836), eq. 3 and 4: decoupled penalties, LayerNorm in the
critics, three hidden layers. TD3: Fujimoto et al. 2018 (arXiv 1802.09477).
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.critics import pessimistic_q, q_values


class Policy(eqx.Module):
    """Deterministic: tanh f(s)."""

    network: nn.MLP

    def __call__(self, observations: Float[Array, "*batch features"]) -> Float[Array, "*batch act"]:
        return jnp.tanh(self.network(observations))

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        return self(observation)


class Networks(eqx.Module):
    critics: nn.Ensemble
    policy: Policy


class State(eqx.Module):
    critics: nn.TrainState[nn.Ensemble]
    policy: nn.TrainState[Policy]
    target: Networks
    step: Int[Array, ""]


@dataclass(frozen=True)
class ReBRAC(nn.CriticTraining):
    """TD3 whose actor and targets stay near the data's actions."""

    hidden: tuple[int, ...] = (256, 256, 256)
    learning_rate: float = 1e-3
    actor_penalty: float = 0.01
    """beta_1: weight of |pi(s) - a|^2 in the actor's loss, with Q divided by its mean size."""
    critic_penalty: float = 0.01
    """beta_2: weight of |pi(s') - a'|^2 in the targets."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the targets' actions."""
    noise_clip: float = 0.5
    policy_period: int = 2
    """Steps of the critics for each step of the policy and the targets."""

    default_act = "greedy"

    def __post_init__(self) -> None:
        nn.require_positive(policy_period=self.policy_period)

    def init(self, key: Key[Array, ""], example: ContinuousTransitions) -> State:
        critics_key, policy_key = jax.random.split(key)
        inputs, act = example.observations.shape[-1], example.actions.shape[-1]
        critics = self.ensemble(critics_key, inputs + act, 1, count=self.critics)
        policy = Policy(nn.MLP(policy_key, inputs, self.hidden, act))
        return State(
            nn.init_state(critics, self.optimiser()),
            nn.init_state(policy, self.optimiser()),
            jax.tree.map(jnp.copy, Networks(critics, policy)),
            jnp.zeros((), jnp.int32),
        )

    def update(
        self, state: State, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        y, distance = self.targets(state.target, batch, key)

        def critic_loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            data_q = q_values(critics, batch.observations, batch.actions)
            bellman = nn.bellman_error(data_q, y)
            metrics = {"bellman_error": bellman, "data_q": data_q.mean()}
            return bellman, metrics | {"next_action_distance": distance.mean()}

        critics, metrics = nn.gradient_step(state.critics, self.optimiser(), critic_loss)

        def move(
            policy: nn.TrainState[Policy], target: Networks
        ) -> tuple[nn.TrainState[Policy], Networks]:
            policy, _ = nn.gradient_step(
                policy,
                self.optimiser(),
                lambda model: self.policy_loss(model, critics.model, batch),
            )
            online = Networks(critics.model, policy.model)
            return policy, nn.polyak_update(target, online, rate=self.target_rate)

        policy, target = jax.lax.cond(
            state.step % self.policy_period == 0,
            move,
            lambda *kept: kept,
            state.policy,
            state.target,
        )
        return State(critics, policy, target, state.step + 1), metrics

    def targets(
        self, target: Networks, batch: ContinuousTransitions, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
        """Y = r + g (1-d) [min_i Qbar_i(s', a~) - beta_2 |a~ - a'|^2], and that distance.

        a~ is the target policy's action with clipped noise, a' the data's next action.
        """
        noise = self.target_noise * jax.random.normal(key, batch.actions.shape)
        noise = jnp.clip(noise, -self.noise_clip, self.noise_clip)
        actions = jnp.clip(target.policy(batch.next_observations) + noise, -1, 1)
        distance = jnp.square(actions - batch.next_actions).sum(-1)
        q = pessimistic_q(target.critics, batch.next_observations, actions)
        return batch.rewards + batch.discounts * (q - self.critic_penalty * distance), distance

    def policy_loss(
        self, policy: Policy, critics: nn.Ensemble, batch: ContinuousTransitions
    ) -> tuple[Float[Array, ""], None]:
        """Mean of beta_1 |pi(s) - a|^2 - Q(s, pi(s)) / mean |Q|, the divisor held constant."""
        actions = policy(batch.observations)
        q = pessimistic_q(critics, batch.observations, actions)
        size = jax.lax.stop_gradient(jnp.abs(q).mean())
        distance = jnp.square(actions - batch.actions).sum(-1)
        return (self.actor_penalty * distance - q / jnp.maximum(size, 1e-8)).mean(), None

    def actor(self, state: State) -> Policy:
        return state.policy.model
