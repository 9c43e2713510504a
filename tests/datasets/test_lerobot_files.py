"""LeRobot v2.1 and v3.0."""

import json
from itertools import pairwise

import numpy as np
import pytest

from saqrl.datasets import DatasetError, ReadOptions, load_dataset
from saqrl.datasets.formats.writers import convert

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FIRST_FILE = {"chunk_index": 0, "file_index": 0}


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
        ({"keys": ("observation.images.top",)}, "holds images or text; numeric features"),
        ({"action": "actoin"}, r"actoin is missing \(did you mean action"),
    ],
)
def test_a_feature_that_is_not_there_is_named(folder, options, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(folder), options=ReadOptions(**options))


def test_metadata_without_features_are_refused(folder):
    info = json.loads((folder / "meta" / "info.json").read_text())
    (folder / "meta" / "info.json").write_text(json.dumps(info | {"features": {}}))
    with pytest.raises(DatasetError, match=r"info.json describes no features .*; copy"):
        load_dataset(str(folder))


def test_mismatched_files_are_refused(folder):
    write_episode(folder, 1, 3, action=pa.array([[0.0]] * 3))
    with pytest.raises(
        DatasetError, match=r"action has types .* and widths 1, 2 in different files"
    ):
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
    with pytest.raises(DatasetError, match="action has 1 to 2 numbers per frame"):
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


def write_as_lerobot_does(folder, *, lengths, files):
    """v3.0 as lerobot 0.4 lays it out: several episodes a file, files in chunks of two.

    files: the number of episodes in each file, in order. Tasks are pandas' index, and what is one
    number a frame is no list.
    """
    draw, first = np.random.default_rng(0), 0
    columns = []
    for episode, frames in enumerate(lengths):
        numbers = np.arange(frames)
        columns.append(
            {
                "observation.state": draw.normal(size=(frames, 3)).astype(np.float32),
                "observation.environment_state": draw.normal(size=(frames, 2)).astype(np.float32),
                "action": draw.normal(size=(frames, 2)).astype(np.float32),
                "next.reward": draw.normal(size=frames).astype(np.float32),
                "next.success": (numbers == frames - 1) & (episode % 2 == 0),
                "next.done": numbers == frames - 1,
                "timestamp": (numbers / 20).astype(np.float32),
                "frame_index": numbers,
                "episode_index": np.full(frames, episode),
                "index": numbers + first,
                "task_index": np.full(frames, episode % 2),
            }
        )
        first += frames
    joined = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    rows = np.append(0, np.cumsum(lengths))[np.append(0, np.cumsum(files))]
    for number, (start, end) in enumerate(pairwise(rows)):
        place = folder / "data" / f"chunk-{number // 2:03d}"
        place.mkdir(parents=True, exist_ok=True)
        table = {
            name: pa.FixedSizeListArray.from_arrays(
                pa.array(values[start:end].ravel()), values.shape[1]
            )
            if values.ndim == 2
            else pa.array(values[start:end])
            for name, values in joined.items()
        }
        parquet.write_table(pa.table(table), place / f"file-{number % 2:03d}.parquet")
    meta = folder / "meta"
    meta.mkdir()
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": pa.array(["pick", "place"])})
    parquet.write_table(tasks, meta / "tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": len(lengths),
        "total_frames": int(rows[-1]),
        "total_tasks": 2,
        "chunks_size": 2,
        "fps": 20,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": {
            name: {
                "dtype": str(values.dtype),
                "shape": list(values.shape[1:]) or [1],
                "names": None,
            }
            for name, values in joined.items()
        },
    }
    (meta / "info.json").write_text(json.dumps(info))
    return joined


def test_episodes_spread_over_files_and_chunks_are_read_in_order(tmp_path):
    lengths = [5, 2, 7, 3, 4, 6]
    written = write_as_lerobot_does(tmp_path, lengths=lengths, files=[3, 1, 1, 1])
    log = load_dataset(f"lerobot:{tmp_path}")
    ends = np.cumsum(lengths)
    kept = np.ones(sum(lengths), bool)
    kept[ends[1::2] - 1] = False  # episodes without success end without a successor
    np.testing.assert_array_equal(
        log.observations,
        np.concatenate(
            [written["observation.state"], written["observation.environment_state"]], axis=1
        )[kept],
    )
    np.testing.assert_array_equal(log.actions, written["action"][kept])
    np.testing.assert_array_equal(log.rewards, written["next.reward"][kept])
    assert log.episode_lengths.tolist() == [5, 1, 7, 2, 4, 5]
    assert np.flatnonzero(log.terminated).tolist() == (log.episode_ends[::2] - 1).tolist()
    assert log.observation_keys == (
        ("observation.state", 3),
        ("observation.environment_state", 2),
    )
    assert log.provenance["tasks"] == ["pick", "place"]


def test_a_file_of_the_middle_that_is_missing_is_noticed(tmp_path):
    write_as_lerobot_does(tmp_path, lengths=[3, 4, 5], files=[1, 1, 1])
    (tmp_path / "data" / "chunk-000" / "file-001.parquet").unlink()
    with pytest.raises(DatasetError, match="promises total_episodes 3 and the parquet files hold"):
        load_dataset(f"lerobot:{tmp_path}")


def test_what_lerobot_looks_up_in_a_set_is_in_our_conversion(tmp_path):
    """Files, columns and types that lerobot 0.4 needs to open a set and index it."""
    source = tmp_path / "theirs"
    source.mkdir()
    write_as_lerobot_does(source, lengths=[5, 2, 7], files=[2, 1])
    log = load_dataset(f"lerobot:{source}")
    convert(log, tmp_path / "ours", "lerobot")
    meta = tmp_path / "ours" / "meta"
    info = json.loads((meta / "info.json").read_text())
    episodes = parquet.read_table(meta / "episodes" / "chunk-000" / "file-000.parquet")
    data = parquet.read_table(tmp_path / "ours" / info["data_path"].format(**FIRST_FILE))
    assert set(info["features"]) == set(data.column_names)
    assert {"timestamp", "frame_index", "episode_index", "index", "task_index"} <= set(
        data.column_names
    )
    for name, feature in info["features"].items():
        kind = data.schema.field(name).type
        width = kind.list_size if pa.types.is_fixed_size_list(kind) else 1
        assert feature["shape"] == [width], name
    assert episodes["dataset_from_index"].to_pylist() == log.episode_starts.tolist()
    assert episodes["dataset_to_index"].to_pylist() == log.episode_ends.tolist()
    assert episodes["length"].to_pylist() == log.episode_lengths.tolist()
    assert episodes["tasks"].to_pylist() == [["pick"]] * 3
    for column in ("data/chunk_index", "data/file_index"):
        assert set(episodes[column].to_pylist()) == {0}
    described = json.loads(parquet.read_schema(meta / "tasks.parquet").metadata[b"pandas"])
    assert described["index_columns"] == ["__index_level_0__"]
    assert (info["total_tasks"], info["total_episodes"]) == (1, 3)


def test_the_real_set_is_read(shared_file):
    log = load_dataset(str(shared_file("lerobot/g1-pick-bottle")))
    assert (log.num_episodes, len(log), log.observations.shape[1]) == (100, 35_865, 26)
    assert log.provenance["tasks"] == ["Pick up the yellow bottle on the table."]


def test_several_features_are_one_action(folder):
    log = load_dataset(str(folder), options=ReadOptions(action="action.velocity, action"))
    np.testing.assert_allclose(log.actions[1], [-0.05, -0.075, 0.05, 0.075])
    assert any("Actions are action.velocity, action, concatenated" in note for note in log.notes)


def test_parts_of_an_action_are_offered_together(folder):
    feature = {"dtype": "float32", "shape": [2]}
    names = ("observation.state", "action.arm", "action.hand")
    write_info(folder, {"features": dict.fromkeys(names, feature)})
    with pytest.raises(
        DatasetError, match=r"to join them: --dataset.action action.arm,action.hand"
    ):
        load_dataset(str(folder))


def test_several_tasks_are_told_unless_they_are_observed(folder):
    feature = {"dtype": "float32", "shape": [2]}
    features = {"observation.state": feature, "action": feature}
    features["task_index"] = {"dtype": "int64", "shape": [1]}
    write_info(folder, {"features": features})
    tasks = [{"task_index": n, "task": task} for n, task in enumerate(("pick", "place"))]
    (folder / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    for episode, frames in enumerate([4, 3]):
        write_episode(folder, episode, frames, task_index=np.full(frames, episode))
    (warning,) = load_dataset(str(folder)).warnings
    assert "2 tasks (pick, place)" in warning
    keys = ("observation.state", "task_index")
    log = load_dataset(str(folder), options=ReadOptions(keys=keys))
    assert log.warnings == ()
    assert log.observations[:, 2].tolist() == [0, 0, 0, 1, 1]
    for episode, frames in enumerate([4, 3]):  # one of them alone
        write_episode(folder, episode, frames, task_index=np.zeros(frames, np.int64))
    assert load_dataset(str(folder)).warnings == ()


def test_a_deleted_episode_is_named(folder):
    (folder / "data" / "chunk-000" / "episode_000000.parquet").unlink()
    with pytest.raises(
        DatasetError, match=r"episode 0 is missing\); if you deleted episodes"
    ) as error:
        load_dataset(str(folder))
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["hip", "knee"], ("hip", "knee")),
        ([["hip", "knee"]], ("hip", "knee")),
        ({"motors": ["hip", "knee"]}, ("hip", "knee")),
        (["hip"], ()),
        (["hip", "hip"], ()),
        ([1, 2], ()),
        ("hip", ()),
        (None, ()),
    ],
)
def test_names_of_joints_cameras_and_tasks_are_kept(folder, names, found):
    info = json.loads((folder / "meta" / "info.json").read_text())
    for feature in ("action", "observation.state"):
        info["features"][feature] = {**info["features"][feature], "names": names}
    write_info(folder, {"features": info["features"]})
    log = load_dataset(str(folder))
    assert (log.action_names, log.column_names) == (found, found)
    assert (log.cameras, log.tasks, log.control_rate) == (("top",), ("pick",), 30)
    assert log.successes is None


def test_success_of_an_episode_is_any_of_its_frames(folder):
    info = json.loads((folder / "meta" / "info.json").read_text())
    write_info(folder, {"features": info["features"] | {"next.success": {"dtype": "bool"}}})
    write_episode(folder, 0, 4, **{"next.success": np.array([0, 1, 1, 0], bool)})
    write_episode(folder, 1, 3, **{"next.success": np.zeros(3, bool)})
    log = load_dataset(str(folder))
    assert log.successes.tolist() == [True, False]
    assert log.select_episodes(np.array([1])).successes.tolist() == [False]
