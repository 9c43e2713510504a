"""Robust means and comparisons against brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.studies import statistics

numbers = st.floats(-100, 100, width=32)


@given(st.lists(numbers, min_size=1, max_size=17))
def test_interquartile_mean_drops_a_quarter_of_the_scores_on_each_side(scores):
    left = sorted(scores)
    for _ in range(len(scores) // 4):
        left = left[1:-1]
    assert statistics.interquartile_mean(scores) == pytest.approx(sum(left) / len(left), abs=1e-6)


def test_interquartile_mean_ignores_one_broken_seed_in_five():
    assert statistics.interquartile_mean([10, 11, 12, 13, -1e9]) == 11


def test_no_score_has_no_mean():
    with pytest.raises(ValueError, match="no scores"):
        statistics.interquartile_mean([])


@given(st.lists(numbers, min_size=1, max_size=5), st.lists(numbers, min_size=1, max_size=5))
def test_probability_of_improvement_counts_pairs(ours, theirs):
    wins = 0.0
    for x, y in itertools.product(ours, theirs):
        wins += 1.0 if x > y else 0.5 if x == y else 0.0
    expected = wins / len(ours) / len(theirs)
    found = statistics.probability_of_improvement({"t": ours}, {"t": theirs}, resamplings=2)
    assert found.value == pytest.approx(expected)
    mirrored = statistics.probability_of_improvement({"t": theirs}, {"t": ours}, resamplings=2)
    assert found.value + mirrored.value == pytest.approx(1)


def test_probability_of_improvement_weighs_tasks_alike_and_skips_those_of_one_side():
    ours = {"easy": [2.0, 2.0, 2.0, 2.0], "hard": [0.0], "ours": [9.0]}
    theirs = {"easy": [1.0], "hard": [1.0, 1.0], "theirs": [9.0]}
    assert statistics.probability_of_improvement(ours, theirs).value == 0.5
    with pytest.raises(ValueError, match="no task"):
        statistics.probability_of_improvement({"a": [1.0]}, {"b": [1.0]})


@pytest.fixture
def few(monkeypatch):
    """Intervals of few seeds too, whose resamplings can be enumerated."""
    monkeypatch.setattr(statistics, "FEWEST_SEEDS", 2)


@pytest.mark.usefixtures("few")
def test_bootstrap_interval_is_that_of_all_resamplings():
    """Two tasks of three seeds: all 27 x 27 resamplings within the tasks, enumerated."""
    scores = {"a": [0.0, 5.0, 7.0], "b": [50.0, 60.0, 61.0]}
    every = [
        statistics.interquartile_mean([*left, *right])
        for left in itertools.product(scores["a"], repeat=3)
        for right in itertools.product(scores["b"], repeat=3)
    ]
    found = statistics.interquartile_mean_interval(scores, resamplings=20_000)
    low, high = np.quantile(every, [0.025, 0.975])
    # The spread of a quantile of 20,000 draws from steps of this size.
    assert found.low == pytest.approx(low, abs=0.7)
    assert found.high == pytest.approx(high, abs=0.7)
    assert found.value == statistics.interquartile_mean([0, 5, 7, 50, 60, 61])


some_tasks = st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=1, max_size=4)


@given(some_tasks)
def test_tasks_weigh_the_same_however_many_seeds_they_have(tasks):
    """As if each score were written down again until every task has as many as any other."""
    most = math.lcm(*map(len, tasks))
    written = [score for task in tasks for score in task for _ in range(most // len(task))]
    found = statistics.interquartile_mean_interval(dict(enumerate(tasks)), resamplings=2)
    assert found.value == pytest.approx(statistics.interquartile_mean(written), abs=1e-6)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n),
    min_size=1, max_size=5)))  # fmt: skip
def test_with_equal_numbers_of_seeds_it_is_the_interquartile_mean_of_all_runs(tasks):
    """scipy.stats.trim_mean(scores, 0.25) over all of them, as rliable has it."""
    scores = sorted(score for task in tasks for score in task)
    cut = int(0.25 * len(scores))
    plain = np.mean(scores[cut : len(scores) - cut])
    found = statistics.interquartile_mean_interval(dict(enumerate(tasks)), resamplings=2)
    assert found.value == pytest.approx(plain, abs=1e-6)


def test_five_seeds_of_one_task_do_not_outvote_one_of_another():
    found = statistics.interquartile_mean_interval({"five": [0.0] * 5, "one": [100.0]})
    assert found.value == 50


def test_tasks_of_one_source_share_one_weight():
    """As if the single ones were written down once more for each task of the source."""
    scores = {"pusht": [60.0, 61.0], "pusht-8": [90.0, 95.0], "can": [10.0], "lift": [20.0, 30.0]}
    sources = {"pusht": "pusht", "pusht-8": "pusht"}
    # Scores of every task twice (lcm of seeds), and can and lift twice again.
    written = [60, 61, 90, 95, *[10] * 4, *[20, 30] * 2]
    found = statistics.interquartile_mean_interval(scores, sources=sources)
    assert found.value == pytest.approx(statistics.interquartile_mean(written))
    assert found.value != statistics.interquartile_mean_interval(scores).value


@pytest.mark.usefixtures("few")
def test_bootstrap_of_unequal_numbers_of_seeds_is_that_of_all_resamplings():
    scores = {"two": [0.0, 9.0], "three": [3.0, 6.0, 8.0]}
    every = [
        statistics.interquartile_mean([*left * 3, *right * 2])
        for left in itertools.product(scores["two"], repeat=2)
        for right in itertools.product(scores["three"], repeat=3)
    ]
    found = statistics.interquartile_mean_interval(scores, resamplings=20_000)
    assert found.value == statistics.interquartile_mean([0, 9] * 3 + [3, 6, 8] * 2)
    # Quantiles of the 108 equally probable means, each a step of the same distribution.
    assert (found.low, found.high) == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.3)


def test_a_task_with_one_seed_leaves_no_interval():
    """Drawn with the others it would add no spread, and the interval would be too narrow."""
    enough = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = statistics.interquartile_mean_interval({"a": enough, "b": [9.0]})
    assert not found.has_interval
    assert math.isnan(found.high)
    assert statistics.interquartile_mean_interval({"a": enough}).has_interval


def test_an_interval_covers_about_what_the_report_says_of_it():
    """Seeds of one task, normal: the interval of few would cover far less than 95 %."""
    generator = np.random.default_rng(0)

    def coverage(seeds, tries=300):
        found = [
            statistics.interquartile_mean_interval(
                {"": generator.normal(size=seeds).tolist()}, resamplings=500
            )
            for _ in range(tries)
        ]
        return np.mean([e.low <= 0 <= e.high for e in found if e.has_interval])

    assert not statistics.interquartile_mean_interval({"": [0.0, 1.0, 2.0, 3.0]}).has_interval
    assert coverage(5) == pytest.approx(0.87, abs=0.06)  # 300 tries: deviation 0.02
    assert coverage(10) > 0.88


def test_one_run_a_side_gives_a_point_without_an_interval():
    found = statistics.probability_of_improvement({"a": [2.0]}, {"a": [1.0]})
    assert found.value == 1
    assert not found.has_interval


def test_improvement_leaves_out_tasks_with_a_single_run_where_others_have_more():
    ours = {"twice": [1.0, 3.0], "once": [9.0, 9.0], "never": [9.0]}
    theirs = {"twice": [2.0, 2.0], "once": [0.0], "theirs": [0.0]}
    assert statistics.tasks_in_common((ours, theirs)) == ["twice"]
    found = statistics.probability_of_improvement(ours, theirs)
    assert found.value == 0.5
    del ours["twice"]
    assert statistics.probability_of_improvement(ours, theirs).value == 1


def test_seeds_are_drawn_within_their_task_only():
    """A bootstrap that mixed the tasks would draw means far from 50."""
    found = statistics.interquartile_mean_interval({"a": [0.0] * 5, "b": [100.0] * 5})
    assert found == (50, 50, 50)


def test_two_reports_of_the_same_scores_agree():
    scores = {"a": [1.0, 2.0, 4.0, 8.0]}
    first = statistics.interquartile_mean_interval(scores)
    assert first == statistics.interquartile_mean_interval(scores)


def test_rank_correlation_is_pearsons_of_the_ranks():
    first, second = [3.0, 1.0, 4.0, 1.0, 5.0], [2.0, 7.0, 1.0, 8.0, 2.0]
    # Ranks by hand, equal values sharing the mean of their places.
    x, y = np.array([2, 0.5, 3, 0.5, 4]), np.array([1.5, 3, 0, 4, 1.5])
    expected = np.corrcoef(x, y)[0, 1]
    assert statistics.rank_correlation(first, second) == pytest.approx(expected)
    assert statistics.rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert statistics.rank_correlation(first, [-v for v in first]) == pytest.approx(-1)
    assert np.isnan(statistics.rank_correlation(first, [1.0] * 5))
