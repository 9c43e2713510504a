"""Scores of several seeds on several tasks: robust means, intervals, comparisons.

Source: Agarwal et al. 2021 (arXiv 2108.13264), section 4. A method's scores are a mapping from
task to one number per seed; tasks may have different numbers of seeds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Scores = Mapping[str, Sequence[float]]
Samples = list[Float64[np.ndarray, "draws seeds"]]

RESAMPLINGS = 2000
CONFIDENCE = 0.95
# Fixed, so that two reports on the same scores agree to the last digit.
SEED = 0


class Estimate(NamedTuple):
    """A value with its bootstrap interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Sequence[float] | Float64[np.ndarray, " n"]) -> float:
    """Mean of the middle half: floor(n/4) of the sorted scores are left out on each side."""
    return float(_interquartile_means(np.asarray(scores, np.float64)[None])[0])


def interquartile_mean_interval(scores: Scores, *, resamplings: int = RESAMPLINGS) -> Estimate:
    """Interquartile mean over all seeds of all tasks.

    The interval is a percentile bootstrap that draws seeds with replacement within each task.
    """
    generator = np.random.default_rng(SEED)
    drawn = np.concatenate(_resample(scores, generator, resamplings), axis=1)
    value = interquartile_mean(np.concatenate([np.asarray(s, np.float64) for s in scores.values()]))
    return _estimate(value, _interquartile_means(drawn))


def probability_of_improvement(
    ours: Scores, theirs: Scores, *, resamplings: int = RESAMPLINGS
) -> Estimate:
    """How probably a seed of ours beats a seed of theirs on a task, averaged over tasks.

    Ties count one half (the Mann-Whitney statistic). Only tasks that both have are compared;
    ValueError where there is none. The interval draws the seeds of both anew.
    """
    tasks = [task for task in ours if task in theirs]
    if not tasks:
        raise ValueError("no task has scores of both methods")
    generator = np.random.default_rng(SEED)
    left, right = ({task: scores[task] for task in tasks} for scores in (ours, theirs))

    def mean(first: Samples, second: Samples) -> Float64[np.ndarray, " draws"]:
        per_task = [_win_rates(x, y) for x, y in zip(first, second, strict=True)]
        return np.mean(per_task, axis=0)

    exact = mean(_as_samples(left), _as_samples(right))
    drawn = mean(_resample(left, generator, resamplings), _resample(right, generator, resamplings))
    return _estimate(float(exact[0]), drawn)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho: the correlation of two lists' ranks; equal values share their mean rank.

    1 where both are in the same order, -1 in the opposite one; NaN where all values of a list are
    equal.
    """
    x, y = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt(np.square(x).sum() * np.square(y).sum())
    return float((x * y).sum() / size) if size else float("nan")


def _ranks(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """How many values lie below each, and half of those that equal it."""
    below = values[:, None] > values
    equal = values[:, None] == values
    return below.sum(1) + 0.5 * equal.sum(1)


def _as_samples(scores: Scores) -> Samples:
    return [np.asarray(values, np.float64)[None] for values in scores.values()]


def _resample(scores: Scores, generator: np.random.Generator, draws: int) -> Samples:
    """Of every task, `draws` samples of its own size."""
    samples = []
    for values in scores.values():
        array = np.asarray(values, np.float64)
        samples.append(array[generator.integers(0, len(array), (draws, len(array)))])
    return samples


def _interquartile_means(samples: Float64[np.ndarray, "draws n"]) -> Float64[np.ndarray, " draws"]:
    size = samples.shape[1]
    if not size:
        raise ValueError("there are no scores to average")
    cut = size // 4
    return np.sort(samples, axis=1)[:, cut : size - cut].mean(1)


def _win_rates(
    ours: Float64[np.ndarray, "draws n"], theirs: Float64[np.ndarray, "draws m"]
) -> Float64[np.ndarray, " draws"]:
    x, y = ours[:, :, None], theirs[:, None, :]
    return ((x > y) + 0.5 * (x == y)).mean((1, 2))


def _estimate(value: float, drawn: Float64[np.ndarray, " draws"]) -> Estimate:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))
