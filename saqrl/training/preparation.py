"""From transitions to what the networks read: features, unit action chunks, discounted rewards."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int64

from saqrl.agents import CodedTransitions
from saqrl.baselines import ContinuousTransitions
from saqrl.datasets import Transitions
from saqrl.datasets.chunks import chunk_actions, chunk_rewards
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.split import choose_episodes, thinned
from saqrl.datasets.statistics import blocks
from saqrl.datasets.windows import next_windows, windows
from saqrl.nn import MLP, CriticTraining
from saqrl.quantizers import ActionBatch
from saqrl.training.codes import log_prior_of
from saqrl.training.settings import RewardScale, Settings

# Rows of a part of mapped data, where the settings do not say.
PART_ROWS = 2**18
# Rows of each side of a split of streamed data that are brought into memory.
SAMPLE_ROWS = 100_000
# Of rewards: more leaves float32, or is about to.
LARGEST_FACTOR = 1e30


@dataclass(frozen=True, eq=False)
class Prepared:
    """One split of a dataset, scaled and chunked, on the host."""

    features: Float32[np.ndarray, "n features"]
    next_features: Float32[np.ndarray, "n features"]
    actions: Float32[np.ndarray, "n chunk_act"]
    rewards: Float32[np.ndarray, " n"]
    discounts: Float32[np.ndarray, " n"]
    next_actions: Float32[np.ndarray, "n chunk_act"]
    """The action chunk of the data at `next_features`; at the end of an episode its last one."""

    def padded(self, rows: int) -> "Prepared":
        """As many rows as asked for; the last one stands in for those that are missing."""
        index = np.minimum(np.arange(rows), len(self.features) - 1)
        return Prepared(**{name: column[index] for name, column in vars(self).items()})

    def action_batch(self) -> ActionBatch:
        return ActionBatch(jnp.asarray(self.features), jnp.asarray(self.actions))

    def coded(
        self,
        codes: Int[Array, " n"],
        num_codes: int,
        prior: MLP | None,
        *,
        spare: bool = False,
        actions: bool = False,
    ) -> CodedTransitions:
        """The discrete data set; with a prior, its log-probabilities are computed here, once.

        `actions`: with the actions too, for an agent that reads them.
        """
        features, following = jnp.asarray(self.features), jnp.asarray(self.next_features)
        return CodedTransitions(
            features,
            codes,
            jnp.asarray(self.rewards),
            following,
            jnp.asarray(self.discounts),
            None if prior is None else log_prior_of(prior, features),
            None if prior is None else log_prior_of(prior, following),
            num_codes,
            spare,
            jnp.asarray(self.actions) if actions else None,
        )

    def continuous(self) -> ContinuousTransitions:
        return ContinuousTransitions(
            jnp.asarray(self.features),
            jnp.asarray(self.actions),
            jnp.asarray(self.rewards),
            jnp.asarray(self.next_features),
            jnp.asarray(self.discounts),
            jnp.asarray(self.next_actions),
        )


def split(transitions: Transitions, settings: Settings) -> tuple[Transitions, Transitions | None]:
    """Training and held-out episodes, the file's own split where it has one.

    Where the share of the episodes is less than one of them, all are trained on. Of data that is
    streamed, some episodes of each side.
    """
    training, held_out = choose(transitions, settings)
    own = transitions.held_out if settings.data.held_out > 0 else None
    if part_rows(transitions, settings) is not None:
        shown = thinned(transitions, held_out, rows=SAMPLE_ROWS) if held_out.size else own
        return thinned(transitions, training, rows=SAMPLE_ROWS), shown
    if not held_out.size:
        return transitions, own
    return transitions.select_episodes(training), transitions.select_episodes(held_out)


def choose(
    transitions: Transitions, settings: Settings
) -> tuple[Int64[np.ndarray, " training"], Int64[np.ndarray, " held_out"]]:
    """The numbers of the training episodes, and of those of them that are held out instead."""
    own = transitions.held_out is not None and settings.data.held_out > 0
    few = settings.data.held_out * transitions.num_episodes < 1
    fraction = 0.0 if own or few else settings.data.held_out
    return choose_episodes(transitions, held_out_fraction=fraction, seed=settings.seed)


def part_rows(transitions: Transitions, settings: Settings) -> int | None:
    """Rows of a part where the data is streamed; None where all of it lies on the device."""
    rows = settings.data.stream_rows
    if rows is None:
        rows = PART_ROWS if isinstance(transitions.observations, np.memmap) else len(transitions)
    return rows if rows < len(transitions) else None


def fit_scaling(transitions: Transitions, settings: Settings) -> ObservationScaling:
    return ObservationScaling.fit(
        transitions.observations,
        angles=transitions.angles,
        scale=settings.features.observation_scale,
        deviation=settings.features.feature_deviation,
        history=settings.features.history,
    )


def reward_factor(transitions: Transitions, scale: RewardScale) -> float:
    """What rewards are multiplied by.

    unit: the mean size of a reward becomes 0.1, values then are of order 10 at discount 0.99;
    return-range: returns span 1000, as IQL does for locomotion (arXiv 2110.06169, appendix B).
    ValueError where rewards are so small that the factor leaves float32.
    """
    if scale == "unit":
        sums = [np.abs(block).sum(dtype=np.float64) for block in blocks(transitions.rewards)]
        size, target = float(sum(sums)) / len(transitions), 0.1
    elif scale == "return-range":
        size, target = float(np.ptp(transitions.episode_returns)), 1000.0
    else:
        return 1.0
    if size == 0:
        return 1.0
    if not target / size <= LARGEST_FACTOR:
        raise ValueError(
            f"rewards of mean size or range {size:g} would be multiplied by "
            f"{target / size:g}, which overflows float32: scale the rewards in the file, or "
            "pass --reward-scale none"
        )
    return target / size


def prepare(
    transitions: Transitions,
    settings: Settings,
    scaling: ObservationScaling,
    factor: float,
    *,
    played: int | None = None,
) -> Prepared:
    """Scale and chunk one split; rewards and successors are those of `played` actions (of all)."""
    agent = settings.agent
    rewards, next_rows, discounts = chunk_rewards(
        transitions,
        horizon=played or settings.features.chunk,
        discount=agent.discount,
        between=agent.chunk_discount if isinstance(agent, CriticTraining) else None,
    )
    chunks = chunk_actions(transitions, settings.features.chunk).reshape(
        len(transitions), settings.features.chunk, -1
    )
    actions = transitions.action_range.to_unit(chunks).reshape(len(transitions), -1)
    last = np.repeat(transitions.episode_ends - 1, transitions.episode_lengths)
    return Prepared(
        features=scaling(windows(transitions, scaling.history)),
        next_features=scaling(next_windows(transitions, next_rows, scaling.history)),
        actions=actions,
        rewards=(rewards * factor).astype(np.float32),
        discounts=discounts,
        next_actions=actions[np.minimum(next_rows + 1, last)],
    )
