"""robomimic's HDF5: keys, masks, dones, environment."""

import json

import h5py
import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, load_dataset
from saqrl.datasets.formats.hdf5 import Record, values_of
from saqrl.datasets.formats.robomimic import recorded_model
from saqrl.environments.robomimic_keys import default_keys

ENV_ARGS = {
    "env_name": "TwoArmLift",
    "type": 1,
    "env_kwargs": {"robots": ["Panda", "Panda"], "camera_names": "x", "has_renderer": False},
}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "low_dim.hdf5")


def write(path, **attributes):
    """demo_0, demo_2 and demo_10, of 4 steps each; the second is not solved."""
    with h5py.File(path, "w", libver=attributes.pop("libver", None)) as file:
        data = file.create_group("data")
        for key, value in {"env_args": json.dumps(ENV_ARGS), **attributes}.items():
            data.attrs[key] = value
        for number, name in enumerate(["demo_0", "demo_10", "demo_2"]):
            solved = name != "demo_2"
            demo = data.create_group(name)
            demo["actions"] = np.full((4, 7), number / 10)
            demo["rewards"] = np.array([0, 0, solved, solved], float)
            demo["dones"] = np.array([0, 0, solved, 1])
            for place, shift in (("obs", 0), ("next_obs", 1)):
                for column, key in enumerate(
                    ["object", "robot1_eef_pos", "robot0_eef_pos", "robot0_eef_quat", "image"]
                ):
                    shape = (4, 8, 8, 3) if key == "image" else (4, 2)
                    demo[f"{place}/{key}"] = np.full(shape, column + shift, np.float32)
        file["mask/train"] = np.array([b"demo_10", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_2"])
    return path


def test_both_arms_and_the_object_are_observed(path):
    log = load_dataset(str(path))
    keys = [("robot0_eef_pos", 2), ("robot0_eef_quat", 2), ("robot1_eef_pos", 2), ("object", 2)]
    assert log.observation_keys == tuple(keys)
    np.testing.assert_array_equal(log.observations[0], [2, 2, 3, 3, 1, 1, 0, 0])
    np.testing.assert_array_equal(log.next_observations, log.observations + 1)


def test_demonstrations_come_in_the_order_of_their_numbers(path):
    log = load_dataset(str(path))
    np.testing.assert_allclose(log.actions[::4, 0], [0, 0.2, 0.1])


def test_only_a_solved_last_row_terminates(path):
    log = load_dataset(str(path))
    assert np.flatnonzero(log.terminated).tolist() == [3, 11]
    assert log.episode_returns.tolist() == [2, 0, 2]
    assert "dones is also set on 2 earlier rows" in " ".join(log.provenance["notes"])


def test_keys_are_chosen_in_order(path):
    log = load_dataset(str(path), options=ReadOptions(keys=("object", "robot1_eef_pos")))
    np.testing.assert_array_equal(log.observations[0], [0, 0, 1, 1])
    assert log.environment.options["observation_keys"] == ["object", "robot1_eef_pos"]


@pytest.mark.parametrize(
    ("key", "message"),
    [("objekt", r"objekt is missing \(did you mean object"), ("image", "image holds images")],
)
def test_a_key_that_cannot_be_read_is_named(path, key, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(path), options=ReadOptions(keys=(key,)))


def test_a_mask_chooses_and_its_partner_is_held_out(path):
    log = load_dataset(str(path), options=ReadOptions(mask="train"))
    assert (log.num_episodes, log.held_out.num_episodes) == (2, 1)
    with pytest.raises(DatasetError, match=r"no mask trian \(did you mean train\?\)"):
        load_dataset(str(path), options=ReadOptions(mask="trian"))


def test_held_out_actions_are_scaled_as_those_trained_on(path):
    with h5py.File(path, "r+") as file:
        file["data/demo_2/actions"][:] = 3
    log = load_dataset(str(path), options=ReadOptions(mask="train"))
    assert log.held_out.actions.max() == 3
    assert log.held_out.action_range is log.action_range


@pytest.fixture
def recorded(path):
    """States of five numbers in every demonstration; one scene for two of them."""
    with h5py.File(path, "r+") as file:
        for number, name in enumerate(["demo_0", "demo_2", "demo_10"]):
            demo = file["data"][name]
            demo["states"] = np.full((4, 5), number, float) + 0.1 * np.arange(4)[:, None]
            demo.attrs["model_md5"] = "ab" if number < 2 else "cd"
        file["data/demo_0"].attrs["model_file"] = "<mujoco model='one'/>" + " " * 100_000
        file["data/demo_10"].attrs["model_file"] = "<mujoco model='other'/>"
    return path


def test_the_simulators_first_states_stay_with_their_episodes(recorded):
    log = load_dataset(str(recorded))
    assert [start.state.tolist() for start in log.starts] == [[n] * 5 for n in range(3)]
    chosen = log.select_episodes(np.array([2, 0]))
    assert [start.episode for start in chosen.starts] == ["demo_10", "demo_0"]
    assert log.select_rows(np.arange(4), np.array([0])).starts is None
    mixed = load_dataset(f"{recorded} + 2*{recorded}")
    names = ["demo_0", "demo_2", "demo_10"]
    assert [start.episode for start in mixed.starts] == names + [n for _ in range(2) for n in names]
    split = load_dataset(str(recorded), options=ReadOptions(mask="train"))
    assert [start.episode for start in split.starts] == ["demo_0", "demo_10"]
    assert [start.episode for start in split.held_out.starts] == ["demo_2"]


def test_a_scene_is_found_with_the_demonstration_or_with_its_equal(recorded):
    models = [recorded_model(start).strip() for start in load_dataset(str(recorded)).starts]
    one, other = "<mujoco model='one'/>", "<mujoco model='other'/>"
    assert models == [one, one, other]
    with h5py.File(recorded, "r+") as file:
        del file["data/demo_10"].attrs["model_file"]
    assert recorded_model(load_dataset(str(recorded)).starts[2]) is None


@pytest.mark.parametrize("states", [None, np.zeros(4), np.zeros((0, 5)), np.array([b"x"] * 4)])
def test_missing_or_odd_states_cost_replays_not_the_data(recorded, states):
    with h5py.File(recorded, "r+") as file:
        del file["data/demo_2/states"]
        if states is not None:
            file["data/demo_2/states"] = states
    log = load_dataset(str(recorded))
    assert (len(log), log.starts) == (12, None)


@pytest.mark.parametrize("libver", [None, "earliest", "latest"])
def test_the_environment_is_made_from_the_record(tmp_path, libver):
    many = {f"note_{i}": "x" * 50 for i in range(5)}
    log = load_dataset(str(write(tmp_path / "log.hdf5", libver=libver, **many)))
    assert log.environment.id == "robosuite/TwoArmLift"
    assert log.environment.options["robots"] == ["Panda", "Panda"]
    assert "camera_names" not in log.environment.options


@pytest.mark.parametrize("place", [8, 16, 24, 25])
def test_a_damaged_string_heap_neither_hangs_nor_crashes(path, place):
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + place : heap + place + 7] = b"\xff" * 7
    path.write_bytes(content)
    log = load_dataset(str(path))
    assert len(log) == 12
    assert log.environment is None or log.environment.id == "robosuite/TwoArmLift"


def test_attributes_of_any_kind_are_read(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        group = file.create_group("g")
        group.attrs["text"], group.attrs["fixed"] = "Höhe", np.bytes_(b"fixed")
        group.attrs["number"], group.attrs["array"] = 3, np.arange(3)
        group.attrs["flag"] = True
    with h5py.File(tmp_path / "a.hdf5") as file:
        names = ("text", "fixed", "number", "array", "none")
        values = values_of([Record(file["g"], name, is_attribute=True) for name in names])
    assert values == ["Höhe", "fixed", 3.0, None, None]


def test_default_keys_know_two_arms_of_one_robot():
    names = ["robot0_right_eef_pos", "robot0_left_eef_pos", "Can_to_robot0_eef_pos", "object"]
    chosen = ("robot0_left_eef_pos", "robot0_right_eef_pos", "object")
    assert default_keys(names) == chosen
    assert default_keys(["b", "a10", "a2"]) == ("a2", "a10", "b")


def test_a_demonstration_that_differs_is_named(path):
    with h5py.File(path, "a") as file:
        del file["data/demo_2/rewards"]
    with pytest.raises(DatasetError, match="rewards is in only one of data/demo_2 and data/demo_0"):
        load_dataset(str(path))


@pytest.mark.parametrize("task", ["lift", "can"])
def test_the_real_files_are_read(shared_file, task):
    log = load_dataset(str(shared_file(f"robomimic/{task}/ph-scripted/low_dim.hdf5")))
    assert (log.num_episodes, log.terminated.sum()) == (200, 200)
    assert log.environment.id == {"lift": "robosuite/Lift", "can": "robosuite/PickPlaceCan"}[task]


def isaac(path, *, solved=(True, False), nested=True):
    """As Isaac Lab's recorder writes: no env_kwargs, no rewards or dones, an attribute success."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Lift-v0", "type": 2})
        for number, success in enumerate(solved):
            demo = data.create_group(f"demo_{number}")
            if success is not None:
                demo.attrs["success"] = success
            demo["actions"] = np.full((3 + number, 2), 0.5, np.float32)
            rows = np.arange((3 + number) * 3, dtype=np.float32).reshape(-1, 3)
            demo["obs/eef_pos"], demo["obs/gripper"] = rows, rows[:, 0]
            if nested:
                demo["obs/datagen_info/object_pose/cube"] = np.zeros((3 + number, 4, 4))
                demo["obs/datagen_info/signal"] = rows[:, 2] * 10
                demo["obs/mission"] = np.array([b"go"] * (3 + number))
    return path


def test_isaac_lab_s_recordings_are_read(tmp_path):
    path = isaac(tmp_path / "dataset.hdf5", nested=False)
    log = load_dataset(str(path))
    assert log.observation_keys == (("eef_pos", 3), ("gripper", 1))
    assert log.environment.id == "Isaac-Lift-v0"
    assert log.environment.options == {}
    assert np.flatnonzero(log.terminated).tolist() == [2]
    assert log.episode_lengths.tolist() == [3, 3]  # the last step of the second has no successor


def test_what_is_not_chosen_is_not_looked_at(tmp_path):
    path = isaac(tmp_path / "dataset.hdf5")
    options = ReadOptions(keys=("datagen_info/signal", "eef_pos"))
    log = load_dataset(str(path), options=options)
    assert log.observation_keys == (("datagen_info/signal", 1), ("eef_pos", 3))
    np.testing.assert_array_equal(log.observations[1], [50, 3, 4, 5])
    assert load_dataset(str(path)).observation_keys == (("eef_pos", 3), ("gripper", 1))
    with pytest.raises(DatasetError, match="mission holds images or text"):
        load_dataset(str(path), options=ReadOptions(keys=("mission",)))
    with pytest.raises(DatasetError, match="datagen_info/object_pose/cube holds images"):
        load_dataset(
            str(path), options=ReadOptions(keys=("datagen_info/object_pose/cube", "eef_pos"))
        )


@pytest.mark.parametrize(
    ("dones", "rewards", "ends"),
    [
        ([1, 1, 1], 1.0, []),  # every one ends done: a recorder's habit, whatever it pays
        ([1, 0, 1], 1.0, [3, 11]),
        ([1, 0, 1], -1.0, [3, 11]),
    ],
)
def test_success_is_not_guessed_from_a_done_that_pays(tmp_path, dones, rewards, ends):
    path = write(tmp_path / "gym.hdf5", env_args=json.dumps({"env_name": "Hopper-v4", "type": 2}))
    with h5py.File(path, "a") as file:
        for name, done in zip(("demo_0", "demo_2", "demo_10"), dones, strict=True):
            del file[f"data/{name}/dones"], file[f"data/{name}/rewards"]
            file[f"data/{name}/dones"] = np.array([0, 0, 0, done])
            file[f"data/{name}/rewards"] = np.full(4, rewards)
    log = load_dataset(str(path))
    assert np.flatnonzero(log.terminated).tolist() == ends
    guessed = any("does not say which demonstrations solve the task" in note for note in log.notes)
    assert guessed == (not ends)


def test_what_a_recording_knows_beside_its_numbers_is_kept(path):
    arm = {"control_freq": 50, "controller_configs": {"type": "OSC_POSE"}}
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({**ENV_ARGS, "env_kwargs": arm})
        file["data/demo_0"].attrs["ep_meta"] = json.dumps({"lang": "lift the pot"})
        file["data/demo_2"].attrs["ep_meta"] = "damaged"
    log = load_dataset(str(path))
    assert log.action_names == ("x", "y", "z", "rx", "ry", "rz", "gripper")
    assert (log.cameras, log.tasks, log.control_rate) == (("image",), ("lift the pot",), 50)
    assert log.successes.tolist() == [True, False, True]
    two_arms = load_dataset(str(write(path.with_name("two.hdf5"))))
    assert two_arms.action_names == ()


def test_isaac_lab_s_success_and_rate_are_kept(tmp_path):
    path = isaac(tmp_path / "recorded.hdf5")
    with h5py.File(path, "a") as file:
        simulated = {"dt": 0.01, "decimation": 2}
        args = {"env_name": "Isaac-Lift-v0", "type": 2, "sim_args": simulated}
        file["data"].attrs["env_args"] = json.dumps(args)
    log = load_dataset(str(path))
    assert (log.successes.tolist(), log.control_rate) == ([True, False], 50)
