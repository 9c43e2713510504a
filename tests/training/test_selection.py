"""The best of several ways of acting, by sequential halving."""

import numpy as np
import pytest

from saqrl.training.selection import select


def arms(means, *, noise: float = 0.0, seed: int = 0):
    """What candidates, named by their place, score; and every episode that was asked for."""
    asked: list[tuple[int, int, int]] = []
    table = np.asarray(means)[:, None] + noise * np.random.default_rng(seed).normal(
        size=(len(means), 999)
    )

    def play(candidate: int, first: int, count: int):
        asked.append((candidate, first, count))
        return table[candidate, first : first + count]

    return play, asked


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_best_is_found_within_the_episodes(count):
    means = np.random.default_rng(count).permutation(count)
    play, asked = arms(means)
    best, trials = select(range(count), play, episodes=100)
    assert best == means.argmax()
    assert sum(count for _, _, count in asked) <= 100
    assert [len(trial.scores) for trial in trials] == [
        sum(n for candidate, _, n in asked if candidate == place) for place in range(count)
    ]


def test_every_candidate_of_a_round_plays_the_same_episodes_and_half_of_them_leave():
    play, asked = arms([0.0, 3.0, 1.0, 2.0])
    select(range(4), play, episodes=80)
    assert asked[:4] == [(place, 0, 10) for place in range(4)]
    assert sorted(asked[4:]) == [(1, 10, 20), (3, 10, 20)]


def test_noise_is_averaged_over_all_episodes_of_a_candidate():
    wins = 0
    for seed in range(50):
        play, _ = arms([0.0, 0.5, 0.0, 0.0], noise=1.0, seed=seed)
        wins += select(range(4), play, episodes=200)[0] == 1
    assert wins >= 45


def test_too_few_episodes_are_refused():
    play, _ = arms([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="select is 5 episodes for 3 ways of acting; at least 6"):
        select(range(3), play, episodes=5)
