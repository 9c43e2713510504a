"""What a log gets wrong without a sign: ends of episodes, successors, rewards. Cheap to look for.

A training tells these too; `findings` has them among all others.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Bool, Float64

from saqrl.datasets.errors import counted, listing
from saqrl.datasets.transitions import Transitions

# So many terminated episodes of exactly the longest length are a time limit, where twice as many as
# end in the tenth before it; of the environment's own limit, two are.
ALIKE, ALIKE_AT_LIMIT = 3, 2
# Terminated rows that follow a terminated row, from which on a flag is held, not set.
HELD = 3
# Of the ends that are time limits: the share whose next observation is that of another episode.
RESET_SHARE = 0.5
# A reward is a glitch where it lies this many times the spread of the others away from them, and
# no more rows share its size; events such as a bonus come more often, or at an episode's end.
GLITCH, GLITCH_ROWS = 50.0, 2
# Standard deviations (at most 1 a column, averaged) that a reset moves an observation by, at least.
RESET_MOVE = 0.5
# Rows of which ordinary steps are learned.
SAMPLED_ROWS = 20_000


def suspicions(log: Transitions) -> tuple[str, ...]:
    """What the reader warned of, and what the episodes and rewards of a log look like."""
    found = [*log.warnings, *_time_limits(log), *_held(log), *_reset_successors(log)]
    if log.has_rewards:
        found += _reward_glitches(log)
    return tuple(found)


def _time_limits(log: Transitions) -> Iterator[str]:
    """Terminated episodes among which the longest are all of one length."""
    lengths = log.episode_lengths[log.terminated[log.episode_ends - 1]]
    if len(lengths) < 2 or lengths.min() == lengths.max() < 2:
        return
    longest = int(lengths.max())
    alike = int((lengths == longest).sum())
    before = int((lengths >= longest - max(longest // 10, 1)).sum()) - alike
    limit = _own_limit(log)
    at_limit = limit == longest and alike >= ALIKE_AT_LIMIT
    if at_limit or (alike >= ALIKE and alike > 2 * before and longest > 1):
        if len(lengths) == log.num_episodes == alike:
            yield (
                f"Every episode terminates after exactly {longest:,} steps, which looks like "
                "a time limit: store these ends as timeouts, or values are wrongly set to "
                "zero there."
            )
            return
        whose = f", the limit of {log.environment.id}" if at_limit and log.environment else ""
        yield (
            f"{alike:,} of {counted(len(lengths), 'terminated episode')} have exactly the "
            f"longest length, {longest:,} steps{whose}, which looks like a time limit: store "
            "these ends as timeouts, or values are wrongly set to zero there."
        )


def _own_limit(log: Transitions) -> int | None:
    """The step limit of the environment that the data name, where it is known without it."""
    if log.environment is None:
        return None
    given = log.environment.options.get("max_episode_steps")
    spec = gymnasium.registry.get(log.environment.id)
    return given if isinstance(given, int) else spec.max_episode_steps if spec else None


def _held(log: Transitions) -> Iterator[str]:
    """Episodes of one terminated row behind a terminated row: a flag that stays set."""
    parts: Any = log.provenance.get("parts") or [log.provenance]
    if all("success_timing" in part for part in parts):  # computed for play data, not recorded
        return
    ended = log.terminated[log.episode_ends - 1]
    single = log.episode_lengths == 1
    repeated = int((single[1:] & ended[1:] & ended[:-1]).sum())
    if repeated >= HELD and not single.all():
        yield (
            f"terminals is set on {counted(repeated, 'row')} that follow another such row, "
            "so each of them is an episode of one step: set it only on the last row of each "
            "episode, or remove the rows after it."
        )


def _reset_successors(log: Transitions) -> Iterator[str]:
    """Next observations at time limits that are the first of the next episode, a reset away."""
    ends = log.episode_ends[:-1] - 1
    ends = ends[~np.asarray(log.terminated)[ends]]
    if len(ends) < 2:
        return
    following = log.next_observations[ends]
    same = (following == log.observations[ends + 1]).all(1)
    if same.mean() < RESET_SHARE:
        return
    moves, limit = step_sizes(log, ends, following), ordinary_step(log)
    far = same & (moves > limit)
    if far.sum() >= 2 and far.mean() >= RESET_SHARE:
        yield (
            f"next_observations at {counted(int(far.sum()), 'time limit')} are the first "
            "observation of the next episode, as environments with automatic reset return "
            "them: store the final observation there (Gymnasium: info['final_obs']), or "
            "leave out next_observations."
        )


def _scale(log: Transitions) -> tuple[np.ndarray, Float64[np.ndarray, " columns"]]:
    """Which columns move, and their standard deviations, by an even choice of rows."""
    stride = -(-len(log) // SAMPLED_ROWS)
    table = np.asarray(log.observations[::stride], np.float64)
    deviation = table.std(0)
    moving = deviation > 1e-6 * np.maximum(np.abs(table.mean(0)), 1)
    moving[list(log.angles)] = False
    return moving, deviation


def step_sizes(log: Transitions, rows: np.ndarray, following: np.ndarray) -> np.ndarray:
    """How far an observation moves from each of the rows: in deviations, at most 1 a column."""
    moving, deviation = _scale(log)
    if not moving.any():
        return np.zeros(len(rows))
    away = np.abs(following[:, moving].astype(np.float64) - log.observations[rows][:, moving])
    sizes: np.ndarray = np.minimum(away / deviation[moving], 1).mean(1)
    return sizes


def ordinary_step(log: Transitions) -> float:
    """Farther than any ordinary step inside an episode; see `findings` for the same rule."""
    inside = np.flatnonzero(~log.last_rows[: SAMPLED_ROWS + 1])
    if not len(inside):
        return RESET_MOVE
    steps = step_sizes(log, inside, log.observations[inside + 1])
    return max(RESET_MOVE, 2 * float(np.quantile(steps, 0.99)))


def _reward_glitches(log: Transitions) -> Iterator[str]:
    rewards = np.asarray(log.rewards, np.float64)
    inside: Bool[np.ndarray, " n"] = ~log.last_rows
    values, place, counts = np.unique(rewards, return_inverse=True, return_counts=True)
    ordinary = rewards[rewards != values[counts.argmax()]]
    if len(ordinary) < 20:
        return
    low, middle, high = np.quantile(ordinary, (0.01, 0.5, 0.99))
    far = inside & (np.abs(rewards - middle) > GLITCH * (high - low)) & (high > low)
    alone = far & (counts[place] <= GLITCH_ROWS)
    rows = np.flatnonzero(alone)
    if 0 < len(rows) <= max(3, len(log) // 1000):
        shown = listing((f"row {row}: {rewards[row]:.4g}" for row in rows), limit=3)
        yield (
            f"{counted(len(rows), 'reward')} over {GLITCH:g} times the spread of all others "
            f"away from them ({shown}): check for errors; one such value determines the "
            "scale of all rewards."
        )
