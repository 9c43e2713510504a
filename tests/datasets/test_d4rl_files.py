"""D4RL's flat HDF5: written by h5py, read back, broken in every way."""

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saqrl.datasets import DatasetError, load_dataset
from saqrl.datasets.formats import hdf5_strings
from saqrl.datasets.formats.d4rl import read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.hdf5"


def write(path, log, **extra) -> None:
    with h5py.File(path, "w") as file:
        for key, value in {**log, **extra}.items():
            file[key] = value


def refusal(path) -> str:
    with pytest.raises(DatasetError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_was_written_is_read(path, log):
    write(path, log, **{"metadata/env_id": "Hopper-v4", "metadata/note": "by hand"})
    transitions = read(path)
    for field in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(transitions, field), log[field])
    assert transitions.environment.id == "Hopper-v4"
    assert transitions.provenance["recorded"] == {"note": "by hand"}


def test_compressed_and_chunked_data_are_read(path, log):
    with h5py.File(path, "w") as file:
        for key, value in log.items():
            file.create_dataset(key, data=value, chunks=True, compression="gzip")
    np.testing.assert_array_equal(read(path).actions, log["actions"])


def test_without_successors_and_timeouts_the_flags_decide(path, log):
    del log["next_observations"], log["timeouts"]
    write(path, log)
    transitions = read(path)
    assert transitions.episode_lengths.tolist() == [4, 8]
    assert transitions.environment is None


def test_further_groups_are_ignored(path, log):
    extra = {"infos/qpos": np.zeros((3, 3)), "metadata/policy/fc0/weight": np.zeros((4, 4))}
    write(path, log, **extra)
    assert len(read(path)) == 12


@pytest.mark.parametrize("env_id", [np.arange(3), np.float32(np.nan)])
def test_a_strange_environment_name_is_ignored(path, log, env_id):
    write(path, log, **{"metadata/env_id": env_id})
    assert read(path).environment is None


@pytest.mark.parametrize("name", ["", "Höpper-v4", "a" * 5000])
@pytest.mark.parametrize("fixed", [True, False])
def test_environment_names_of_any_kind_are_read(path, log, name, fixed):
    encoded = np.bytes_(name.encode()) if fixed else name
    write(path, log, **{"metadata/aaa": "first", "metadata/env_id": encoded})
    environment = read(path).environment
    assert (environment.id if environment else "") == name


@pytest.mark.parametrize("place", [8, 16, 24, 25])
def test_a_damaged_string_heap_neither_hangs_nor_crashes(path, log, place):
    # HDF5 2.0 itself loops for ever on some of these.
    write(path, log, **{"metadata/env_id": "Hopper-v4"})
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + place : heap + place + 7] = b"\xff" * 7
    path.write_bytes(content)
    assert len(read(path)) == 12


def test_strings_that_nobody_can_read_are_no_damage(path, log, tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ImportError('no h5py here')")
    monkeypatch.setattr(hdf5_strings, "__file__", str(broken))
    write(path, log, **{"metadata/env_id": "Hopper-v4"})
    with pytest.raises(RuntimeError, match=r"reads strings has failed .*no h5py here"):
        read(path)


def test_records_in_other_files_are_not_followed(path, log, tmp_path):
    other = tmp_path / "other.hdf5"
    write(other, {"secret": "Secret-v0"})
    write(path, log, **{"metadata/note": "here"})
    with h5py.File(path, "a") as file:
        file["metadata/env_id"] = h5py.ExternalLink(str(other), "secret")
    transitions = read(path)
    assert transitions.environment is None
    assert transitions.provenance["recorded"] == {"note": "here"}


def test_missing_keys_are_named_together_with_near_misses(path, log):
    write(path, {"observatoins": log["observations"], "data/actions": log["actions"]})
    message = refusal(path)
    assert "missing observations (did you mean observatoins?), actions, terminals" in message
    assert "the file has data, observatoins" in message


@pytest.mark.parametrize("name", ["log.hdf5", "log"])
def test_usual_other_names_are_read_and_said(tmp_path, log, name):
    names = {"observations": "obs", "actions": "action", "terminals": "terminated"}
    names |= {"timeouts": "truncated", "next_observations": "next_obs", "rewards": "reward"}
    write(tmp_path / name, {names[field]: array for field, array in log.items()})
    transitions = load_dataset(str(tmp_path / name))
    np.testing.assert_array_equal(transitions.observations, log["observations"])
    np.testing.assert_array_equal(transitions.terminated, log["terminals"])
    assert transitions.episode_lengths.tolist() == [4, 3, 5]
    assert "truncated is read as timeouts." in transitions.notes


def test_messages_about_other_names_use_them(path, log):
    log["obs"] = log.pop("observations")
    log["obs"][4, 2] = np.nan
    write(path, log)
    assert "obs row 4, column 2 is nan" in refusal(path)


def test_two_candidates_for_one_field_are_refused(path, log):
    states = log.pop("observations")
    write(path, {**log, "obs": states, "state": states})
    assert "each of obs, state could be observations" in refusal(path)


def test_done_that_also_marks_time_limits_is_refused(path, log):
    log["dones"] = log.pop("terminals") | log["timeouts"]
    write(path, log)
    assert "dones also marks time limits" in refusal(path)


def test_a_group_in_place_of_an_array_is_refused(path, log):
    del log["observations"]
    write(path, log, **{"observations/state": np.zeros((12, 2))})
    assert "observations is a group (state)" in refusal(path)


def test_lengths_are_compared_before_anything_is_read(path, log):
    del log["observations"]
    write(path, log)
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", shape=(10**12, 3), dtype="f4", chunks=(1000, 3))
    assert "observations has 1,000,000,000,000 rows and actions has 12" in refusal(path)


@pytest.mark.parametrize("kind", ["soft", "external"])
def test_links_are_not_followed(path, log, kind, tmp_path):
    other = tmp_path / "other.hdf5"
    write(other, {"secret": log.pop("actions")})
    write(path, log)
    with h5py.File(path, "a") as file:
        target = h5py.ExternalLink(str(other), "secret")
        file["actions"] = h5py.SoftLink("/rewards") if kind == "soft" else target
    assert "actions is a link, and links are not followed" in refusal(path)


def test_virtual_data_sets_are_not_followed(path, log, tmp_path):
    other = tmp_path / "other.hdf5"
    write(other, {"secret": log.pop("actions")})
    write(path, log)
    layout = h5py.VirtualLayout(shape=(12, 2), dtype="f4")
    layout[:] = h5py.VirtualSource(str(other), "secret", shape=(12, 2))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("actions", layout)
    assert "actions stores its numbers in other files" in refusal(path)


def test_external_storage_is_not_followed(path, log, tmp_path):
    raw = tmp_path / "raw"
    raw.write_bytes(log.pop("actions").tobytes())
    write(path, log)
    with h5py.File(path, "a") as file:
        file.create_dataset("actions", (12, 2), "f4", external=[(str(raw), 0, 96)])
    assert "actions stores its numbers in other files" in refusal(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array(["a"] * 12, dtype=object), "holds objects or strings"),
        (np.array([b"a"] * 12), "store it as numbers"),
        (np.zeros(12, [("x", "f4"), ("y", "f4")]), "store it as numbers"),
        (np.float32(3), "is a single value"),
        (h5py.Empty("f4"), "is a single value"),
    ],
)
def test_arrays_that_are_no_numbers_are_refused(path, log, value, said):
    del log["actions"]
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.astype(h5py.string_dtype())
    write(path, log, actions=value)
    assert said in refusal(path)


def test_bad_values_name_file_field_row_and_remedy(path, log):
    log["rewards"][7] = np.inf
    write(path, log)
    assert "rewards row 7 is inf (1 of 12 entries are nan or infinite); drop" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"hello" * 1000])
def test_foreign_files_are_refused(path, content):
    path.write_bytes(content)
    assert "not an HDF5 file" in refusal(path)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_truncated_files_are_refused(path, log, share):
    write(path, log)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "damaged or truncated" in refusal(path)


def test_a_damaged_compressed_block_is_refused(path, log):
    with h5py.File(path, "w") as file:
        for key, value in log.items():
            file.create_dataset(key, data=value, compression="gzip")
        block = file["actions"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[block.byte_offset : block.byte_offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert "actions cannot be read" in refusal(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.floats(0, 1), run=st.binary(min_size=1, max_size=4))
def test_any_damaged_bytes_are_read_or_refused_in_one_line(path, log, start, run):
    write(path, log)
    content = bytearray(path.read_bytes())
    place = int(start * (len(content) - len(run)))
    content[place : place + len(run)] = run
    path.write_bytes(content)
    try:
        transitions = load_dataset(f"d4rl:{path}")
    except DatasetError as error:
        message = str(error)
    else:
        assert np.isfinite(transitions.observations).all()
        return
    assert message.startswith(str(path))
    assert "\n" not in message
