"""Ends of episodes under the keys of other tools: read, or refused with the lines that convert."""

import h5py
import numpy as np
import pytest

from saqrl.datasets import DatasetError, load_dataset

STEPS, LENGTHS = 12, [4, 3, 5]
LAST = np.zeros(STEPS, bool)
LAST[[3, 6, 11]] = True
FIRST = np.roll(LAST, 1)


@pytest.fixture
def arrays():
    draw = np.random.default_rng(0)
    return {
        "observations": draw.normal(size=(STEPS, 3)).astype(np.float32),
        "actions": draw.uniform(-1, 1, (STEPS, 2)).astype(np.float32),
        "rewards": draw.normal(size=STEPS).astype(np.float32),
        "next_observations": draw.normal(size=(STEPS, 3)).astype(np.float32),
    }


def saved(folder, kind, arrays):
    path = folder / f"log.{'npz' if kind == 'npz' else 'h5'}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array
    return path


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("episode_terminals", LAST.astype(np.float32)),
        ("episode_ends", np.cumsum(LENGTHS)),
        ("episode_ends", LAST),
        ("episode_starts", FIRST),
        ("episode_starts", np.array([0, 4, 7])),
        ("traj_id", np.repeat([7, 2, 5], LENGTHS)),
        ("episode_index", np.repeat([[0], [1], [2]], LENGTHS, axis=0)),
        ("episode_lengths", np.array(LENGTHS)),
    ],
)
def test_ends_are_read(tmp_path, arrays, kind, key, values):
    log = load_dataset(str(saved(tmp_path, kind, arrays | {key: values})))
    assert log.episode_lengths.tolist() == LENGTHS
    assert not log.terminated.any()
    assert any(f"{key} marks 3 episode ends" in note for note in log.notes)


def test_terminations_stay_beside_other_ends(tmp_path, arrays):
    terminals = np.arange(STEPS) == 6
    path = saved(
        tmp_path, "hdf5", arrays | {"terminals": terminals, "episode_terminals": LAST.astype(float)}
    )
    log = load_dataset(str(path))
    assert log.episode_lengths.tolist() == LENGTHS
    assert np.flatnonzero(log.terminated).tolist() == [6]
    assert any(
        "2 episode ends that terminals and timeouts do not mark" in note for note in log.notes
    )


def test_keys_that_agree_with_the_flags_are_not_worth_a_note(tmp_path, arrays):
    ids = np.repeat([0, 1, 2], LENGTHS)
    log = load_dataset(str(saved(tmp_path, "npz", arrays | {"timeouts": LAST, "episode_id": ids})))
    assert log.episode_lengths.tolist() == LENGTHS
    assert not any("episode_id" in note for note in log.notes)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("episode_ends", np.array([4, 7, 30]), "neither a 0/1 flag per row nor the row after"),
        ("episode_ends", np.array([7, 4, 12]), "neither a 0/1 flag"),
        ("episode_starts", np.array([4, 7]), "nor the first row of each episode"),
        ("episode_lengths", np.array([4, 4]), "lengths that sum to 8, not to 12 rows"),
        ("episode_id", np.arange(5), "5 numbers, not one for each of 12"),
        ("episode_ends", np.full(3, np.nan), "shape"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_conversion(
    tmp_path, arrays, key, values, message
):
    path = saved(tmp_path, "npz", arrays | {key: values})
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(str(path))
    assert "convert it in two lines" in str(error.value)
    assert "\n" not in str(error.value)
    # Where the flags say all, a key of another meaning does not stand in the way.
    flags = {"terminals": np.zeros(STEPS, bool), "timeouts": LAST}
    log = load_dataset(str(saved(tmp_path, "npz", arrays | {key: values} | flags)))
    assert log.episode_lengths.tolist() == LENGTHS
    assert any(f"{key} is ignored" in note for note in log.notes)


def test_mixed_up_rows_are_refused(tmp_path, arrays):
    path = saved(tmp_path, "npz", arrays | {"episode_id": np.arange(STEPS) % 3})
    with pytest.raises(DatasetError, match=r"order = np.argsort\(episode_id"):
        load_dataset(str(path))


def test_arrays_of_episodes_are_refused_and_the_lines_convert_them(tmp_path):
    draw = np.random.default_rng(1)
    arrays = {
        "observations": draw.normal(size=(3, 4, 2)).astype(np.float32),
        "actions": draw.uniform(-1, 1, (3, 4, 1)).astype(np.float32),
    }
    path = saved(tmp_path, "npz", arrays | {"terminals": np.zeros((3, 4))})
    with pytest.raises(DatasetError, match=r"looks like \(episodes, time, width\)") as error:
        load_dataset(str(path))
    out = str(tmp_path / "flat.npz")
    names = {"np": np, "out": out, "actions": arrays["actions"], "arrays": arrays}
    for line in str(error.value).partition("two lines: ")[2].split(" | "):
        exec(line.strip("`"), names)
    log = load_dataset(out)
    assert log.episode_lengths.tolist() == [3, 3, 3]
    np.testing.assert_array_equal(log.observations[3], arrays["observations"][1, 0])


def test_layouts_of_other_tools_are_told_by_name(tmp_path, arrays):
    path = saved(tmp_path, "npz", arrays | {"is_last": LAST, "is_terminal": LAST})
    with pytest.raises(DatasetError, match=r"RLDS, where the last row .* two lines"):
        load_dataset(str(path))
    path = tmp_path / "replay.h5"
    with h5py.File(path, "w") as file:
        file["observations_0"], file["actions_0"] = np.zeros((3, 2)), np.zeros((3, 1))
    with pytest.raises(DatasetError, match="d3rlpy 2, one array an episode"):
        load_dataset(f"d4rl:{path}")


def test_choices_of_d3rlpy_are_refused(tmp_path, arrays):
    path = saved(tmp_path, "hdf5", arrays | {"terminals": LAST, "discrete_action": True})
    with pytest.raises(DatasetError, match="discrete_action is true"):
        load_dataset(str(path))


def test_a_file_without_any_end_is_refused_with_the_conversion(tmp_path, arrays):
    with pytest.raises(DatasetError, match=r"it is not known where episodes end.*two lines"):
        load_dataset(str(saved(tmp_path, "npz", arrays)))


@pytest.mark.parametrize("prefix", ["", "npz:"])
def test_a_zarr_folder_comes_with_the_lines_that_convert_it(tmp_path, prefix):
    (tmp_path / "demo.zarr").mkdir()
    with pytest.raises(DatasetError, match="zarr is not read; convert it") as error:
        load_dataset(f"{prefix}{tmp_path / 'demo.zarr'}")
    assert "zarr.open('demo.zarr', 'r'); ends = z['meta/episode_ends'][:]" in str(error.value)
    assert "\n" not in str(error.value)
