"""Which episodes are as good as the best, and whether luck or their starts say so."""

from dataclasses import replace

import numpy as np
import pytest

from saqrl.datasets import best_episodes
from saqrl.datasets.assembly import assemble
from saqrl.datasets.audit.quality import quality

STEPS = 5


def log_of(returns, starts):
    """Episodes with these returns, all of it on the last step, and these first observations."""
    episodes = len(returns)
    observations = np.random.default_rng(0).normal(0, 1, (episodes, STEPS, 1))
    observations[:, 0, 0] = starts
    rewards = np.zeros((episodes, STEPS), np.float32)
    rewards[:, -2] = returns  # the last row has no next observation
    ends = np.zeros((episodes, STEPS), bool)
    ends[:, -1] = True
    columns = {
        "observations": observations.reshape(-1, 1).astype(np.float32),
        "actions": np.zeros((episodes * STEPS, 1), np.float32),
        "rewards": rewards.reshape(-1),
        "timeouts": ends.reshape(-1),
    }
    return assemble(columns, source="made here")


def test_as_good_as_the_best_is_nine_tenths_of_the_way_there():
    returns = np.concatenate([np.zeros(60), np.full(20, 0.89), np.full(20, 1.0)])
    found = quality(log_of(returns, np.arange(100)))
    assert (found.episodes, found.share) == (20, 0.2)
    assert found.steps == 20 * (STEPS - 1)
    assert quality(log_of(returns - 7, np.arange(100))).episodes == 20  # costs
    assert quality(log_of(np.zeros(9), np.arange(9))).episodes == 9


@pytest.mark.parametrize("follows", [True, False])
def test_returns_that_follow_the_start_are_found(follows):
    draw = np.random.default_rng(1)
    starts = draw.uniform(-1, 1, 300)
    other = draw.uniform(-1, 1, 300)
    found = quality(log_of(np.square(starts if follows else other), starts))
    assert found.by_start > 0.9 if follows else abs(found.by_start) < 0.2


def test_learning_is_told_from_luck():
    learned = np.linspace(0, 1, 100)
    lucky = np.random.default_rng(0).permutation(learned)
    found = [quality(log_of(returns, np.zeros(100))).in_turn for returns in (learned, lucky)]
    assert found[0] == pytest.approx(1)
    assert abs(found[1]) < 0.3


def test_few_episodes_do_not_tell_why_they_are_good():
    found = quality(log_of(np.arange(20.0), np.arange(20)))
    assert found.by_start == found.in_turn == 0
    equal = quality(log_of(np.ones(30), np.arange(30)))
    assert equal.by_start == equal.in_turn == 0


def test_equal_starts_explain_nothing():
    assert quality(log_of(np.arange(40.0), np.zeros(40))).by_start == 0


@pytest.mark.parametrize("seed", range(10))
def test_starts_of_two_kinds_explain_no_learning(seed):
    starts = np.random.default_rng(seed).integers(2, size=200)
    assert abs(quality(log_of(np.arange(200.0), starts)).by_start) < 0.3


def test_copies_foretell_nothing():
    draw = np.random.default_rng(0)
    log = log_of(draw.uniform(size=100), draw.uniform(size=100))
    copied = replace(
        log.select_episodes(np.repeat(np.arange(100), 9)), groups=np.repeat(np.arange(100), 9)
    )
    assert quality(copied).by_start == quality(log).by_start
    assert quality(copied).in_turn == quality(log).in_turn


@pytest.mark.parametrize("good", [1, 7, 2_221])
def test_a_share_is_of_the_good_episodes_alone(good):
    log = log_of((np.arange(9_000) < good).astype(float), np.arange(9_000))
    kept = best_episodes("log", log, quality(log).share)
    assert kept.num_episodes == good
