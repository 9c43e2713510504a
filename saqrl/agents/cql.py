"""SAQ-CQL: conservative Q-learning whose log-sum-exp runs over all codes.

Source: Kumar et al. 2020 (arXiv 2006.04779), eq. 4, discrete, on the codes of SAQ
(arXiv 2310.11731); double DQN targets (van Hasselt et al. 2015, arXiv 1509.06461).
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.agents import CodedTransitions, operators
from saqrl.agents.values import CodeValues, Supported, ValueActor


class State(eqx.Module):
    critics: nn.TrainState[nn.Ensemble]
    target: nn.Ensemble
    step: Int[Array, ""]


@dataclass(frozen=True)
class CQL(CodeValues):
    """Conservative Q-learning on codes."""

    alpha: float = 5.0
    """Weight of the conservative gap logsumexp Q - Q(data)."""
    threshold: float = 0.01
    """Codes with a lower prior probability are neither targets nor actions; 0 allows all."""
    support: float = 0.0
    """The same, as a share of the uniform probability 1 / codes, so it scales with their number."""
    mass: float = 1.0
    """Only the most probable codes with this total probability are allowed; 1 allows all."""
    target_period: int = 1
    """Steps between two updates of the target critic."""
    temperature: float = 0.5
    """Temperature of the softmax over Q if codes are sampled."""

    # The gap fits softmax Q to the data's codes. People pause often, so the argmax can pause
    # forever; a sample does not (docs/concepts/acting.md).
    default_act = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        nn.require_positive(temperature=self.temperature, target_period=self.target_period)
        nn.require_positive(mass=self.mass)

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        critics = self.new_critics(key, example.observations.shape[-1], example.num_codes)
        target = jax.tree.map(jnp.copy, critics)
        return State(nn.init_state(critics, self.optimiser()), target, jnp.zeros((), jnp.int32))

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        targets = self.targets(state, batch)

        def loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            q = critics(batch.observations)
            q_loss, of_q = self.critic_loss(
                critics, batch.observations, batch.codes, targets, values=q
            )
            gap = self.gaps(batch.existing(q, batch.log_prior), batch.codes, key).mean(-1).sum()
            return q_loss + self.alpha * gap, {**of_q, "gap": gap / len(q)}

        critics, metrics = nn.gradient_step(state.critics, self.optimiser(), loss)
        step = state.step + 1
        rate = jnp.where(step % self.target_period == 0, self.target_rate, 0.0)
        target = nn.polyak_update(state.target, critics.model, rate=rate)
        return State(critics, target, step), metrics

    def gaps(
        self,
        q: Float[Array, "critics batch codes"],
        codes: Int[Array, " batch"],
        key: Key[Array, ""],
    ) -> Float[Array, "critics batch"]:
        """The penalty log sum_k exp Q(s, k) - Q(s, data); it is exact and ignores the key."""
        return jax.vmap(jax.vmap(operators.conservative_gap), (0, None))(q, codes)

    def targets(self, state: State, batch: CodedTransitions) -> Float[Array, " batch"]:
        """Y = r + g (1-d) Qbar(s', k'), where k' is the best allowed code of the online critics."""
        online = state.critics.model.pessimistic(batch.next_observations)
        best = self._masked(online, batch.next_log_prior).argmax(-1)
        return batch.rewards + batch.discounts * operators.of_code(
            state.target.pessimistic(batch.next_observations), best
        )

    def actor(self, state: State) -> ValueActor:
        return ValueActor(state.critics.model, Supported(self._support, self.temperature))

    @property
    def _support(self) -> operators.Support:
        return operators.Support(self.threshold, self.support, self.mass)

    def _masked(
        self, q: Float[Array, "batch codes"], log_prior: Float[Array, "batch codes"] | None
    ) -> Float[Array, "batch codes"]:
        if log_prior is None:
            if self._support.everything:
                return q
            raise ValueError("CQL with a threshold needs the behaviour's log-probabilities")
        return jax.vmap(self._support.mask)(q, log_prior)
