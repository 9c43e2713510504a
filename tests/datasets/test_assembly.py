"""Raw arrays become transitions by the rules of assembly.py, or one line says why not."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.datasets.assembly import assemble, mismatched_successors
from saqrl.datasets.errors import DatasetError
from saqrl.datasets.statistics import column_statistics
from saqrl.datasets.transitions import Transitions


def built(arrays: dict[str, np.ndarray], **options: object) -> Transitions:
    return assemble(arrays, source="log", **options)


def refusal(arrays: dict[str, np.ndarray], **options: object) -> str:
    with pytest.raises(DatasetError) as caught:
        built(arrays, **options)
    message = str(caught.value)
    assert message.startswith("log: ")
    assert "\n" not in message
    return message


def notes(transitions: Transitions) -> str:
    return " ".join(transitions.provenance["notes"])


def test_a_complete_log_comes_through_unchanged(log):
    transitions = built(log)
    for field in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(transitions, field), log[field])
    np.testing.assert_array_equal(transitions.terminated, log["terminals"])
    assert transitions.episode_starts.tolist() == [0, 4, 7]
    assert transitions.episode_lengths.tolist() == [4, 3, 5]
    assert transitions.has_rewards
    assert transitions.provenance["notes"] == []
    assert transitions.episode_starts.dtype == np.int64


def test_without_successors_only_the_timed_out_last_step_is_dropped(log):
    del log["next_observations"]
    transitions = built(log)
    kept = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    np.testing.assert_array_equal(transitions.observations, log["observations"][kept])
    np.testing.assert_array_equal(transitions.rewards, log["rewards"][kept])
    assert transitions.episode_starts.tolist() == [0, 4, 6]
    successors = [1, 2, 3, 3, 5, 6, 8, 9, 10, 11, 11]
    np.testing.assert_array_equal(transitions.next_observations, log["observations"][successors])
    assert transitions.terminated.nonzero()[0].tolist() == [3, 10]
    assert "1 last step of episodes that did not terminate dropped" in notes(transitions)


def test_reward_that_sits_on_dropped_steps_is_pointed_out(log):
    del log["next_observations"]
    log["rewards"][:] = 0
    log["rewards"][6] = 1
    assert "They hold 100% of all reward" in notes(built(log))


def test_a_terminal_counts_even_where_a_timeout_is_set_too(log):
    log["timeouts"] |= log["terminals"]
    np.testing.assert_array_equal(built(log).terminated, log["terminals"])


@pytest.mark.parametrize("successors", [True, False])
def test_a_file_without_a_last_flag_ends_as_at_a_time_limit(log, successors):
    log["terminals"][11] = False
    if not successors:
        del log["next_observations"]
    transitions = built(log)
    assert len(transitions) == (12 if successors else 10)
    assert transitions.num_episodes == 3
    assert not transitions.terminated[-1]
    assert "it is read as a time limit" in notes(transitions)


def test_without_any_end_all_rows_are_one_episode(log):
    del log["timeouts"]
    log["terminals"][:] = False
    transitions = built(log)
    assert transitions.num_episodes == 1
    assert "all 12 rows are read as one episode" in notes(transitions)
    # The two unmarked ends are seen, not acted upon.
    assert "next_observations differ from the observation that follows in 2 rows" in notes(
        transitions
    )


def test_timeouts_alone_are_enough(log):
    del log["terminals"]
    transitions = built(log)
    assert not transitions.terminated.any()
    assert transitions.episode_lengths.tolist() == [7, 5]


def test_neither_flag_is_refused(log):
    del log["terminals"], log["timeouts"]
    assert "neither terminals nor timeouts" in refusal(log)


def test_one_step_episodes_stay_or_vanish_and_are_counted(log):
    log["timeouts"][7] = True
    transitions = built(log)
    assert transitions.episode_lengths.tolist() == [4, 3, 1, 4]
    assert "1 episode of a single step" in notes(transitions)
    del log["next_observations"]
    transitions = built(log)
    assert transitions.episode_lengths.tolist() == [4, 2, 4]
    assert "1 episode of one step dropped" in notes(transitions)


def test_nothing_left_after_dropping_is_refused(log):
    del log["next_observations"]
    log["terminals"][:], log["timeouts"][:] = False, True
    message = refusal(log, keys={"timeouts": "truncations"})
    assert "no step is left: 12 episodes of one step each" in message
    assert "mark only the last row of each episode (truncations)" in message


def test_an_end_in_every_row_is_warned_of(log):
    assert built(log).warnings == ()
    log["timeouts"][:] = True
    (warning,) = built(log, keys={"timeouts": "truncations"}).warnings
    assert "truncations marks every row as the end of an episode" in warning


@pytest.mark.parametrize("field", ["observations", "rewards", "next_observations", "timeouts"])
def test_lengths_that_differ_are_named(log, field):
    log[field] = log[field][:-1]
    assert f"{field} has 11 rows and actions has 12" in refusal(log)


def test_a_final_observation_too_many_is_explained(log):
    log["observations"] = np.vstack([log["observations"], log["observations"][:1]])
    assert "as next_observations" in refusal(log)


def test_an_empty_file_is_refused(log):
    assert "holds no steps" in refusal({field: array[:0] for field, array in log.items()})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["observations", "actions", "next_observations"])
def test_the_first_entry_that_is_not_finite_is_found(log, field, value):
    log[field][5, 1] = log[field][9, 0] = value
    pattern = rf"{field} row 5, column 1 is {value} \(2 of \d+ entries are nan or infinite\); drop"
    assert re.search(pattern, refusal(log))


@pytest.mark.parametrize("field", ["observations", "rewards"])
def test_the_lines_of_the_refusal_remove_what_is_not_finite(log, field):
    log[field][5] = np.nan
    drop, interpolate = refusal(log).split("`")[1::2]
    names = {"np": np, **log}
    exec(drop, names)
    assert built({name: array[names["keep"]] for name, array in log.items()}).num_episodes == 2
    for column in log[field].reshape(12, -1).T:
        exec(interpolate, {"np": np, "x": column})
    assert np.isfinite(built(log).observations).all()


def test_a_reward_that_is_not_finite_is_found(log):
    log["rewards"][2] = np.nan
    assert "rewards row 2 is nan (1 of 12 entries" in refusal(log)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float64])
def test_casts_are_said(log, dtype):
    log["observations"] = (log["observations"] > 0).astype(dtype)
    del log["next_observations"]
    transitions = built(log)
    assert transitions.observations.dtype == np.float32
    assert f"observations is {np.dtype(dtype).name}: it is read as float32." in notes(transitions)


@pytest.mark.parametrize("dtype", [">f4", np.float16])
def test_casts_without_loss_are_not_mentioned(log, dtype):
    log["rewards"] = log["rewards"].astype(dtype)
    transitions = built(log)
    assert transitions.rewards.dtype == np.dtype("=f4")
    assert transitions.provenance["notes"] == []


def test_overflow_in_a_cast_is_refused(log):
    log["observations"] = log["observations"].astype(np.float64)
    log["observations"][8, 2] = 1e200
    assert "observations row 8, column 2 is 1e+200, too large: squares" in refusal(log)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((12, 8, 8, 3), np.uint8), "images and stacked frames are not supported"),
        (np.zeros((12, 2, 3)), "store one flat vector a step"),
        (np.zeros((12, 28 * 28), np.uint8), "784 columns of bytes, which are pixels"),
        (np.zeros((12, 0)), "has no columns"),
        (np.full((12, 2), None), "pickled arrays are never opened"),
        (np.full((12, 2), "a"), "store it as numbers"),
        (np.zeros((12, 2), complex), "holds complex128"),
        (np.array(1.0), "is a single number"),
    ],
)
@pytest.mark.parametrize("field", ["observations", "actions"])
def test_arrays_that_are_no_vectors_are_refused(log, field, array, said):
    message = refusal({**log, field: array})
    assert field in message
    assert said in message


def test_one_dimension_becomes_one_column(log):
    log["actions"] = log["actions"][:, 0]
    transitions = built(log)
    assert transitions.actions.shape == (12, 1)
    assert "actions has one dimension: it is read as one column." in notes(transitions)


@pytest.mark.parametrize("field", ["rewards", "terminals", "timeouts"])
def test_single_columns_are_flattened_and_wider_ones_refused(log, field):
    plain = built(log)
    column = built({**log, field: log[field][:, None]})
    np.testing.assert_array_equal(column.rewards, plain.rewards)
    np.testing.assert_array_equal(column.episode_starts, plain.episode_starts)
    message = refusal({**log, field: np.stack([log[field]] * 2, 1)})
    assert f"{field} has shape (12, 2); one number per step" in message


def test_successors_of_another_width_are_refused(log):
    log["next_observations"] = log["next_observations"][:, :2]
    assert "next_observations has 2 columns and observations has 3" in refusal(log)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_flags_may_be_zeros_and_ones(log, dtype):
    expected = built(log)
    log["terminals"], log["timeouts"] = (
        log["terminals"].astype(dtype),
        log["timeouts"].astype(dtype),
    )
    np.testing.assert_array_equal(built(log).terminated, expected.terminated)


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
def test_other_flags_are_refused(log, value):
    log["timeouts"] = log["timeouts"].astype(np.float32)
    log["timeouts"][4] = value
    assert (
        f"timeouts row 4 is {value:g}; expected 1 (the episode ends in this row) or 0"
        in refusal(log)
    )


def test_missing_rewards_are_zero_and_said(log):
    del log["rewards"]
    transitions = built(log)
    assert not transitions.has_rewards
    assert not transitions.rewards.any()
    assert "no rewards" in notes(transitions)


def test_action_range_is_the_unit_interval_where_actions_fit_it(log):
    transitions = built(log)
    assert transitions.action_range.low.tolist() == [-1, -1]
    assert transitions.provenance["action_range"] == "unit"


def test_action_range_is_the_data_where_actions_leave_the_unit_interval(log):
    log["actions"] = log["actions"] * 300
    transitions = built(log)
    np.testing.assert_array_equal(transitions.action_range.low, log["actions"].min(0))
    np.testing.assert_array_equal(transitions.action_range.high, log["actions"].max(0))
    assert transitions.provenance["action_range"] == "data"
    assert "declares no action range" in notes(transitions)


def test_rounding_beyond_the_range_is_clipped_and_said(log):
    log["actions"][3, 0] = np.nextafter(np.float32(1), np.float32(2))
    transitions = built(log)
    assert transitions.actions[3, 0] == 1
    assert "by rounding errors only were clipped" in notes(transitions)


def test_actions_outside_the_declared_range_are_refused(log):
    log["actions"][3, 1] = 1.5
    bounds = {"action_low": np.full(2, -1.0), "action_high": np.full(2, 1.25)}
    message = refusal({**log, **bounds})
    assert "actions row 3, column 1 is 1.5, outside the declared range [-1, 1.25]" in message
    assert "1 of 24 entries" in message


def test_a_declared_range_is_kept(log):
    bounds = {"action_low": np.array(-2), "action_high": np.array([2.0, 3.0])}
    action_range = built({**log, **bounds}).action_range
    assert action_range.low.tolist() == [-2, -2]
    assert action_range.high.tolist() == [2, 3]


def test_an_infinite_bound_gives_way_to_the_data(log):
    bounds = {"action_low": np.array([-np.inf, -1]), "action_high": np.array([np.inf, 1])}
    transitions = built({**log, **bounds})
    assert transitions.action_range.low[0] == log["actions"][:, 0].min()
    assert "infinite in column 0" in notes(transitions)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"action_low": np.zeros(2)}, "action_high is missing"),
        ({"action_low": np.zeros(3), "action_high": np.ones(2)}, "2 numbers are needed"),
        ({"action_low": np.full(2, np.nan), "action_high": np.ones(2)}, "action_low is nan"),
        (
            {"action_low": np.ones(2), "action_high": -np.ones(2)},
            "above action_high -1 in column 0",
        ),
        ({"action_low": np.array(["a", "b"]), "action_high": np.ones(2)}, "type str"),
    ],
)
def test_bounds_that_make_no_range_are_refused(log, bounds, said):
    assert said in refusal({**log, **bounds})


def test_constant_columns_are_allowed_and_said(log):
    log["actions"][:] = 0.5
    log["observations"][:, 1] = log["next_observations"][:, 1] = 7
    transitions = built(log)
    assert "actions are constant in columns 0, 1." in notes(transitions)
    assert "observations are constant in column 1." in notes(transitions)


def test_messages_use_the_names_of_the_file(log):
    log["observations"][0, 0] = np.nan
    assert "obs row 0, column 0" in refusal(log, keys={"observations": "obs"})


def test_a_successor_that_is_not_the_next_row_is_counted(log):
    log["next_observations"][1] += 1
    assert "the observation that follows in 1 row:" in notes(built(log))
    last = np.zeros(12, bool)
    last[[3, 6, 11]] = True
    mismatched = mismatched_successors(log["observations"], log["next_observations"], last)
    assert mismatched.nonzero()[0].tolist() == [1]


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    ends=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_dropping_equals_a_plain_loop(lengths, ends):
    steps = sum(lengths)
    observations = np.arange(steps, dtype=np.float32)[:, None] / steps
    terminals, timeouts = np.zeros(steps, bool), np.zeros(steps, bool)
    rows, successors, starts, row = [], [], [], 0
    for length, terminates in zip(lengths, ends, strict=False):
        last = row + length - 1
        (terminals if terminates else timeouts)[last] = True
        kept = list(range(row, last + 1 if terminates else last))
        if kept:
            starts.append(len(rows))
        rows += kept
        successors += [min(index + 1, last) for index in kept]
        row += length
    arrays = {
        "observations": observations,
        "actions": observations,
        "terminals": terminals,
        "timeouts": timeouts,
    }
    if not rows:
        assert "no step is left" in refusal(arrays)
        return
    transitions = built(arrays)
    np.testing.assert_array_equal(transitions.observations, observations[rows])
    np.testing.assert_array_equal(transitions.next_observations, observations[successors])
    assert transitions.episode_starts.tolist() == starts
    np.testing.assert_array_equal(transitions.terminated, terminals[rows])


@given(rows=st.integers(1, 40), block=st.integers(1, 12), seed=st.integers(0, 99))
def test_statistics_do_not_depend_on_the_block(rows, block, seed):
    table = np.random.default_rng(seed).normal(3, 2, (rows, 4)).astype(np.float32)
    statistics = column_statistics(table, block_rows=block)
    exact = table.astype(np.float64)
    np.testing.assert_array_equal(statistics.minimum, exact.min(0))
    np.testing.assert_array_equal(statistics.maximum, exact.max(0))
    # Float64 sums of at most 40 numbers in another order.
    np.testing.assert_allclose(statistics.mean, exact.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(statistics.deviation, exact.std(0), rtol=0, atol=1e-12)
