"""What is in a log, and what is wrong with it: numbers first, then sentences with remedies."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from saqrl.datasets.assembly import mismatched_successors
from saqrl.datasets.audit.behaviour import behaviour
from saqrl.datasets.audit.suspicions import suspicions
from saqrl.datasets.errors import counted, listing, printable
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.statistics import BLOCK_ROWS, ColumnStatistics, blocks, column_statistics
from saqrl.datasets.transitions import Transitions
from saqrl.environments.families import solving_reward

HISTOGRAM_BINS = 8
# Rows that the searches for patterns look at; statistics and counts use all of them.
SAMPLED_ROWS = 20_000
# Of the half width: what a controller clips, and a tanh that has saturated.
AT_BOUND = 1e-3
# The share of clipped entries in one action dimension that is worth a warning.
OFTEN_CLIPPED = 0.2
# The share of rows that a column of two values may lie between them, and has at each of them.
SELDOM = 0.01
# A reward of two that more steps get is one for being alive.
OFTEN_PAID = 0.5
# In standard deviations: farther out is a glitch of the sensor more often than a state.
FAR_OUT = 50.0
# A wrap-around is a step of a whole turn, less what the angle really moved in one step.
WRAP_STEP = 2 * np.pi - 0.6
# Root mean square distance of action and next observation, of the action's deviation: a recorded
# position, and a commanded one that the robot follows.
RECORDED, FOLLOWED = 0.01, 0.25
# The same of action and observation of one row: the observation holds the answer.
COPIED = 1e-3
# Codes that are worth trying at all; measured in docs/concepts/recipe.md.
FEWEST_CODES, MOST_CODES = 16, 128
# Lags (steps) at which actions are compared with themselves.
LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class ColumnAudit:
    """One column of the observations or actions, in its own units."""

    column: int
    minimum: float
    maximum: float
    mean: float
    deviation: float
    constant: bool
    histogram: tuple[int, ...]
    """Counts of equal bins between minimum and maximum."""
    at_low: float | None = None
    """Share of rows at the lower bound of the action range; None for observations."""
    at_high: float | None = None
    two_valued: bool = False
    """Whether nearly all values are the minimum or the maximum, as for an open/close gripper.

    At most 1 % of the rows have other values, and each of the two has at least 1 %."""

    @property
    def at_bounds(self) -> float:
        return (self.at_low or 0) + (self.at_high or 0)


@dataclass(frozen=True)
class Audit:
    """The findings of `audit`; shares lie in [0, 1], columns and rows count from 0."""

    source: str
    format: str
    environment: str | None
    robot: str
    """Name of the robot in the file; empty if unknown."""
    control_rate: float | None
    """Steps per second (Hz)."""
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    action_names: tuple[str, ...]
    """Name of each action dimension; empty if the file has none."""
    observation_names: tuple[str, ...]
    episodes: int
    steps: int
    length_min: int
    length_median: float
    length_max: int
    terminated_episodes: int
    truncated_episodes: int
    """All others: stopped by a time limit, by the end of a recording, or after success."""
    successful_episodes: int | None
    """Episodes that solved the task, by the file or by rewards for success alone; None if
    unknown."""
    has_rewards: bool
    return_min: float | None
    return_mean: float | None
    return_max: float | None
    reward_min: float | None
    reward_max: float | None
    commonest_reward: float | None
    commonest_reward_share: float | None
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_range_origin: str
    observations: tuple[ColumnAudit, ...]
    actions: tuple[ColumnAudit, ...]
    constant_observations: tuple[int, ...]
    constant_actions: tuple[int, ...]
    clipped_share: float
    """Share of action entries at a bound, without two-valued dimensions."""
    mismatched_successors: int
    jumps: tuple[int, ...]
    """Rows inside an episode after which the observation jumps as far as a reset would."""
    duplicated_episodes: tuple[tuple[int, ...], ...]
    """Groups of episodes that are equal in every observation and action."""
    position_actions: tuple[tuple[int, int], ...]
    """(action, observation) columns where the action is the next observation."""
    followed_actions: tuple[tuple[int, int], ...]
    """(action, observation) columns where the next observation follows the action closely."""
    copied_actions: tuple[tuple[int, int], ...]
    """(action, observation) columns where the observation of the same row is the action."""
    action_correlation: int
    """Steps after which the autocorrelation of the actions is below 1 / e."""
    independent_actions: int
    """Steps divided by the action correlation."""
    persistence: tuple[float, ...]
    """See `behaviour.Behaviour`; empty where too few steps lie near each other."""
    spread: float | None
    """What the state leaves open of the actions, over their deviation."""
    meetings: int
    """Pairs of episodes that pass through the same states."""
    chunk: int
    """Steps over which choices are kept: what one code should stand for."""
    supported_codes: int
    """Suggested number of codes for such chunks, by `codes_for`."""
    angles: tuple[int, ...]
    likely_angles: tuple[int, ...]
    notes: tuple[str, ...]
    """What the reader changed."""
    warnings: tuple[str, ...]
    """What is suspicious, each with its remedy."""

    def to_json(self) -> dict[str, object]:
        """The same as plain JSON values."""
        return asdict(self)


def audit(transitions: Transitions) -> Audit:
    """Look through a whole log. Costs a few passes over the data and little memory."""
    lengths = transitions.episode_lengths
    last = transitions.last_rows
    terminated = int(transitions.terminated[last].sum())
    observed, acted = (
        column_statistics(table) for table in (transitions.observations, transitions.actions)
    )
    angles = likely_angles(transitions)
    columns = _columns(transitions.actions, acted, transitions.action_range)
    correlation = _action_correlation(transitions, acted)
    independent = max(len(transitions) // correlation, 1)
    seen = replace(transitions, angles=transitions.angles or angles)  # as the recipe sees it
    found_behaviour = behaviour(seen)
    chunk = found_behaviour.chunk(transitions.control_rate)
    found = Audit(
        source=str(transitions.provenance.get("path", "")),
        format=str(transitions.provenance.get("format", "")),
        environment=transitions.environment.id if transitions.environment else None,
        robot=printable(transitions.provenance.get("robot_type") or ""),
        control_rate=transitions.control_rate,
        tasks=transitions.tasks,
        cameras=transitions.cameras,
        action_names=transitions.action_names,
        observation_names=transitions.column_names,
        episodes=transitions.num_episodes,
        steps=len(transitions),
        length_min=int(lengths.min()),
        length_median=float(np.median(lengths)),
        length_max=int(lengths.max()),
        terminated_episodes=terminated,
        truncated_episodes=transitions.num_episodes - terminated,
        successful_episodes=_successes(transitions),
        has_rewards=transitions.has_rewards,
        **_reward_findings(transitions),
        action_low=tuple(transitions.action_range.low.tolist()),
        action_high=tuple(transitions.action_range.high.tolist()),
        action_range_origin=str(transitions.provenance.get("action_range", "")),
        observations=_columns(transitions.observations, observed),
        actions=columns,
        constant_observations=_chosen(observed.constant),
        constant_actions=_chosen(acted.constant),
        clipped_share=float(np.mean([c.at_bounds for c in columns if not c.two_valued] or [0])),
        mismatched_successors=int(
            mismatched_successors(
                transitions.observations, transitions.next_observations, last
            ).sum()
        ),
        jumps=_jumps(transitions.observations, last, observed, {*angles, *transitions.angles}),
        duplicated_episodes=_duplicates(transitions),
        position_actions=_matching(transitions, "next_observations", 0, RECORDED),
        followed_actions=_matching(transitions, "next_observations", RECORDED, FOLLOWED),
        copied_actions=_matching(transitions, "observations", 0, COPIED),
        action_correlation=correlation,
        independent_actions=independent,
        persistence=found_behaviour.persistence,
        spread=found_behaviour.spread,
        meetings=found_behaviour.meetings,
        chunk=chunk,
        supported_codes=codes_for(len(transitions), chunk),
        angles=transitions.angles,
        likely_angles=tuple(sorted(set(angles) - set(transitions.angles))),
        notes=transitions.notes,
        warnings=(),
    )
    return replace(found, warnings=(*suspicions(transitions), *_warnings(found)))


def _reward_findings(transitions: Transitions) -> dict[str, Any]:
    """The fields of an Audit that are about rewards; None where there are none."""
    names = [f"return_{which}" for which in ("min", "mean", "max")]
    names += ["reward_min", "reward_max", "commonest_reward", "commonest_reward_share"]
    if not transitions.has_rewards:
        return dict.fromkeys(names)
    starts = transitions.episode_starts
    returns = np.add.reduceat(transitions.rewards, starts, dtype=np.float64)
    values, counts = np.unique(transitions.rewards, return_counts=True)
    commonest, share = values[counts.argmax()], counts.max() / len(transitions)
    found = (returns.min(), returns.mean(), returns.max(), values[0], values[-1], commonest, share)
    return dict(zip(names, map(float, found), strict=True))


def _successes(transitions: Transitions) -> int | None:
    """Episodes that solve the task; None where nothing tells.

    Without the file's word, rewards of two values tell it, of which most steps get the lower, and
    those of a task whose own test looks at nothing but the reward.
    """
    if transitions.successes is not None:
        return int(transitions.successes.sum())
    if not transitions.has_rewards:
        return None
    highest = np.maximum.reduceat(transitions.rewards, transitions.episode_starts)
    environment = transitions.environment
    if environment and (least := solving_reward(environment.id)) is not None:
        return int((highest >= least).sum())
    paid = transitions.rewards == highest.max()
    others = transitions.rewards[~paid]
    sparse = len(others) > 0 and np.ptp(others) == 0 and paid.mean() < OFTEN_PAID
    return int((highest == highest.max()).sum()) if sparse else None


def _columns(
    table: Float32[np.ndarray, "n columns"],
    statistics: ColumnStatistics,
    action_range: ActionRange | None = None,
) -> tuple[ColumnAudit, ...]:
    """Each column; with the range of actions, the share of rows at a bound that is no point."""
    bounds = list(zip(statistics.minimum, statistics.maximum, strict=True))
    counts = np.zeros((len(bounds), HISTOGRAM_BINS), np.int64)
    clipped, extreme = np.zeros((2, 2, len(bounds)))
    reach = AT_BOUND * (statistics.maximum - statistics.minimum)
    for block in blocks(table):
        counts += [_histogram(block[:, i], *ends) for i, ends in enumerate(bounds)]
        extreme[0] += (block <= statistics.minimum + reach).sum(0)
        extreme[1] += (block >= statistics.maximum - reach).sum(0)
        if action_range is not None:
            slack = AT_BOUND * action_range.half_width
            clipped[0] += (block <= action_range.low + slack).sum(0)
            clipped[1] += (block >= action_range.high - slack).sum(0)
    if action_range is not None:
        clipped = np.where(action_range.high > action_range.low, clipped / len(table), 0)
    shares = extreme / len(table)
    two_valued = (shares.sum(0) >= 1 - SELDOM) & (shares.min(0) >= SELDOM) & ~statistics.constant
    return tuple(
        ColumnAudit(
            column=column,
            minimum=float(statistics.minimum[column]),
            maximum=float(statistics.maximum[column]),
            mean=float(statistics.mean[column]),
            deviation=float(statistics.deviation[column]),
            constant=bool(statistics.constant[column]),
            histogram=tuple(counts[column].tolist()),
            at_low=None if action_range is None else float(clipped[0, column]),
            at_high=None if action_range is None else float(clipped[1, column]),
            two_valued=bool(two_valued[column]),
        )
        for column in range(table.shape[1])
    )


def _histogram(values: Float32[np.ndarray, " n"], low: float, high: float) -> tuple[int, ...]:
    if not high > low:
        return (len(values),) + (0,) * (HISTOGRAM_BINS - 1)
    share = (values.astype(np.float64) - low) / (high - low)
    bins = np.minimum((share * HISTOGRAM_BINS).astype(np.int64), HISTOGRAM_BINS - 1)
    return tuple(np.bincount(bins, minlength=HISTOGRAM_BINS).tolist())


def likely_angles(transitions: Transitions) -> tuple[int, ...]:
    """Columns within [0, 2 pi] or [-pi, pi] that step by a whole turn inside an episode."""
    observations = transitions.observations
    low, high = observations.min(0), observations.max(0)
    slack = 1e-3
    positive = (low >= -slack) & (high <= 2 * np.pi + slack)
    symmetric = (low >= -np.pi - slack) & (high <= np.pi + slack)
    candidates = np.flatnonzero((positive | symmetric) & (high - low > WRAP_STEP))
    inside = ~transitions.last_rows[:-1]
    return tuple(
        int(column)
        for column in candidates
        if (np.abs(np.diff(observations[:, column]))[inside] > WRAP_STEP).any()
    )


def _jumps(
    observations: Float32[np.ndarray, "n obs"],
    last: Bool[np.ndarray, " n"],
    statistics: ColumnStatistics,
    angles: set[int],
) -> tuple[int, ...]:
    """Rows after which nearly every column moves at once, as at a reset.

    A step is its move in standard deviations, at most 1 a column, averaged over the columns. It is
    reported above 0.5 and above twice what 99 % of the steps inside episodes stay under; angles are
    left out, for they wrap. A log whose ordinary steps are that large shows nothing.
    """
    usable = ~statistics.constant
    usable[sorted(angles)] = False
    if len(observations) < 3 or not usable.any():
        return ()
    deviation, steps = statistics.deviation[usable], np.zeros(len(observations) - 1)
    for start in range(0, len(steps), BLOCK_ROWS):
        block = observations[start : start + BLOCK_ROWS + 1, usable].astype(np.float64)
        moves = np.abs(np.diff(block, axis=0)) / deviation
        steps[start : start + BLOCK_ROWS] = np.minimum(moves, 1).mean(1)
    inside = ~last[:-1]
    if not inside.any():
        return ()
    limit = max(0.5, 2 * float(np.quantile(steps[inside], 0.99)))
    return tuple(np.flatnonzero((steps > limit) & inside).tolist())


def _duplicates(transitions: Transitions) -> tuple[tuple[int, ...], ...]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for episode, rows in enumerate(transitions.episode_rows):
        digest = hashlib.blake2b(transitions.observations[rows].tobytes())
        digest.update(transitions.actions[rows].tobytes())
        groups[digest.digest()].append(episode)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def codes_for(steps: int, chunk: int = 1) -> int:
    """How many codes a log is worth: the power of two nearest the root of its decisions.

    A decision is a chunk of steps. As of a histogram's bins, each code and each code's share of
    the states then get better known alike with more data; between FEWEST_CODES and MOST_CODES.
    """
    decisions = max(steps // chunk, 1)
    return int(np.clip(2 ** round(np.log2(decisions) / 2), FEWEST_CODES, MOST_CODES))


def _action_correlation(transitions: Transitions, statistics: ColumnStatistics) -> int:
    """The first of LAGS whose autocorrelation, averaged over moving dimensions, is below 1 / e."""
    moving = ~statistics.constant
    if not moving.any():
        return LAGS[-1]
    rows = min(len(transitions), SAMPLED_ROWS)
    actions = transitions.actions[:rows, moving].astype(np.float64)
    scaled = (actions - statistics.mean[moving]) / statistics.deviation[moving]
    episode = np.searchsorted(transitions.episode_starts, np.arange(rows), side="right")
    for lag in LAGS:
        together = episode[lag:] == episode[:-lag]
        if not together.any():
            return lag
        if float((scaled[lag:] * scaled[:-lag])[together].mean()) < 1 / np.e:
            return lag
    return LAGS[-1]


def _matching(
    transitions: Transitions, field: str, least: float, most: float
) -> tuple[tuple[int, int], ...]:
    """Pairs whose root mean square difference, of the action's deviation, lies in [least, most)."""
    stride = -(-len(transitions) // SAMPLED_ROWS)
    actions = transitions.actions[::stride].astype(np.float64)
    following = np.asarray(getattr(transitions, field)[::stride], np.float64)
    spread = actions.std(0)
    pairs = []
    for column in np.flatnonzero(spread > 1e-6 * np.maximum(np.abs(actions).max(0), 1)):
        gap = np.sqrt(((following - actions[:, [column]]) ** 2).mean(0))
        nearest = int(gap.argmin())
        if least * spread[column] <= gap[nearest] < most * spread[column]:
            pairs.append((int(column), nearest))
    return tuple(pairs)


def _chosen(flags: Bool[np.ndarray, " columns"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(flags).tolist())


def _warnings(found: Audit) -> Iterator[str]:
    yield from _episode_warnings(found)
    if found.has_rewards and found.reward_min == found.reward_max:
        yield (
            f"Every reward is {found.reward_min:g}: cql, iql and brac learn nothing from a "
            "constant reward; use bc, or relabel the rewards."
        )
    yield from _column_warnings(found)


def _episode_warnings(found: Audit) -> Iterator[str]:
    if found.mismatched_successors:
        yield (
            f"{counted(found.mismatched_successors, 'row')} inside an episode with a next "
            "observation that is not the observation of the next row: mark an episode end "
            "there, or correct next_observations."
        )
    if found.jumps:
        yield (
            f"The observation jumps as at a reset after {counted(len(found.jumps), 'row')} "
            f"inside an episode ({listing(found.jumps, limit=4)}): an episode end may be "
            "missing there; set timeouts in these rows."
        )
    if found.duplicated_episodes:
        copies = sum(len(group) - 1 for group in found.duplicated_episodes)
        first = found.duplicated_episodes[0]
        yield (
            f"{counted(copies, 'episode')} copied from others (episodes "
            f"{listing(first, limit=4)} are equal): training and held-out episodes could be "
            "the same; remove the copies."
        )


def _column_warnings(found: Audit) -> Iterator[str]:
    if found.likely_angles:
        flags = " ".join(str(column) for column in found.likely_angles)
        yield (
            "These observation columns look like angles that wrap around; if they are angles in "
            f"radians, pass --angles {flags}."
        )
    degrees = [c for c in found.angles if _spans_degrees(found.observations[c])]
    if degrees:
        yield (
            f"Angle columns {listing(degrees)} exceed many turns in radians: if they are "
            "degrees, convert them to radians."
        )
    clipped = [
        _named(c.column, found.action_names)
        for c in found.actions
        if c.at_bounds > OFTEN_CLIPPED and not c.two_valued
    ]
    if clipped:
        yield (
            f"Action dimensions {listing(clipped)} are at a bound in over "
            f"{OFTEN_CLIPPED:.0%} of the rows: if the recording clipped them, widen the "
            "controller's range and record again; if the recorded controller saturates, "
            "ignore this."
        )
    if found.copied_actions:
        pairs = listing((f"observation {o} = action {a}" for a, o in found.copied_actions), limit=4)
        yield (
            f"Observations contain the action of the same row ({pairs}): the policy would "
            "copy it and fail where it is not known in advance; remove these columns."
        )
    if found.position_actions:
        pairs = listing((f"{a} = observation {o}" for a, o in found.position_actions), limit=4)
        yield (
            f"Actions equal the next observation ({pairs}): measured positions were recorded "
            "instead of commands; check that the environment takes positions."
        )
    elif 2 * len(found.followed_actions) >= len(found.actions):
        pairs = listing((f"{a}: observation {o}" for a, o in found.followed_actions), limit=4)
        yield (
            f"The next observation follows the action closely ({pairs}): actions are target "
            "positions; check that the environment takes positions. Action errors are small "
            "even for a policy that only copies the state."
        )
    far = [_named(c.column, found.observation_names) for c in found.observations if _far_out(c)]
    if far:
        yield (
            f"Observation columns {listing(far)} have values over {FAR_OUT:g} standard "
            "deviations from the mean: check them for sensor glitches."
        )


def _named(column: int, names: tuple[str, ...]) -> str:
    return f"{column} ({names[column]})" if names else str(column)


def _far_out(column: ColumnAudit) -> bool:
    reach = max(column.maximum - column.mean, column.mean - column.minimum)
    return not column.constant and reach > FAR_OUT * column.deviation


def _spans_degrees(column: ColumnAudit) -> bool:
    return max(abs(column.minimum), abs(column.maximum)) > 60
