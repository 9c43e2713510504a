"""Online episodes as rows of decisions, and batches that mix them with offline ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.agents import CodedTransitions
from saqrl.agents.bc import BC
from saqrl.datasets import Transitions
from saqrl.policy.rollout import Steps


class Experience(eqx.Module):
    """Decisions in the form that the networks read."""

    features: Float[Array, "rows features"]
    codes: Int[Array, " rows"]
    rewards: Float[Array, " rows"]
    next_features: Float[Array, "rows features"]
    discounts: Float[Array, " rows"]
    actions: Float[Array, "rows act"] | None = None
    """The executed actions, if they may be encoded again or the agent reads them."""

    def coded(self, prior: nn.MLP, num_codes: int, *, spare: bool) -> CodedTransitions:
        """Decisions in the form that an agent reads, with the present prior's log-probabilities."""
        return CodedTransitions(
            self.features,
            self.codes,
            self.rewards,
            self.next_features,
            self.discounts,
            jax.nn.log_softmax(prior(self.features)),
            jax.nn.log_softmax(prior(self.next_features)),
            num_codes,
            spare,
            self.actions,
        )


class Replay(eqx.Module):
    """The newest rows, a ring: row `written` modulo its size is the next to be replaced."""

    rows: Experience
    written: Int[Array, ""]
    """Total number of rows added."""

    @classmethod
    def empty(cls, capacity: int, features: int, actions: int | None = None) -> "Replay":
        """`actions`: size of a decision's actions, if they are stored."""

        def numbers(*shape: int) -> Float[Array, "..."]:
            return jnp.zeros((capacity, *shape), jnp.float32)

        codes = jnp.zeros(capacity, jnp.int32)
        rows = Experience(
            numbers(features),
            codes,
            numbers(),
            numbers(features),
            numbers(),
            None if actions is None else numbers(actions),
        )
        return cls(rows, jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        return len(self.rows.codes)

    @property
    def length(self) -> Int[Array, ""]:
        """Number of rows in use."""
        return jnp.minimum(self.written, self.capacity)

    def add(self, rows: Experience, count: int) -> "Replay":
        """Add the first `count` rows; if they exceed the capacity, only the last ones."""
        index = np.arange(len(rows.codes))
        kept = (index < count) & (index >= count - self.capacity)
        places = (int(self.written) + index) % self.capacity
        places = np.where(kept, places, self.capacity)  # which is no place
        return Replay(_put(self.rows, places, rows), self.written + count)

    def draw(self, key: Key[Array, ""], count: int) -> Experience:
        """Rows drawn uniformly, with replacement; rows of an empty replay have no meaning."""
        places = jax.random.randint(key, (count,), 0, jnp.maximum(self.length, 1))
        return jax.tree.map(lambda column: column[places], self.rows)


@partial(jax.jit, donate_argnums=0)
def _put(old: Experience, places: Int[Array, " n"], new: Experience) -> Experience:
    return jax.tree.map(lambda column, rows: column.at[places].set(rows, mode="drop"), old, new)


class State(eqx.Module):
    """The state of a fine-tuning: agent, replay, codebook and counters."""

    agent: Any
    prior: nn.MLP
    replay: Replay
    steps: Int[Array, ""]
    """Environment steps."""
    episodes: Int[Array, ""]
    updates: Int[Array, ""]
    codebook: Any = None
    """The part of a codebook that keeps learning (`adapting.Codes`)."""
    moments: Any = None
    """Moments of the prior's optimiser, if the prior keeps learning."""


@dataclass(frozen=True)
class Replayed:
    """An agent whose batches mix a share of offline rows with replayed rows."""

    agent: Any
    share: float
    """Share of offline rows."""
    steps: int
    batch_size: int
    precision: nn.Precision
    members: int = 1
    """Members that divide a batch among them, if the agent is an ensemble."""
    clone: BC | None = None
    """How the prior keeps learning; None: it does not change."""

    @classmethod
    def of(cls, agent: Any, share: float, members: int = 1, clone: BC | None = None) -> "Replayed":
        own = agent.steps, agent.batch_size, agent.precision
        return cls(agent, share, *own, members, clone)

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> Any:
        """The state of the agent only."""
        return self.agent.init(key, example)

    def update(self, state: State, batch: Any, key: Key[Array, ""]) -> tuple[State, nn.Metrics]:
        """One step of the agent; the batch is offline `CodedTransitions`."""
        draw_key, update_key = jax.random.split(key)
        kept = round(self.share * self.batch_size)
        drawn = state.replay.draw(draw_key, self.batch_size - kept)
        online = drawn.coded(state.prior, batch.num_codes, spare=batch.spare)
        mixed = self.mixed(self._renewed(batch, state.prior, kept), online, kept)
        agent, metrics = self.agent.update(state.agent, mixed, update_key)
        state = self.cloned(state, mixed, update_key)
        return replace(state, agent=agent, updates=state.updates + 1), metrics

    def _renewed(self, batch: CodedTransitions, prior: nn.MLP, kept: int) -> CodedTransitions:
        """The rows with the present prior's log-probabilities."""
        if self.clone is None:
            return batch
        batch = jax.tree.map(lambda column: column[:kept], batch)
        now, following = (
            jax.nn.log_softmax(prior(seen))
            for seen in (batch.observations, batch.next_observations)
        )
        return replace(batch, log_prior=now, next_log_prior=following)

    def cloned(self, state: State, rows: CodedTransitions, key: Key[Array, ""]) -> State:
        """One step of the prior towards the codes of a mixed batch, if the prior keeps learning.

        The behaviour is then that of old and new data together, so the policy can move away from
        the old data.
        """
        if self.clone is None:
            return state
        learned, _ = self.clone.update(nn.TrainState(state.prior, state.moments), rows, key)
        return replace(state, prior=learned.model, moments=learned.moments)

    def mixed(self, offline: Any, online: Any, kept: int) -> Any:
        """The first `kept` rows of one batch and all rows of the other."""
        # Members take blocks of a batch: each gets its share of both kinds.
        order = np.arange(self.batch_size).reshape(-1, self.members).T.ravel()
        return jax.tree.map(
            lambda old, new: jnp.concatenate([old[:kept], new])[order], offline, online
        )


def as_log(played: Sequence[Steps], like: Transitions) -> Transitions:
    """Episodes as a log in the units of another, which the same preparation reads."""
    lengths = np.asarray([len(steps.rewards) for steps in played], np.int64)
    terminated = np.zeros(lengths.sum(), bool)
    ends = np.cumsum(lengths)
    terminated[ends - 1] = [steps.terminated for steps in played]
    return Transitions(
        observations=np.concatenate([steps.observations[:-1] for steps in played]),
        actions=np.concatenate([steps.actions for steps in played]).astype(np.float32),
        rewards=np.concatenate([steps.rewards for steps in played]).astype(np.float32),
        next_observations=np.concatenate([steps.observations[1:] for steps in played]),
        terminated=terminated,
        episode_starts=ends - lengths,
        action_range=like.action_range,
        angles=like.angles,
        environment=like.environment,
    )
