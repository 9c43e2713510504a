"""Minari's folders, read without the package."""

import json

import h5py
import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, load_dataset

SPEC = {"id": "Maze-v3", "kwargs": {"size": 2}, "max_episode_steps": 300}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two episodes of dictionaries: 3 steps terminated, 2 steps without any flag."""
    data = tmp_path / "own" / "maze-v0" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, steps in enumerate([3, 2]):
            group = file.create_group(f"episode_{number}")
            group["observations/observation"] = np.arange(2.0 * (steps + 1)).reshape(-1, 2)
            group["observations/goal/xy"] = np.full((steps + 1, 1), 7.0)
            group["actions"] = np.full((steps, 2), 0.5, np.float32)
            group["rewards"] = np.arange(float(steps))
            group["terminations"] = np.arange(steps) == (2 if number == 0 else 9)
            group["truncations"] = np.zeros(steps, bool)
    box = {"type": "Box", "low": [-2, -1], "high": [2, 1]}
    metadata = {"total_episodes": 2, "env_spec": json.dumps(SPEC), "action_space": json.dumps(box)}
    (data / "metadata.json").write_text(json.dumps(metadata))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return data.parent


def change(folder, **changes):
    file = folder / "data" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", ["", "data", "data/main_data.hdf5"])
def test_a_folder_its_data_and_its_main_file_are_one_data_set(folder, name):
    log = load_dataset(str(folder / name))
    assert (log.provenance["format"], len(log)) == ("minari", 5)


def test_an_id_is_looked_up_below_the_datasets_path(folder):
    assert len(load_dataset("minari:own/maze-v0")) == 5


def test_dictionaries_are_flattened_in_alphabetical_order(folder):
    log = load_dataset(str(folder))
    assert log.observation_keys == (("goal/xy", 1), ("observation", 2))
    np.testing.assert_array_equal(log.observations[1], [7, 2, 3])
    chosen = load_dataset(str(folder), options=ReadOptions(keys=("observation",)))
    np.testing.assert_array_equal(chosen.observations[1], [2, 3])
    assert chosen.environment.options["observation_keys"] == ["observation"]


def test_the_final_observation_is_the_true_successor(folder):
    log = load_dataset(str(folder))
    np.testing.assert_array_equal(log.next_observations[2], [7, 6, 7])
    np.testing.assert_array_equal(log.next_observations[4], [7, 4, 5])
    assert log.episode_lengths.tolist() == [3, 2]
    assert log.terminated.tolist() == [False, False, True, False, False]


def test_range_and_environment_are_the_metadata_s(folder):
    log = load_dataset(str(folder))
    assert (log.action_range.low.tolist(), log.action_range.high.tolist()) == ([-2, -1], [2, 1])
    assert log.environment.id == "Maze-v3"
    assert log.environment.options == {"max_episode_steps": 300}
    assert any("may not set, or not to this value: size" in note for note in log.notes)


def test_an_incomplete_copy_is_refused(folder):
    change(folder, total_episodes=3)
    with pytest.raises(DatasetError, match=r"promises 3 episodes and main_data.hdf5 holds 2"):
        load_dataset(str(folder))
    (folder / "data" / "metadata.json").unlink()
    with pytest.raises(DatasetError, match=r"metadata.json is missing; copy the whole folder"):
        load_dataset(str(folder))


def test_observations_without_the_final_one_are_refused(folder):
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for key in ("observation", "goal/xy"):
            values = file[f"episode_1/observations/{key}"][:2]
            del file[f"episode_1/observations/{key}"]
            file[f"episode_1/observations/{key}"] = values
    with pytest.raises(DatasetError, match="episode_1/observations has 2 rows and its actions 2"):
        load_dataset(str(folder))


def test_a_download_that_fails_is_one_line(folder, monkeypatch):
    minari = pytest.importorskip("minari")

    def fail(name):
        raise OSError("no route to host")

    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(
        DatasetError, match=r"own/maze-v1: not below .* \(did you mean own/maze-v0\?\), .*no route"
    ):
        load_dataset("minari:own/maze-v1")


def test_door_human_is_the_same_through_d4rl_and_minari(shared_file):
    ours = load_dataset(str(shared_file("minari/adroit/door/human-v0")))
    theirs = load_dataset(str(shared_file("d4rl/door-human.hdf5")))
    # D4RL has no observation after the last action of an episode, so that one row is dropped.
    common = np.ones(len(ours), bool)
    common[ours.episode_ends - 1] = False
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        np.testing.assert_array_equal(getattr(ours, name)[common], getattr(theirs, name))
    assert ours.environment.id == theirs.environment.id


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        ({"type": "Discrete", "dtype": "int64", "start": 0, "n": 4}, r"Discrete\(4\)"),
        ({"type": "MultiDiscrete", "nvec": [2, 3]}, "MultiDiscrete"),
        ({"type": "Tuple", "subspaces": []}, "Tuple"),
    ],
)
def test_other_actions_than_continuous_ones_are_refused(folder, space, shown):
    change(folder, action_space=json.dumps(space))
    with pytest.raises(DatasetError, match=rf"action_space is {shown}; only continuous actions"):
        load_dataset(str(folder))


def test_parts_of_a_tuple_come_in_their_order(folder):
    import gymnasium

    from saqrl.environments.families import REGISTERED
    from saqrl.environments.flat import FlatEnvironment

    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for name, steps in (("episode_0", 3), ("episode_1", 2)):
            del file[f"{name}/observations"]
            for place in range(12):
                rows = np.full((steps + 1, 1), float(place))
                file[f"{name}/observations/_index_{place}"] = rows
    log = load_dataset(str(folder))
    np.testing.assert_array_equal(log.observations[0], np.arange(12))

    class Twelve(gymnasium.Env):
        observation_space = gymnasium.spaces.Tuple([gymnasium.spaces.Box(0, 20, (1,))] * 12)
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

        def reset(self, *, seed=None, options=None):
            return tuple(np.array([place], np.float32) for place in range(12)), {}

    environment = FlatEnvironment(Twelve(), REGISTERED)
    assert environment.layout == log.observation_keys
    np.testing.assert_array_equal(environment.reset()[0], log.observations[0])


def test_text_stands_in_the_way_only_where_it_is_chosen(folder):
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for name, steps in (("episode_0", 3), ("episode_1", 2)):
            words = ["go"] * (steps + 1)
            file[f"{name}/observations"].create_dataset(
                "mission", data=words, dtype=h5py.string_dtype()
            )
    with pytest.raises(
        DatasetError, match=r"mission holds text, not numbers; choose other keys with"
    ):
        load_dataset(str(folder))
    log = load_dataset(str(folder), options=ReadOptions(keys=("observation",)))
    assert log.observations.shape == (5, 2)
