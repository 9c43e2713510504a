"""How many episodes are as good as a log's best, and what explains it: who acted, or luck."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.transitions import Transitions

# As good as the best: so far from the mean return of the poorest tenth to that of the best.
AS_GOOD = 0.9
# Episodes that began nearest, whose mean return foretells one's own; and episodes looked at, below
# which nothing is told.
NEAREST, FEWEST, MOST = 10, 20, 1_000


@dataclass(frozen=True)
class Quality:
    """The episodes that are as good as the best."""

    episodes: int
    share: float
    """Of all episodes, in as few digits as give their number."""
    steps: int
    in_turn: float
    """Rank correlation of an episode's return with the one before it: high where what acted
    changed or learned along the log, near 0 where one policy was now lucky, now not."""
    by_start: float
    """Correlation of a return with the mean return of other episodes that began alike: high where
    an episode was good because of where it began."""


def quality(transitions: Transitions) -> Quality:
    """Measured on returns; both correlations are 0 where there are too few episodes to tell.

    Copies of an episode (a mixture's weights) count once in the correlations.
    """
    returns = transitions.episode_returns.astype(np.float64)
    count, own = len(returns), np.arange(len(returns))
    if transitions.groups is not None:
        own = np.sort(np.unique(transitions.groups, return_index=True)[1])
    ranked, tenth = np.sort(returns), max(count // 10, 1)
    poorest, best = ranked[:tenth].mean(), ranked[-tenth:].mean()
    good = returns >= poorest + AS_GOOD * (best - poorest)
    return Quality(
        int(good.sum()),
        _share(int(good.sum()), count),
        int(transitions.episode_lengths[good].sum()),
        _in_turn(returns[own]),
        _by_start(transitions, returns, own),
    )


def _share(some: int, count: int) -> float:
    rounded = (round(some / count, digits) for digits in range(1, 16))
    return next(share for share in rounded if share > 0 and round(share * count) == some)


def _in_turn(returns: Float64[np.ndarray, " episodes"]) -> float:
    from scipy.stats import spearmanr

    if len(returns) <= FEWEST or not min(returns[1:].std(), returns[:-1].std()) > 0:
        return 0.0
    return float(spearmanr(returns[1:], returns[:-1]).statistic)


def _by_start(
    transitions: Transitions,
    returns: Float64[np.ndarray, " episodes"],
    own: Int64[np.ndarray, " own"],
) -> float:
    from scipy.spatial.distance import cdist

    some = own[np.unique(np.linspace(0, len(own) - 1, MOST).astype(np.int64))]
    starts = transitions.observations[transitions.episode_starts[some]]
    if len(some) <= FEWEST or (starts == starts[0]).all():
        return 0.0
    began = ObservationScaling.fit(starts, angles=transitions.angles)(starts)
    apart = cdist(began, began, "sqeuclidean")
    np.fill_diagonal(apart, np.inf)
    chance = np.random.default_rng(0).random(apart.shape)  # of those equally near
    nearest = np.lexsort((chance, apart))[:, :NEAREST]
    foretold = returns[some][nearest].mean(1)
    if not (foretold.std() > 0 and returns[some].std() > 0):
        return 0.0
    return float(np.corrcoef(foretold, returns[some])[0, 1])
