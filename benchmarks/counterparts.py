"""Fine-tuning without codes, for comparison: the loop of `saqrl finetune` around continuous agents.

What differs from it is in `Continuous`: the agent plays what it samples, and its batches hold
actions. `saqrl finetune` itself goes on with codes alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.policy import Policy
from saqrl.training import engine
from saqrl.training.data import load_data
from saqrl.training.online.loop import Online
from saqrl.training.online.replay import Experience, Replay, Replayed, State
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.preparation import Prepared
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunFolder, read_config, read_result
from saqrl.training.settings import Settings
from saqrl.training.stages import Learning


@dataclass(frozen=True)
class Mixed(Replayed):
    """A continuous agent whose batches are offline rows for a share, replayed ones for the rest."""

    def update(self, state: State, batch: Any, key: Key[Array, ""]) -> tuple[State, nn.Metrics]:
        draw_key, update_key = jax.random.split(key)
        kept = round(self.share * self.batch_size)
        drawn = state.replay.draw(draw_key, self.batch_size - kept)
        online = ContinuousTransitions(
            drawn.features,
            drawn.actions,
            drawn.rewards,
            drawn.next_features,
            drawn.discounts,
            drawn.actions,  # the next ones, which neither agent reads
        )
        mixed = self.mixed(batch, online, kept)
        agent, metrics = self.agent.update(state.agent, mixed, update_key)
        return replace(state, agent=agent, updates=state.updates + 1), metrics


class Continuous:
    """Stands where the loop expects a codebook."""

    def __init__(self, learning: Learning, asked: OnlineSettings, agent: Any):
        self.learning, self.asked, self.agent = learning, asked, agent
        self.noise = asked.noise or 0.0

    @property
    def learner(self) -> Mixed:
        return Mixed.of(self.agent, self.asked.keep_offline)

    def data(self) -> Any:
        return self.learning.features.columns(self.agent, Prepared.continuous)

    def begin(self, agent: Any) -> State:
        rows = self.learning.features.training
        sizes = rows.features.shape[1], rows.actions.shape[1]
        nothing = jnp.zeros((), jnp.int32)
        replay = Replay.empty(self.asked.capacity, *sizes)
        state: Any = State(agent, None, replay, nothing, nothing, nothing)
        return jax.tree.map(jnp.copy, state)

    def policy(self, state: State) -> Policy:
        policy = self.learning.stage("agent").policy
        assert policy is not None
        return policy(state.agent)

    def after(self, state: State, rows: Prepared, count: int) -> tuple[State, dict[str, float]]:
        padded = rows.padded(1 << (count - 1).bit_length())
        columns = (
            padded.features,
            np.zeros(len(padded.features), np.int32),
            padded.rewards,
            padded.next_features,
            padded.discounts,
            padded.actions,
        )
        replay = state.replay.add(Experience(*map(jnp.asarray, columns)), count)
        return replace(state, replay=replay), {}

    def quantizer(self, state: State) -> None:
        return None

    def told(self, state: State, played: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {}


class Counterpart(Online):
    """A session of a continuous agent."""

    def _begun_codebook(self) -> Any:
        for stage, (theirs, prefix) in self.begun["adopted"].items():
            self.run.adopt(self.parent, theirs, own=stage, prefix=prefix)
        return Continuous(self.learning, self.asked, self.agent)

    def _values(self) -> tuple[Any, int]:
        """The parent's agent, or one that has learned nothing yet."""
        if self.begun["adopted"]:
            return super()._values()
        data = self.codebook.data()
        return engine.begin(self.agent, jax.random.key(self.settings.seed), data), 0


def go_on(
    parent: Path, settings: Settings, asked: OnlineSettings, out: Path, *, adopt: bool
) -> dict[str, Any]:
    """Play and learn with the settings' agent from the finished run `parent`; the summary.

    adopt: it begins as the parent's agent has ended, otherwise with networks that are new.
    """
    data = load_data(settings)
    before = read_config(parent)
    own = {
        "settings": settings.to_json(),
        "versions": before["versions"],
        "finetune": {
            "parent": str(parent),
            "settings": asked.to_json(),
            "robot": False,
            "adopted": {"agent": ("agent", "")} if adopt else {},
            "gradient_steps": read_result(parent)["gradient_steps"] if adopt else 0,
        },
    }
    run = RunFolder.create(out, {**own, **{name: before.get(name) for name in ("recipe", "data")}})
    try:
        return Counterpart(settings, asked, data, run, Reporter(quiet=True)).run_all()
    finally:
        run.close()
