"""OGBench's npz: compact and regular, with and without a task."""

import importlib.util

import numpy as np
import pytest

from saqrl.datasets import DatasetError, load_dataset

needs_ogbench = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None, reason="not installed: ogbench"
)


@pytest.fixture
def walk():
    """Two trajectories of 5 and 4 observations, as the benchmark stores them."""
    draw, ends = np.random.default_rng(0), np.zeros(9, bool)
    ends[[4, 8]] = True
    return {
        "observations": draw.normal(size=(9, 3)).astype(np.float32),
        "actions": draw.uniform(-1, 1, (9, 2)).astype(np.float32),
        "terminals": ends,
        "qpos": draw.normal(size=(9, 21)).astype(np.float32),
    }


@pytest.fixture
def path(tmp_path, walk):
    np.savez(tmp_path / "cube-single-play-v0.npz", **walk)
    return tmp_path / "cube-single-play-v0.npz"


def test_the_last_observation_of_a_trajectory_has_no_action(path, walk):
    log = load_dataset(str(path))
    assert log.provenance["format"] == "ogbench"
    assert log.episode_lengths.tolist() == [4, 3]
    assert not log.terminated.any()
    rows = [0, 1, 2, 3, 5, 6, 7]
    np.testing.assert_array_equal(log.observations, walk["observations"][rows])
    np.testing.assert_array_equal(log.next_observations, walk["observations"][np.add(rows, 1)])
    assert not log.has_rewards
    assert "--env cube-single-singletask-task1-v0" in " ".join(log.provenance["notes"])


def test_a_regular_file_is_the_same_log(path, walk, tmp_path):
    compact = load_dataset(str(path))
    ends = np.array([0, 0, 0, 1, 0, 0, 1])
    np.savez(
        tmp_path / "regular.npz",
        observations=compact.observations,
        next_observations=compact.next_observations,
        actions=compact.actions,
        terminals=ends,
        rewards=-np.ones(7, np.float32),
        masks=np.array([1, 1, 0, 1, 1, 1, 1], np.float32),
    )
    log = load_dataset(f"ogbench:{tmp_path / 'regular.npz'}")
    np.testing.assert_array_equal(log.next_observations, compact.next_observations)
    assert np.flatnonzero(log.terminated).tolist() == [2]
    assert log.episode_lengths.tolist() == [3, 1, 3]
    assert log.rewards.sum() == -7


def test_the_validation_file_is_the_held_out_split(path, walk):
    np.savez(path.with_name("cube-single-play-v0-val.npz"), **walk)
    log = load_dataset(str(path))
    assert len(log.held_out) == 7
    assert load_dataset(str(path.with_name("cube-single-play-v0-val.npz"))).held_out is None


def test_states_of_the_simulator_begin_every_episode(path, walk, tmp_path):
    assert load_dataset(str(path)).starts is None  # without velocities there is no state
    velocities = np.random.default_rng(1).normal(size=(9, 20)).astype(np.float32)
    masks = np.ones(9, np.float32)
    masks[6] = 0  # solved inside the second trajectory: another episode begins behind it
    np.savez(tmp_path / "cube-single-play-v1.npz", **walk, qvel=velocities, masks=masks)
    log = load_dataset(str(tmp_path / "cube-single-play-v1.npz"))
    states = np.hstack([walk["qpos"], velocities])
    assert log.episode_starts.tolist() == [0, 4, 6]
    found = np.stack([start.state for start in log.starts])
    np.testing.assert_array_equal(found, states[[0, 5, 7]])


def test_held_out_actions_are_scaled_as_those_trained_on(path, walk):
    wider = {**walk, "actions": 3 * walk["actions"]}
    np.savez(path.with_name("cube-single-play-v0-val.npz"), **wider)
    log = load_dataset(str(path))
    assert np.abs(log.held_out.actions).max() > 1
    assert log.held_out.action_range is log.action_range


@needs_ogbench
@pytest.mark.parametrize("kind", ["", "play-"])
def test_rewards_are_the_ones_that_ogbench_makes(path, walk, kind):
    import gymnasium
    import ogbench  # noqa: F401
    from ogbench.relabel_utils import relabel_dataset

    from saqrl.environments.packages import quiet

    task = "cube-single-singletask-task2-v0"
    with quiet():
        environment = gymnasium.make(task, disable_env_checker=True)
        environment.reset()
        walk["qpos"][2, 14:17] = environment.unwrapped._data.mocap_pos[0]
        expected = {"qpos": walk["qpos"][[0, 1, 2, 3, 5, 6, 7]]}
        relabel_dataset(task, environment, expected)
        environment.close()
    np.savez(path, **walk)
    log = load_dataset(str(path), environment=f"cube-single-{kind}singletask-task2-v0")
    np.testing.assert_array_equal(log.rewards, expected["rewards"])
    np.testing.assert_array_equal(log.terminated, expected["masks"] == 0)
    assert log.terminated.tolist() == [False, False, True, False, False, False, False]
    assert log.environment.id == task
    assert log.provenance["success_timing"] == "pre"


@needs_ogbench
def test_rewards_that_cannot_be_made_are_said_clearly(path, walk):
    with pytest.raises(DatasetError, match=r"ogbench has no task cube-single-singletask-task9-v0"):
        load_dataset(str(path), environment="cube-single-singletask-task9-v0")
    del walk["qpos"]
    np.savez(path, **walk)
    with pytest.raises(DatasetError, match=r"computed from qpos, and qpos is not in the file"):
        load_dataset(str(path), environment="cube-single-singletask-task2-v0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminals": np.arange(9)}, "expected 0 or 1 per row"),
        ({"terminals": np.ones(9)}, "so no step is left"),
        ({"qpos": np.zeros((5, 21))}, r"qpos has shape \(5, 21\) and actions has 9 rows"),
    ],
)
def test_a_damaged_file_is_refused(path, walk, change, message):
    np.savez(path, **walk | change)
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(path))


def test_the_real_files_hold_a_task(shared_file):
    path = shared_file("ogbench/cube-single-play-v0-val.npz")
    pytest.importorskip("ogbench")
    log = load_dataset(str(path), environment="cube-single-singletask-task2-v0")
    assert (len(log), log.terminated.sum()) == (10_000, (log.rewards == 0).sum())
    assert set(np.unique(log.rewards)) == {-1, 0}


@pytest.mark.parametrize(
    "own",
    [
        {"rewards": np.ones(9)},
        {"timeouts": np.zeros(9)},
        {"truncations": np.zeros(9)},
        {"environment_id": np.array("Own-v0")},
        {"episode_id": np.repeat([0, 1], [5, 4])},
    ],
)
@pytest.mark.parametrize("name", ["mine.npz", "kitchen-play-v0.npz"])
def test_what_contradicts_the_benchmark_makes_a_file_plain(tmp_path, walk, own, name):
    np.savez(tmp_path / name, **walk | own)
    log = load_dataset(str(tmp_path / name))
    assert log.provenance["format"] == "npz"
    assert np.flatnonzero(log.terminated).tolist() == [4, 8]


def test_a_guess_is_said(path, tmp_path, walk):
    assert not any("Read as an OGBench file" in note for note in load_dataset(str(path)).notes)
    np.savez(tmp_path / "mine.npz", **walk)
    log = load_dataset(str(tmp_path / "mine.npz"))
    assert any("pass npz:mine.npz" in note for note in log.notes)
    assert load_dataset(f"npz:{tmp_path / 'mine.npz'}").terminated.sum() == 2
