"""ALOHA's recordings: an HDF5 file for each episode, or a group for each in one file."""

import h5py
import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, load_dataset

LENGTHS = {"episode_0": 5, "episode_2": 3, "episode_10": 4}


def record(group, steps, offset):
    """One episode whose first position is its offset."""
    states = offset + np.arange(steps * 3, dtype=np.float64).reshape(-1, 3)
    group["action"] = np.sin(states[:, :2])
    group["observations/qpos"], group["observations/qvel"] = states, -states
    group["observations/images/cam_high"] = np.zeros((steps, 50), np.uint8)  # compressed
    group.attrs["sim"] = False


def write(path):
    """A folder with a file for each episode."""
    path.mkdir()
    for place, (name, steps) in enumerate(LENGTHS.items()):
        with h5py.File(path / f"{name}.hdf5", "w") as file:
            record(file, steps, 100 * place)
    return path


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "aloha")


def test_a_folder_is_a_data_set_and_each_file_an_episode(folder):
    (folder / "._episode_0.hdf5").write_bytes(b"\x00\x05\x16\x07")
    log = load_dataset(str(folder))
    assert log.provenance["format"] == "aloha"
    # The last step of each has no successor.
    assert log.episode_lengths.tolist() == [steps - 1 for steps in LENGTHS.values()]
    assert log.observations[log.episode_starts][:, 0].tolist() == [0, 100, 200]
    np.testing.assert_array_equal(log.next_observations[0], log.observations[1])
    assert not log.terminated.any()
    assert not log.has_rewards
    assert log.cameras == ("cam_high",)
    assert "Observations are qpos (also there: qvel; --dataset.keys)." in log.notes


def test_other_parts_of_an_observation_are_chosen(folder):
    log = load_dataset(str(folder), options=ReadOptions(keys=("qvel", "qpos")))
    assert log.observation_keys == (("qvel", 3), ("qpos", 3))
    np.testing.assert_array_equal(log.observations[1], [-3, -4, -5, 3, 4, 5])


def test_one_file_is_one_episode(folder):
    assert load_dataset(str(folder / "episode_0.hdf5")).episode_lengths.tolist() == [4]


@pytest.mark.parametrize("name", ["log.hdf5", "log"])
def test_a_group_for_each_episode_is_read_in_the_order_of_numbers(tmp_path, folder, name):
    with h5py.File(tmp_path / name, "w") as file:
        for place, (episode, steps) in enumerate(LENGTHS.items()):
            record(file.create_group(episode), steps, 100 * place)
    grouped, separate = load_dataset(str(tmp_path / name)), load_dataset(str(folder))
    np.testing.assert_array_equal(grouped.observations, separate.observations)
    np.testing.assert_array_equal(grouped.actions, separate.actions)


def test_plain_vectors_rewards_and_a_final_observation_are_read(tmp_path):
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for episode, steps in LENGTHS.items():
            states = np.arange((steps + 1) * 2, dtype=np.float32).reshape(-1, 2)
            file[f"{episode}/observations"], file[f"{episode}/actions"] = states, states[:-1]
            file[f"{episode}/reward"] = np.ones(steps)
    log = load_dataset(str(tmp_path / "log.hdf5"))
    assert log.episode_lengths.tolist() == list(LENGTHS.values())
    assert log.episode_returns.tolist() == list(LENGTHS.values())
    np.testing.assert_array_equal(log.next_observations[4], [10, 11])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__delitem__("action"), "episode_2.hdf5: the file lacks action"),
        (lambda f: f.__delitem__("observations"), "lacks observations; .*name another format"),
        (lambda f: replaced(f, "action", np.zeros((7, 2))), "has 3 rows and action has 7"),
        (lambda f: replaced(f, "action", np.zeros((3, 1))), "actions has different widths"),
        (lambda f: replaced(f, "observations/qpos", np.zeros((3, 1))), r"observes qpos \(1\) and"),
        (lambda f: f.__setitem__("reward", np.zeros(3)), "rewards is in only one of"),
    ],
)
def test_a_broken_episode_is_refused(folder, change, message):
    with h5py.File(folder / "episode_2.hdf5", "a") as file:
        change(file)
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(str(folder))
    assert "\n" not in str(error.value)


def replaced(file, key, array):
    del file[key]
    file[key] = array


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no \.hdf5 or \.h5 file in this folder"):
        load_dataset(f"aloha:{tmp_path}")
