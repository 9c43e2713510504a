"""The best of several ways of acting, by sequential halving."""

import numpy as np
import pytest

from saqrl.policy.storage import load_policy
from saqrl.training.flags import changed
from saqrl.training.selection import check_selection, select
from tests.walking import run, small


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


def test_too_few_episodes_are_refused_before_anything_is_trained(dataset):
    settings = small(dataset, select=3)
    with pytest.raises(
        ValueError, match="select is 3 episodes for 4 ways of acting; it must be at least 8"
    ):
        check_selection(settings)
    check_selection(changed(settings, {"select": 8}))
    check_selection(changed(settings, {"select": 0}))


def test_a_run_plays_the_way_that_scored_best_on_episodes_of_their_own(dataset, tmp_path):
    settings = small(dataset, select=8, eval_episodes=2)
    result = run(settings, tmp_path / "run")
    trials = result["selection"]
    assert sum(trial["episodes"] for trial in trials) <= 8
    assert len({(t["act"], t["act_temperature"], t["action_horizon"]) for t in trials}) == 4
    most = max(trial["episodes"] for trial in trials)
    best = max((t for t in trials if t["episodes"] == most), key=lambda trial: trial["score"])
    policy = load_policy(tmp_path / "run" / "policy")
    assert (policy.default_act, policy.act_temperature) == (best["act"], best["act_temperature"])
    assert (result["act"], result["episodes"]) == (best["act"], 2)


def test_selection_without_an_environment_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="--select plays episodes and needs an environment"):
        run(small(dataset, select=8, env="none"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
