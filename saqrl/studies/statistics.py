"""Scores of several seeds on several tasks: robust means, intervals, comparisons.

Source: Agarwal et al. 2021 (arXiv 2108.13264), section 4. A method's scores are a mapping from
task to one number per seed; tasks may have different numbers of seeds and weigh the same.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Scores = Mapping[str, Sequence[float]]
Samples = list[Float64[np.ndarray, "draws seeds"]]

RESAMPLINGS = 2000
# Of a task: an interval of fewer covers far less than it says (of two seeds about half).
FEWEST_SEEDS = 5
CONFIDENCE = 0.95
# Fixed, so that two reports on the same scores agree to the last digit.
SEED = 0


class Estimate(NamedTuple):
    """A value with its bootstrap interval; low and high are NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)

    def __format__(self, number: str) -> str:
        """`value [low, high]`, or the value alone, each as the format of a number says."""
        value, low, high = (format(part, number) for part in self)
        return f"{value} [{low}, {high}]" if self.has_interval else value


def interquartile_mean(scores: Sequence[float] | Float64[np.ndarray, " n"]) -> float:
    """Mean of the middle half: floor(n/4) of the sorted scores are left out on each side."""
    return float(_interquartile_means([np.asarray(scores, np.float64)[None]])[0])


def interquartile_mean_interval(
    scores: Scores, *, resamplings: int = RESAMPLINGS, sources: Mapping[str, str] | None = None
) -> Estimate:
    """Interquartile mean over all tasks, each of the same weight whatever its number of seeds.

    Tasks of one source (task -> source), as one file with two chunk lengths, share one weight.

    The mean of the middle half after every task's scores have been repeated until all tasks have
    equally many; with equal numbers of seeds it is the plain one over all of them. The interval is
    a percentile bootstrap that draws seeds with replacement within each task. A task with one seed
    would add no spread to it and one with few too little: there is none below FEWEST_SEEDS of each.
    """
    weights = _weights([(sources or {}).get(task, task) for task in scores])
    statistic = partial(_interquartile_means, weights=weights)
    return _with_interval(statistic, scores, resamplings=resamplings)


def _weights(sources: Sequence[str]) -> list[int]:
    """Of each task, so that every source has the same weight."""
    sizes = [list(sources).count(source) for source in sources]
    return [math.lcm(*sizes) // size for size in sizes]


def tasks_in_common(methods: Collection[Scores]) -> list[str]:
    """The tasks that all methods have: those with two seeds of each, or all where none has."""
    tasks = [task for task in next(iter(methods)) if all(task in scores for scores in methods)]
    repeated = [t for t in tasks if all(len(scores[t]) > 1 for scores in methods)]
    return repeated or tasks


def probability_of_improvement(
    ours: Scores, theirs: Scores, *, resamplings: int = RESAMPLINGS
) -> Estimate:
    """How probably a seed of ours beats a seed of theirs on a task, averaged over tasks.

    Ties count one half (the Mann-Whitney statistic). Only `tasks_in_common` are compared;
    ValueError where there is none. The interval draws the seeds of both anew; there is none where
    a task has fewer than FEWEST_SEEDS of either.
    """
    tasks = tasks_in_common((ours, theirs))
    if not tasks:
        raise ValueError("no task has scores of both methods: run both on the same data set")
    left, right = ({task: scores[task] for task in tasks} for scores in (ours, theirs))

    def mean(first: Samples, second: Samples) -> Float64[np.ndarray, " draws"]:
        per_task = [_win_rates(x, y) for x, y in zip(first, second, strict=True)]
        return np.mean(per_task, axis=0)

    return _with_interval(mean, left, right, resamplings=resamplings)


def mean_interval(values: Sequence[float], *, seed: int) -> Estimate:
    """Mean with its interval, by the percentile bootstrap."""
    (drawn,) = _resample({"": values}, np.random.default_rng(seed), RESAMPLINGS)
    return _estimate(float(np.mean(values)), drawn.mean(1))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho: the correlation of two lists' ranks; equal values share their mean rank.

    1 where both are in the same order, -1 in the opposite one; NaN where all values of a list are
    equal.
    """
    from scipy.stats import spearmanr  # half a second, which no other part of the package needs

    if len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    return float(spearmanr(first, second).statistic)


def _with_interval(
    statistic: Callable[..., Float64[np.ndarray, " draws"]], *groups: Scores, resamplings: int
) -> Estimate:
    """A statistic of samples of every group; no interval where a task of one has few seeds."""
    exact = [[np.asarray(values, np.float64)[None] for values in g.values()] for g in groups]
    value = float(statistic(*exact)[0])
    if min(len(values) for group in groups for values in group.values()) < FEWEST_SEEDS:
        return Estimate(value, math.nan, math.nan)
    generator = np.random.default_rng(SEED)
    return _estimate(value, statistic(*(_resample(g, generator, resamplings) for g in groups)))


def _resample(scores: Scores, generator: np.random.Generator, draws: int) -> Samples:
    """Of every task, `draws` samples of its own size."""
    samples = []
    for values in scores.values():
        array = np.asarray(values, np.float64)
        samples.append(array[generator.integers(0, len(array), (draws, len(array)))])
    return samples


def _interquartile_means(
    samples: Samples, *, weights: Sequence[int] | None = None
) -> Float64[np.ndarray, " draws"]:
    """Over all tasks of each draw, as if scores were repeated until all tasks had equally many.

    A task of weight w counts as w tasks.
    """
    sizes = [task.shape[1] for task in samples]
    if not sizes or not all(sizes):
        raise ValueError("there are no scores to average")
    repeated = math.lcm(*sizes)
    counts = weights or [1] * len(sizes)
    times = np.repeat([w * repeated // n for w, n in zip(counts, sizes, strict=True)], sizes)
    scores = np.concatenate(samples, axis=1)
    order = np.argsort(scores, axis=1)
    # Where the repetitions of each sorted score begin and end among all of them.
    ends = np.cumsum(times[order], axis=1)
    begins = ends - times[order]
    total = repeated * sum(counts)
    cut = total // 4
    kept = np.clip(ends, cut, total - cut) - np.clip(begins, cut, total - cut)
    return (np.take_along_axis(scores, order, axis=1) * kept).sum(1) / (total - 2 * cut)


def _win_rates(
    ours: Float64[np.ndarray, "draws n"], theirs: Float64[np.ndarray, "draws m"]
) -> Float64[np.ndarray, " draws"]:
    x, y = ours[:, :, None], theirs[:, None, :]
    return ((x > y) + 0.5 * (x == y)).mean((1, 2))


def _estimate(value: float, drawn: Float64[np.ndarray, " draws"]) -> Estimate:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
