"""ManiSkill's recordings: whole trajectories, one observation more than actions, nested states."""

import json

import h5py
import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, load_dataset

LENGTHS = [5, 3, 4]


def write(path, *, nested):
    """traj_0, traj_2 and traj_10; the first two end solved, the first from its fourth row on."""
    draw = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, steps in zip(["traj_0", "traj_2", "traj_10"], LENGTHS, strict=True):
            group = file.create_group(name)
            group["actions"] = draw.uniform(-1, 1, (steps, 2)).astype(np.float32)
            group["rewards"] = np.arange(steps, dtype=np.float32)
            terminated = np.zeros(steps, bool)
            if name != "traj_10":
                terminated[-1] = True
            if name == "traj_0":
                terminated[-2] = True
            group["terminated"], group["truncated"] = terminated, ~terminated
            state = np.arange((steps + 1) * 3, dtype=np.float32).reshape(-1, 3)
            if not nested:
                group["obs"] = state
                continue
            group["obs/agent/qpos"], group["obs/agent/qvel"] = state, -state[:, :2]
            group["obs/extra/is_grasped"] = np.zeros(steps + 1, bool)
            group["obs/sensor_data/camera/rgb"] = np.zeros((steps + 1, 4, 4, 3), np.uint8)
            group["env_states/articulations/panda"] = np.zeros((steps + 1, 7))
    return path


def test_a_trajectory_is_one_episode_with_true_successors(tmp_path):
    log = load_dataset(str(write(tmp_path / "trajectory.h5", nested=False)))
    assert log.provenance["format"] == "maniskill"
    assert log.episode_lengths.tolist() == LENGTHS
    assert np.flatnonzero(log.terminated).tolist() == [4, 7]
    np.testing.assert_array_equal(log.observations[1], [3, 4, 5])
    np.testing.assert_array_equal(log.next_observations[4], [15, 16, 17])
    assert log.rewards[4] == 4
    assert any("also set on 1 earlier row" in note for note in log.notes)


def test_states_are_observed_and_images_left_out(tmp_path):
    path = write(tmp_path / "trajectory.h5", nested=True)
    log = load_dataset(str(path))
    keys = (("agent/qpos", 3), ("agent/qvel", 2), ("extra/is_grasped", 1))
    assert log.observation_keys == keys
    chosen = load_dataset(str(path), options=ReadOptions(keys=("agent/qvel",)))
    np.testing.assert_array_equal(chosen.observations[1], [-3, -4])
    with pytest.raises(DatasetError, match=r"images and stacked frames .* choose other keys"):
        load_dataset(str(path), options=ReadOptions(keys=("sensor_data/camera/rgb",)))


def test_the_environment_is_told_and_not_imported(tmp_path):
    path = write(tmp_path / "trajectory.h5", nested=False)
    record = {"env_info": {"env_id": "PickCube-v1", "env_kwargs": {"obs_mode": "state"}}}
    (tmp_path / "trajectory.json").write_text(json.dumps(record))
    log = load_dataset(str(path))
    assert log.environment is None
    assert any("--env mani_skill.envs:PickCube-v1" in note for note in log.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__delitem__("traj_2/obs"), "lacks obs; .*replay_trajectory -o state`"),
        (lambda f: f.__delitem__("traj_2/actions"), "traj_2 lacks actions"),
        (lambda f: shortened(f, "traj_2/obs"), "expected one row more"),
        (lambda f: shortened(f, "traj_0/terminated"), "every field needs one row per step"),
    ],
)
def test_a_broken_recording_is_refused(tmp_path, change, message):
    path = write(tmp_path / "trajectory.h5", nested=False)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"maniskill:{path}")


def shortened(file, key):
    short = file[key][:-1]
    del file[key]
    file[key] = short


def test_another_layout_is_no_trajectory(tmp_path):
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(DatasetError, match="no group traj_0, traj_1"):
        load_dataset(f"maniskill:{tmp_path / 'log.h5'}")


def test_success_cameras_and_rate_are_known_where_they_are_recorded(tmp_path):
    path = write(tmp_path / "trajectory.h5", nested=True)
    assert load_dataset(str(path)).successes is None
    with h5py.File(path, "a") as file:
        for name, steps in zip(["traj_0", "traj_2", "traj_10"], LENGTHS, strict=True):
            file[f"{name}/success"] = np.arange(steps) == (1 if name == "traj_2" else -1)
    kwargs = {"sim_config": {"control_freq": 20}}
    record = {"env_info": {"env_id": "PickCube-v1", "env_kwargs": kwargs}}
    path.with_suffix(".json").write_text(json.dumps(record))
    log = load_dataset(str(path))
    assert log.successes.tolist() == [False, True, False]
    assert (log.cameras, log.control_rate) == (("camera",), 20)
