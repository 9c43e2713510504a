"""The codebook during fine-tuning: the run's, unchanged (`frozen`).

`adapting.Adapting` is one that keeps learning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from saqrl.agents import reads_actions
from saqrl.agents.bc import BC
from saqrl.policy import CodeController, Policy
from saqrl.quantizers import ActionQuantizer
from saqrl.training import engine
from saqrl.training.codes import encode_all
from saqrl.training.members import ensemble
from saqrl.training.online import growth
from saqrl.training.online.invalidation import COVERED, Coverage
from saqrl.training.online.replay import Experience, Replay, Replayed, State
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.preparation import Prepared
from saqrl.training.stages import Learning

# Default noise on decoded actions.
NOISE = 0.02


class Codebook:
    """Codes of the run, which do not change."""

    def __init__(self, learning: Learning, asked: OnlineSettings, agent: Any):
        """`learning` has the run's quantizer and prior; `agent` is the one to fine-tune."""
        self.learning, self.asked, self.agent = learning, asked, agent
        features = learning.features
        self.known = features.held_out or features.training
        self.coverage = Coverage(learning.codec, self.known)

    @property
    def noise(self) -> float:
        """Noise on decoded actions while exploring, as a share of half an action's range."""
        return NOISE if self.asked.noise is None else self.asked.noise

    @property
    def learner(self) -> Any:
        members, share = self.learning.settings.members, self.asked.keep_offline
        return Replayed.of(ensemble(self.agent, members), share, members, self.clone)

    @property
    def clone(self) -> BC | None:
        """How the prior keeps learning, if it does."""
        if not self.asked.prior_rate:
            return None
        how = {"schedule": "constant", "weight_decay": 0.0, "learning_rate": self.asked.prior_rate}
        return replace(self.learning.settings.prior, **how)  # type: ignore[arg-type]

    def data(self) -> engine.Rows | engine.Stream:
        """The offline rows of the learner."""
        return self.learning.stage("agent").data()

    def begin(self, agent: Any) -> State:
        """The state before the first step, from the agent's state."""
        prior, live = self.learning.prior, getattr(self.learning.codec, "exists", None)
        assert prior is not None
        actions = self.known.actions.shape[1] if reads_actions(self.agent) else None
        state = self._state(agent, prior, actions=actions)
        return state if live is None else self.closed(state, live)

    def closed(self, state: State, live: Bool[Array, " codes"]) -> State:
        """Set the probability of spare rows to 0, in the prior and in the agent's own networks."""
        close = partial(growth.closed, live=live)
        agent = growth.shares_changed(self.agent, state.agent, close)
        return replace(state, agent=agent, prior=close(state.prior))

    def _state(
        self, agent: Any, prior: Any, codes: Any = None, actions: int | None = None
    ) -> State:
        replay = Replay.empty(self.asked.capacity, self.known.features.shape[1], actions)
        nothing = jnp.zeros((), jnp.int32)
        moments = self.clone and self.clone.optimiser().init(prior)
        state = State(agent, prior, replay, nothing, nothing, nothing, codes, moments)
        return jax.tree.map(jnp.copy, state)  # no two leaves may share a buffer

    def quantizer(self, state: State) -> ActionQuantizer:
        return ActionQuantizer(self.learning.codec, state.prior)

    def policy(self, state: State) -> Policy:
        """The policy of this state."""
        make = self.learning.stage("agent").policy
        assert make is not None
        policy = make(state.agent)
        assert isinstance(policy.controller, CodeController)
        controller = CodeController(self.quantizer(state), policy.controller.actor)
        return replace(policy, controller=controller)

    def after(self, state: State, rows: Prepared, count: int) -> tuple[State, dict[str, float]]:
        """After a round of `count` decisions, which the state's steps include."""
        metrics = self.coverage.of(self.learning.codec, rows)
        return self.remembered(state, rows, count), metrics

    def remembered(self, state: State, rows: Prepared, count: int) -> State:
        """The state with a round's decisions added to the replay."""
        # Padded to few lengths, so that few programs are compiled.
        padded = rows.padded(1 << (count - 1).bit_length())
        codes = encode_all(self.quantizer(state).codec, padded.action_batch())
        columns: tuple[Any, ...] = (
            padded.features,
            codes,
            padded.rewards,
            padded.next_features,
            padded.discounts,
        )
        if state.replay.rows.actions is not None:
            columns = (*columns, padded.actions)
        experience = Experience(*map(jnp.asarray, columns))
        return replace(state, replay=state.replay.add(experience, count))

    def told(self, state: State, played: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For result.json, from the records of the rounds."""
        names = ("code_error", "uncovered")
        return {
            "recorded": {"code_error": self.coverage.error, "uncovered": 1 - COVERED},
            "first": {name: played[0][name] for name in names} if played else None,
            "last": {name: played[-1][name] for name in names} if played else None,
        }
