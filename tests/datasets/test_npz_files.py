"""npz: written by NumPy, read back, broken in every way."""

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from saqrl.datasets import DatasetError, load_dataset
from saqrl.datasets.formats.npz import read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.npz"


def refusal(path) -> str:
    with pytest.raises(DatasetError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_was_written_is_read(path, log, save):
    low, high = np.full(2, -2, np.float32), np.full(2, 2, np.float32)
    save(
        path,
        **log,
        action_low=low,
        action_high=high,
        environment_id=np.array("Some/Arm-v0"),
        provenance=np.array(json.dumps({"seed": 3})),
    )
    transitions = read(path)
    for field in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(transitions, field), log[field])
    assert transitions.environment.id == "Some/Arm-v0"
    np.testing.assert_array_equal(transitions.action_range.high, high)
    assert transitions.provenance["recorded"] == {"seed": 3}
    assert transitions.provenance["bytes"] == path.stat().st_size
    json.dumps(transitions.provenance)


@pytest.mark.parametrize("rate", [30, 12.5, np.array([50.0])])
def test_the_rate_of_the_recording_is_read(path, log, rate):
    np.savez(path, **log, control_rate=rate)
    assert read(path).control_rate == float(np.squeeze(rate))


@pytest.mark.parametrize(
    ("rate", "given"),
    [(0, "0"), (np.nan, "nan"), (np.zeros(3), "(3,)"), (np.array("30"), "()"), (True, "()")],
)
def test_a_rate_that_is_none_is_refused(path, log, rate, given):
    np.savez(path, **log, control_rate=rate)
    assert f"control_rate is {given}; a single number of steps per second (Hz)" in refusal(path)


def test_a_record_that_is_no_json_is_kept_as_text(path, log):
    np.savez(path, **log, provenance=np.array("by hand"))
    assert read(path).provenance["recorded"] == "by hand"


def test_pickled_arrays_are_never_opened(path, log, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    log["actions"] = np.array([Trap()] * 12, dtype=object)
    np.savez(path, **log)
    assert "actions holds Python objects, and pickled arrays are never opened" in refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_one_array_an_episode_is_told_how_to_become_rows(path, log):
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros((5, 2)), np.zeros((7, 2))]
    np.savez(path, observations=ragged, actions=ragged)  # without a word on where episodes end
    message = refusal(path)
    assert "observations=numpy.concatenate(observations)" in message
    actions = ragged
    _, line = message.split("timeouts=")
    ends = eval(line.split(";")[0], {"numpy": np, "len": len, "actions": actions})
    assert np.flatnonzero(ends).tolist() == [4, 11]


def test_an_episode_s_number_may_be_called_episode(path, log):
    del log["timeouts"], log["terminals"]
    np.savez(path, **log, episode=np.repeat([0, 1, 2], 4))
    assert read(path).episode_ends.tolist() == [4, 8, 12]


def test_missing_keys_are_named_together_with_near_misses(path, log):
    np.savez(path, observatoins=log["observations"], rewards=log["rewards"])
    message = refusal(path)
    assert "missing observations (did you mean observatoins?), actions, terminals" in message
    assert "the file has observatoins, rewards" in message


def test_parts_of_an_observation_come_with_the_line_that_joins_them(path, log):
    states = log.pop("observations")
    parts = {"qpos": states[:, :2], "qvel": states[:, 2:]}
    np.savez(path, **parts, **log)
    message = refusal(path)
    joined = {"np": np, "file": parts}
    exec(message.split("`")[1], joined)
    np.testing.assert_array_equal(joined["observations"], states)


def test_usual_other_names_are_read_and_said(path, log):
    names = {"observations": "obs", "next_observations": "next_obs", "terminals": "dones"}
    np.savez(path, **{names.get(field, field): array for field, array in log.items()})
    transitions = read(path)
    np.testing.assert_array_equal(transitions.terminated, log["terminals"])
    assert "obs is read as observations." in transitions.provenance["notes"]
    assert "dones is read as terminals." in transitions.provenance["notes"]


def test_messages_about_other_names_use_them(path, log):
    log["obs"] = log.pop("observations")
    log["obs"][4, 2] = np.nan
    np.savez(path, **log)
    assert "obs row 4, column 2 is nan" in refusal(path)


def test_two_candidates_for_one_field_are_refused(path, log):
    np.savez(path, obs=log["observations"], state=log.pop("observations"), **log)
    assert "each of obs, state could be observations" in refusal(path)


def test_the_proper_name_wins_over_others(path, log):
    np.savez(path, **log, dones=log["terminals"] | log["timeouts"])
    np.testing.assert_array_equal(read(path).terminated, log["terminals"])


def test_done_that_also_marks_time_limits_is_refused(path, log):
    dones = log.pop("terminals") | log["timeouts"]
    np.savez(path, **log, dones=dones)
    assert "dones and timeouts are both set in row 6" in refusal(path)


@pytest.mark.parametrize("key", ["environment_id", "provenance"])
def test_records_that_are_no_string_are_refused(path, log, key):
    np.savez(path, **log, **{key: np.arange(3)})
    assert f"{key} has shape (3,)" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all" * 100])
def test_foreign_files_are_refused(path, content):
    path.write_bytes(content)
    assert "not an npz archive, or truncated" in refusal(path)


def test_a_single_array_is_refused(path, log):
    with path.open("wb") as stream:
        np.save(stream, log["observations"])
    assert "not an npz archive" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(path, log, share):
    np.savez_compressed(path, **log)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "truncated" in refusal(path)


def test_members_that_are_no_arrays_count_as_missing(path, log):
    actions = log.pop("actions")
    np.savez(path, **log)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("actions", actions.tobytes())
    assert "missing actions" in refusal(path)


def test_a_member_with_a_broken_header_is_refused(path, log):
    del log["actions"]
    np.savez(path, **log)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("actions.npy", b"\x93NUMPY\x01\x00\x05\x00oops\n")
    assert "actions cannot be read" in refusal(path)


def test_a_header_that_promises_too_much_is_refused(path, log):
    actions = log.pop("actions")
    np.savez(path, **log)
    written = io.BytesIO()
    np.save(written, actions)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("actions.npy", written.getvalue()[:-8])
    assert "actions cannot be read" in refusal(path)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_byte_is_read_or_refused_in_one_line(path, log, data):
    np.savez(path, **log)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    _read_or_refused(path)


ANY_ARRAY = arrays_of.arrays(
    dtype=st.one_of(
        arrays_of.floating_dtypes(),
        arrays_of.integer_dtypes(),
        arrays_of.boolean_dtypes(),
        arrays_of.unicode_string_dtypes(max_len=3),
        arrays_of.complex_number_dtypes(),
        arrays_of.datetime64_dtypes(),
    ),
    shape=arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.dictionaries(
        st.sampled_from(
            [
                "observations",
                "actions",
                "rewards",
                "terminals",
                "timeouts",
                "next_observations",
                "obs",
                "dones",
                "action_low",
                "action_high",
                "environment_id",
                "provenance",
            ]
        ),
        ANY_ARRAY,
    )
)
def test_any_arrays_are_read_or_refused_in_one_line(path, members):
    np.savez(path, **members)
    _read_or_refused(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(["observations", "rewards", "terminals"]), ANY_ARRAY)
)
def test_any_change_of_a_good_file_is_read_or_refused_in_one_line(path, log, changes):
    np.savez(path, **{**log, **changes})
    _read_or_refused(path)


def _read_or_refused(path) -> None:
    try:
        transitions = load_dataset(str(path))
    except DatasetError as error:
        message = str(error)
    else:
        assert np.isfinite(transitions.observations).all()
        assert (transitions.episode_lengths > 0).all()
        return
    assert message.startswith(str(path))
    assert "\n" not in message
