"""LeRobot v2.1 and v3.0."""

import json

import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, load_dataset

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path):
    """v2.1: two episodes of 4 and 3 frames, one file each."""
    write_info(tmp_path, {})
    (tmp_path / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "pick"}\n')
    for episode, frames in enumerate([4, 3]):
        write_episode(tmp_path, episode, frames)
    return tmp_path


def write_info(folder, changes):
    feature = {"dtype": "float32", "shape": [2]}
    info = {
        "codebase_version": "v2.1",
        "fps": 30,
        "total_episodes": 2,
        "total_frames": 7,
        "features": {
            "observation.state": feature,
            "observation.force": feature,
            "action": feature,
            "action.velocity": feature,
            "observation.images.top": {"dtype": "video", "shape": [4, 4, 3]},
        },
    }
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info | changes))


def write_episode(folder, episode, frames, **changes):
    values = (np.arange(2 * frames).reshape(-1, 2) / 10 + episode).astype(np.float32)
    columns = {
        "observation.state": pa.array(values.tolist(), pa.list_(pa.float32())),
        "observation.force": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel() + 5), 2),
        "action": pa.array((values / 4).tolist(), pa.list_(pa.float32())),
        "action.velocity": pa.array((-values / 4).tolist(), pa.list_(pa.float32())),
        "frame_index": np.arange(frames),
        "episode_index": np.full(frames, episode),
    }
    path = folder / "data" / "chunk-000"
    path.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns | changes), path / f"episode_{episode:06d}.parquet")


def test_frames_become_transitions_without_rewards(folder):
    log = load_dataset(str(folder))
    assert log.episode_lengths.tolist() == [3, 2]
    assert not log.has_rewards
    assert not log.terminated.any()
    np.testing.assert_array_equal(log.next_observations[0], log.observations[1])
    assert log.provenance["tasks"] == ["pick"]
    assert "are read as time limits" in " ".join(log.provenance["notes"])


def test_success_at_the_end_keeps_the_last_frame(folder):
    log = load_dataset(str(folder), options=ReadOptions(rewards="success-at-end"))
    assert log.episode_lengths.tolist() == [4, 3]
    assert np.flatnonzero(log.rewards).tolist() == np.flatnonzero(log.terminated).tolist() == [3, 6]


def test_features_are_chosen_by_name(folder):
    keys = ("observation.force", "observation.state")
    log = load_dataset(str(folder), options=ReadOptions(keys=keys, action="action.velocity"))
    assert log.observation_keys == ((keys[0], 2), (keys[1], 2))
    np.testing.assert_allclose(log.observations[0], [5, 5.1, 0, 0.1])
    assert (log.actions <= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ("observation.stat",)}, r"observation.stat is missing \(did you mean obs"),
        ({"keys": ("observation.images.top",)}, "is images or text; numbers are in"),
        ({"action": "actoin"}, r"actoin is missing \(did you mean action"),
    ],
)
def test_a_feature_that_is_not_there_is_named(folder, options, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(folder), options=ReadOptions(**options))


def test_mismatched_files_are_refused(folder):
    write_episode(folder, 1, 3, action=pa.array([[0.0]] * 3))
    with pytest.raises(DatasetError, match=r"action is .* of width 1, 2 from file to file"):
        load_dataset(str(folder))
    write_episode(folder, 1, 3, frame_index=np.array([0, 2, 3]))
    with pytest.raises(DatasetError, match="frame 5 is number 2 of episode 1 and 1 was expected"):
        load_dataset(str(folder))
    write_episode(folder, 1, 2)
    with pytest.raises(DatasetError, match="promises total_frames 7 and the parquet files hold 6"):
        load_dataset(str(folder))
    (folder / "data" / "chunk-000" / "episode_000001.parquet").unlink()
    with pytest.raises(DatasetError, match="promises 2 episodes and data holds 1 file"):
        load_dataset(str(folder))


def test_ragged_and_empty_entries_are_refused(folder):
    write_episode(folder, 0, 4, action=pa.array([[1.0, 2], [1.0], [1.0, 2], [1.0, 2]]))
    with pytest.raises(DatasetError, match="action is 1 to 2 numbers wide"):
        load_dataset(str(folder))
    write_episode(folder, 0, 4, action=pa.array([[1.0, 2], None, [1.0, 2], [1.0, 2]]))
    with pytest.raises(DatasetError, match="action has empty entries"):
        load_dataset(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"codebase_version": "v1.6"}, "codebase_version v1.6"), ({"features": 3}, "no features")],
)
def test_a_description_that_does_not_fit_is_refused(folder, changes, message):
    write_info(folder, changes)
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(folder))


def test_the_real_set_is_read(shared_file):
    log = load_dataset(str(shared_file("lerobot/g1-pick-bottle")))
    assert (log.num_episodes, len(log), log.observations.shape[1]) == (100, 35_865, 26)
    assert log.provenance["tasks"] == ["Pick up the yellow bottle on the table."]
