"""What kind of behaviour a log holds: choices that persist, or noise drawn anew at each step."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.transitions import Transitions

# The longest chunk of actions: steps where no control rate is known, else seconds and steps.
LONGEST_CHUNK, LONGEST_SECONDS, MOST_STEPS = 8, 0.8, 16
# Numbers of steps that two demonstrations are compared over.
LAGS = range(2, 18)
# Rows whose neighbours are looked for, and rows among which they are: brute force, a second.
QUERIES, CANDIDATES = 2_000, 20_000
BLOCK = 250
# Fewer pairs, or episodes, say nothing.
FEWEST_PAIRS, FEWEST_EPISODES = 100, 3
# Persistence of choices one step later: demonstrations of people and planners lie above 0.4 in
# every log measured, policies with noise of their own below 0.1 (docs/concepts/recipe.md).
CHOICES = 0.25
# Where so few pairs of episodes meet, chance alone reached 0.37 (logs of pure noise), and choices
# lay above 0.8 (five episodes of three demonstrated tasks): below this nothing is known.
FEW_MEETINGS, CHANCE = 25, 0.5
# A chunk ends where so little of a choice is left.
FADED = 0.3


@dataclass(frozen=True)
class Behaviour:
    """How demonstrations that were in nearly the same state differ from then on.

    For a state and its nearest neighbour in another episode, d(i) is the difference of their
    actions i steps later. `persistence[i]` is the correlation of d(0) and d(i): about 0 where
    each action has noise of its own, near 1 where who chose another way keeps to it.
    """

    persistence: tuple[float, ...]
    """Of lag 0 (which is 1), 1, 2, ...; empty where too few steps lie near each other."""
    spread: float | None
    """Size of d(0) per root two, over the actions' deviation: what the state leaves open; 0 where
    actions never differ, None where that is not known."""
    meetings: int = FEW_MEETINGS
    """Pairs of episodes of which each has a state near one of the other."""

    @property
    def known(self) -> bool:
        """Whether there were enough pairs to tell."""
        if len(self.persistence) < 2:
            return False
        by_chance = self.meetings < FEW_MEETINGS and CHOICES <= self.persistence[1] < CHANCE
        return not by_chance

    @property
    def has_choices(self) -> bool:
        """Whether what the state leaves open are choices, not noise."""
        return self.known and self.persistence[1] >= CHOICES

    @property
    def steps(self) -> int:
        """Steps over which a choice is kept; 1 where there are none."""
        if not self.has_choices:
            return 1
        faded = [lag for lag, value in enumerate(self.persistence) if value < FADED]
        return max(faded[0], 1) if faded else len(self.persistence)

    def chunk(self, control_rate: float | None) -> int:
        """Steps to decide at once: as long as a choice is kept, 0.8 s at most."""
        longest = LONGEST_CHUNK
        if control_rate:
            longest = int(np.clip(round(LONGEST_SECONDS * control_rate), 1, MOST_STEPS))
        return min(self.steps, longest)


def behaviour(transitions: Transitions, *, seed: int = 0) -> Behaviour:
    """Measured on pairs of nearest states in different episodes, the nearer half of them."""
    unknown = Behaviour((), None, 0)
    if transitions.num_episodes < FEWEST_EPISODES:
        return unknown
    draw = np.random.default_rng(seed)
    lags = _lags(transitions)
    among = _rows_with(transitions, lags, draw)
    asked = draw.permutation(among)[:QUERIES]
    if len(asked) < FEWEST_PAIRS:
        return unknown
    scaling = ObservationScaling.fit(transitions.observations[among], angles=transitions.angles)
    features = scaling(transitions.observations[among])
    episode = np.searchsorted(transitions.episode_starts, among, side="right")
    place = np.searchsorted(among, asked)
    nearest, distance = _nearest(features, episode, place)
    near = distance <= np.median(distance)
    ours, theirs = asked[near], among[nearest[near]]
    half_width = transitions.action_range.half_width.astype(np.float64)
    apart = [
        (transitions.actions[ours + lag] - transitions.actions[theirs + lag]) / half_width
        for lag in range(lags)
    ]
    size = [float(np.square(each).sum(1).mean()) for each in apart]
    some = transitions.actions[:: max(len(transitions) // CANDIDATES, 1)]
    variance = float((some / half_width).var(0).sum())
    if size[0] <= 0 or variance <= 0:
        return Behaviour((), 0.0, 0)
    together = [float((apart[0] * each).sum(1).mean()) for each in apart]
    met = np.sort(episode[[place[near], nearest[near]]], axis=0)
    return Behaviour(
        tuple(
            c / np.sqrt(size[0] * s) if s > 0 else 1.0 for c, s in zip(together, size, strict=True)
        ),
        float(np.sqrt(size[0] / 2 / variance)),
        len(np.unique(met, axis=1).T),
    )


def _lags(transitions: Transitions) -> int:
    """Steps to compare over: half of all steps have at least so many from them on."""
    lengths = np.sort(transitions.episode_lengths)[::-1]
    enough = [np.maximum(lengths - lags + 1, 0).sum() >= lengths.sum() / 2 for lags in LAGS]
    return LAGS[int(np.flatnonzero(enough).max())] if any(enough) else LAGS[0]


def _rows_with(
    transitions: Transitions, following: int, draw: np.random.Generator
) -> Int64[np.ndarray, " rows"]:
    """Rows that so many steps of their episode begin at, in order; a choice of them of many."""
    rows = np.arange(len(transitions))
    if len(transitions) > 2 * CANDIDATES:  # which may be more than memory holds
        rows = np.unique(draw.integers(len(transitions), size=2 * CANDIDATES))
    episode = np.searchsorted(transitions.episode_starts, rows, side="right") - 1
    rows = rows[transitions.episode_ends[episode] - rows >= following]
    return np.sort(draw.permutation(rows)[:CANDIDATES])


def _nearest(
    features: Float32[np.ndarray, "n features"],
    episode: Int64[np.ndarray, " n"],
    asked: Int64[np.ndarray, " asked"],
) -> tuple[Int64[np.ndarray, " asked"], Float64[np.ndarray, " asked"]]:
    """Of the rows asked for, the nearest row of another episode and its squared distance."""
    from scipy.spatial.distance import cdist

    found, distances = [], []
    for block in np.array_split(asked, max(len(asked) // BLOCK, 1)):
        squared = cdist(features[block], features, "sqeuclidean")
        squared[episode[block][:, None] == episode] = np.inf
        found.append(squared.argmin(1))
        distances.append(squared.min(1))
    return np.concatenate(found), np.concatenate(distances)
