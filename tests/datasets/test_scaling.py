"""Units of the robot and of the networks, there and back."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from saqrl.datasets.scaling import FEATURE_LIMIT, ActionRange, ObservationScaling, expand_angles

RANGE = ActionRange(np.array([0, -1, 3], np.float32), np.array([10, 1, 3], np.float32))


def test_the_ends_of_the_range_are_minus_one_and_one_and_a_point_is_zero():
    actions = np.array([[0, -1, 3], [10, 1, 3], [5, 0, 3], [7.5, -0.5, 3]], np.float32)
    unit = np.array([[-1, -1, 0], [1, 1, 0], [0, 0, 0], [0.5, -0.5, 0]], np.float32)
    for found, expected in ((RANGE.to_unit(actions), unit), (RANGE.from_unit(unit), actions)):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
    np.testing.assert_array_equal(RANGE.half_width, [5, 1, 1])
    assert RANGE.half_width.dtype == np.float32


def test_what_lies_outside_the_unit_interval_is_clipped_to_the_range():
    beyond = np.array([[2, -3, 0.5], [-1.5, 1.5, -9]], np.float32)
    np.testing.assert_array_equal(RANGE.from_unit(beyond), [[10, -1, 3], [0, 1, 3]])
    # What the log itself did outside of its range is not hidden from the networks.
    np.testing.assert_array_equal(RANGE.to_unit(np.array([15, 0, 3], np.float32)), [2, 0, 0])


@given(
    arrays(np.float32, 2, elements=st.floats(-100, 100, width=32)),
    arrays(np.float32, 2, elements=st.floats(-100, 100, width=32)),
    arrays(np.float32, (5, 2), elements=st.floats(-1, 1, width=32)),
)
def test_actions_never_leave_the_range_even_by_rounding(one, other, unit):
    box = ActionRange(np.minimum(one, other), np.maximum(one, other))
    actions = box.from_unit(unit)
    assert (actions >= box.low).all()
    assert (actions <= box.high).all()
    # Half a unit in the last place of numbers up to 100, in units of the half-width.
    back = box.to_unit(actions) * box.half_width
    expected = np.where(box.high > box.low, unit * box.half_width, 0)
    np.testing.assert_allclose(back, expected, atol=5e-5)


def test_a_union_holds_both_ranges():
    both = RANGE.union(ActionRange(np.float32([-1, 0, 2]), np.float32([5, 4, 3])))
    np.testing.assert_array_equal(both.low, [-1, -1, 2])
    np.testing.assert_array_equal(both.high, [10, 4, 3])


def log() -> np.ndarray:
    draw = np.random.default_rng(0)
    columns = [draw.normal(5, 2, 400), draw.normal(-1, 0.5, 400), np.full(400, 7.0)]
    return np.stack(columns, 1).astype(np.float32)


@pytest.mark.parametrize("deviation", [1.0, 0.1])
def test_columns_have_mean_zero_and_the_deviation_and_constant_ones_say_nothing(deviation):
    scaling = ObservationScaling.fit(log(), deviation=deviation)
    features = scaling(log())
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(features.std(0), [deviation, deviation, 0], rtol=1e-4)
    assert features.dtype == scaling.mean.dtype == scaling.inverse_scale.dtype == np.float32
    np.testing.assert_allclose(scaling.mean, log().mean(0), rtol=1e-5)
    np.testing.assert_array_equal(scaling(np.float32([5, -1, 99]))[2], 0)


def test_a_common_scale_keeps_the_relative_sizes_of_the_columns():
    features = ObservationScaling.fit(log(), scale="common", deviation=0.5)(log())
    first, second, constant = features.std(0)
    spreads = log()[:, :2].std(0)
    assert first / second == pytest.approx(spreads[0] / spreads[1], rel=1e-4)
    assert math.sqrt((first**2 + second**2) / 2) == pytest.approx(0.5, rel=1e-4)
    assert constant == 0


@pytest.mark.parametrize("scale", ["columns", "common"])
def test_where_nothing_varies_every_feature_is_zero(scale):
    still = np.full((5, 2), 3, np.float32)
    np.testing.assert_array_equal(ObservationScaling.fit(still, scale=scale)(still + 1), 0)


def test_without_a_scale_only_angles_are_unrolled_and_nothing_is_cut_off():
    scaling = ObservationScaling.fit(log(), angles=(1,), scale="none")
    far = np.float32([1e6, math.pi / 3, -2])
    expected = [1e6, -2, 0.5, math.sin(math.pi / 3)]
    np.testing.assert_allclose(scaling(far), expected, rtol=1e-6)
    assert scaling(far).dtype == np.float32


@pytest.mark.parametrize("deviation", [1.0, 0.1])
def test_features_stop_at_ten_deviations_on_both_sides(deviation):
    scaling = ObservationScaling.fit(log(), deviation=deviation)
    assert scaling.limit == FEATURE_LIMIT * deviation == pytest.approx(10 * deviation)
    far = scaling(np.float32([[1e4, -1e4, 7], [-1e4, 1e4, 7]]))
    np.testing.assert_allclose(far[:, :2], np.array([[1, -1], [-1, 1]]) * 10 * deviation, rtol=1e-6)


def test_angles_become_cosines_then_sines_at_the_end_in_their_order():
    rows = np.array([[1, 0.2, 2, 0.7], [3, -0.1, 4, 3]], np.float32)
    found = expand_angles(rows, (3, 1))
    expected = [[a, c, math.cos(d), math.cos(b), math.sin(d), math.sin(b)] for a, b, c, d in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expand_angles(rows, ()) is rows
    np.testing.assert_array_equal(expand_angles(rows[0], (3, 1)), found[0])
    scaling, turn = ObservationScaling.fit(rows, angles=(1,), scale="none"), np.float32(2 * math.pi)
    turned = rows + np.array([0, turn, 0, 0], np.float32)  # a full turn is no distance
    np.testing.assert_allclose(scaling(turned), scaling(rows), atol=1e-6)


def test_angles_are_scaled_after_they_are_unrolled():
    rows = np.float32(np.random.default_rng(1).uniform(-3, 3, (300, 2)))
    scaling = ObservationScaling.fit(rows, angles=(0,))
    unrolled = np.stack([rows[:, 1], np.cos(rows[:, 0]), np.sin(rows[:, 0])], 1)
    assert scaling.angles == (0,)
    expected = (unrolled - unrolled.mean(0)) / unrolled.std(0)
    np.testing.assert_allclose(scaling(rows), expected, rtol=1e-4, atol=1e-5)
