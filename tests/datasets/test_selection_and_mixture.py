"""Which episodes count, how often, and what they are rewarded with."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, best_episodes, load_dataset
from saqrl.datasets.mixture import mixed
from saqrl.datasets.split import split_episodes
from saqrl.datasets.transitions import RecordedStart
from tests.datasets.files import small_log


@pytest.fixture
def spec(tmp_path):
    small_log(tmp_path)
    return f"npz:{tmp_path / 'small.npz'}"


def read(spec, **options):
    return load_dataset(spec, options=ReadOptions(**options))


def test_success_at_the_end_rewards_and_ends_every_episode(spec):
    log = read(spec, rewards="success-at-end")
    assert log.rewards.tolist() == log.terminated.astype(float).tolist()
    assert np.flatnonzero(log.terminated).tolist() == [5, 6, 15]
    assert log.provenance["rewards"] == "success-at-end"


def test_rewards_can_be_left_out(spec):
    log = read(spec, rewards="none")
    assert not log.has_rewards
    assert not log.rewards.any()


def test_episodes_are_chosen_by_return_and_by_highest_reward(spec):
    whole = read(spec)
    returns = whole.episode_returns
    log = read(spec, min_return=float(np.sort(returns)[1]))
    assert sorted(log.episode_returns) == pytest.approx(sorted(returns)[1:])
    highest = np.maximum.reduceat(whole.rewards, whole.episode_starts)
    assert read(spec, min_reward=float(highest.max())).num_episodes == 1
    with pytest.raises(DatasetError, match=r"no episode passes dataset.min_reward 99; the highest"):
        read(spec, min_reward=99)


@pytest.mark.parametrize(("share", "kept"), [(1.0, 3), (0.67, 2), (0.4, 1), (0.01, 1)])
def test_the_best_share_is_of_the_highest_returns(spec, share, kept):
    whole = read(spec)
    log = load_dataset(spec, best=share)
    assert sorted(log.episode_returns) == sorted(whole.episode_returns)[-kept:]
    assert ("are kept: the best" in " ".join(log.notes)) == (kept < 3)


def test_episodes_as_good_as_the_worst_of_the_best_stay(spec):
    log = read(spec, rewards="success-at-end")  # all have a return of 1
    assert best_episodes(spec, log, 0.01).num_episodes == 3
    with pytest.raises(DatasetError, match="data-best needs rewards, and the data have none"):
        best_episodes(spec, read(spec, rewards="none"), 0.5)


@pytest.mark.parametrize("share", [0, -1, 1.5, 10, float("nan")])
def test_a_share_that_is_none_is_refused(spec, share):
    with pytest.raises(DatasetError, match="it must be above 0 and at most 1"):
        load_dataset(spec, best=share)


def test_the_files_own_held_out_episodes_have_to_be_as_good(spec):
    log = read(spec)
    log = log.with_held_out(log.select_episodes(np.arange(3)), "held out too")
    best = best_episodes(spec, log, 0.4)
    assert best.held_out is not None
    assert best.held_out.episode_returns.tolist() == [log.episode_returns.max()]
    poor = log.select_episodes(np.argsort(log.episode_returns)[:1])
    assert best_episodes(spec, replace(log, held_out=poor), 0.4).held_out is None


def test_the_best_are_chosen_from_the_first_and_from_all_parts_of_a_mixture(spec):
    first = load_dataset(spec, episodes=2)
    kept = load_dataset(spec, episodes=2, best=0.5)
    assert kept.episode_returns.tolist() == [first.episode_returns.max()]
    twice = load_dataset(f"{spec} + {spec}", best=0.34)
    assert twice.episode_returns.tolist() == [read(spec).episode_returns.max()] * 2


def test_a_fraction_is_always_the_same(spec):
    one, other = read(spec, fraction=0.6), read(spec, fraction=0.6)
    assert one.num_episodes == 2
    np.testing.assert_array_equal(one.actions, other.actions)
    with pytest.raises(DatasetError, match=r"dataset.fraction is 0; it must be above 0"):
        ReadOptions(fraction=0)


@pytest.mark.parametrize(("option", "value"), [("keys", ("a",)), ("mask", "m"), ("action", "a")])
def test_an_option_that_a_format_does_not_know_is_refused(spec, option, value):
    with pytest.raises(DatasetError, match=f"the format npz does not use dataset.{option}"):
        read(spec, **{option: value})


@pytest.mark.parametrize(("weight", "episodes"), [("", 3), ("2*", 6), ("0.34*", 1), ("1.67*", 5)])
def test_weights_say_how_often_episodes_count(spec, weight, episodes):
    log = load_dataset(f"{spec} + {weight}{spec}")
    assert log.num_episodes == 3 + episodes
    assert log.episode_ends[-1] == len(log)


def test_copies_never_cross_the_split(spec):
    log = load_dataset(f"3*{spec}")
    training, held_out = split_episodes(log, held_out_fraction=0.3, seed=0)
    assert held_out is not None
    assert (training.num_episodes, held_out.num_episodes) == (6, 3)
    assert not set(training.groups.tolist()) & set(held_out.groups.tolist())
    seen = {row.tobytes() for row in training.observations}
    assert not seen & {row.tobytes() for row in held_out.observations}


def test_logs_of_different_robots_do_not_mix(spec, tmp_path):
    other = load_dataset(spec)
    np.savez(
        tmp_path / "other.npz",
        observations=other.observations[:, :2],
        actions=other.actions,
        terminals=other.terminated,
    )
    with pytest.raises(DatasetError, match="observations have 5 columns in part 1 and 2 in part 2"):
        load_dataset(f"{spec} + npz:{tmp_path / 'other.npz'}")


def test_the_range_of_a_mixture_holds_all_of_its_actions(spec, tmp_path):
    other = load_dataset(spec)
    np.savez(
        tmp_path / "other.npz",
        observations=other.observations,
        actions=other.actions * 3,
        rewards=other.rewards,
        terminals=other.terminated,
    )
    log = load_dataset(f"{spec} + npz:{tmp_path / 'other.npz'}")
    assert (log.actions >= log.action_range.low).all()
    assert (log.actions <= log.action_range.high).all()


def test_recorded_starts_follow_their_episodes_into_a_mixture(spec):
    log = read(spec)
    numbers = np.arange(log.num_episodes, dtype=np.float64)
    starts = tuple(RecordedStart(number[None], Path("small.npz")) for number in numbers)
    with_starts = dataclasses.replace(log, starts=starts)
    both = mixed("a;b", [with_starts, with_starts], [1.0, 2.0])
    assert [int(start.state[0]) for start in both.starts] == 3 * list(range(log.num_episodes))
    assert mixed("a;b", [with_starts, log], [1.0, 1.0]).starts is None
