"""Digits as one code, and values kept exactly."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.quantizers import QUANTIZERS
from saqrl.quantizers.binary import find_binary, watch_binary
from saqrl.quantizers.joint import MAX_JOINT_CODES, code_of, digits_of, share_out


@given(st.integers(2, MAX_JOINT_CODES), st.integers(1, 6))
def test_codes_are_shared_out_as_far_and_as_evenly_as_they_go(codes, digits):
    if 2**digits > codes:
        with pytest.raises(ValueError, match=f"{2**digits:,} joint codes"):
            share_out(codes, digits)
        return
    levels = share_out(codes, digits)
    assert min(levels) >= 2
    assert math.prod(levels) <= codes
    # No digit can take one value more.
    assert all(math.prod(levels) // level * (level + 1) > codes for level in levels)


def test_common_sizes_come_out_even():
    assert share_out(64, 2) == (8, 8)
    assert share_out(64, 3) == (4, 4, 4)
    assert share_out(16, 3) == (4, 2, 2)


def test_digits_and_joint_codes_are_inverse_and_in_order():
    levels = (3, 2, 4)
    digits = list(itertools.product(*map(range, levels)))
    codes = jax.vmap(lambda row: code_of(row, levels))(jnp.asarray(digits))
    np.testing.assert_array_equal(codes, np.arange(24))
    np.testing.assert_array_equal(jax.vmap(lambda code: digits_of(code, levels))(codes), digits)


@pytest.mark.parametrize("name", ["residual", "fsq", "bins"])
def test_more_joint_codes_than_can_be_enumerated_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: 5,000 joint codes are too many"):
        QUANTIZERS.load(name)(codes=5_000)


def test_a_third_value_ends_a_dimension_being_binary():
    draw = np.random.default_rng(0)
    continuous = draw.normal(size=6)
    first = np.stack([np.repeat([-1.0, 1.0], 3), np.full(6, 0.3), continuous, np.full(6, 0.2)], 1)
    seen = find_binary(jnp.asarray(first))
    assert seen.only.tolist() == [True, True, False, True]
    later = first.copy()
    later[0] = [0.0, -0.5, 9.0, 0.2]
    seen = watch_binary(seen, jnp.asarray(later))
    # -1, 1 and then 0: three; a constant that became 0.3 and -0.5: two; still one.
    assert seen.only.tolist() == [False, True, False, True]
    decoded = seen.narrow(jnp.asarray([0.2, -0.2, 1.5, 0.9]))
    np.testing.assert_allclose(decoded, [0.2, -0.5, 1.0, 0.2], rtol=1e-6)
    widened = seen.widen(jnp.asarray([0.2, 0.3, 0.5, 0.2]))
    np.testing.assert_allclose(widened, [0.2, 1.0, 0.5, 0.2], rtol=1e-6)
    # New extremes on both sides of a constant are three values.
    wider = jnp.asarray([[0.0, 0.1], [0.0, 0.9]])
    assert not watch_binary(find_binary(jnp.full((2, 2), 0.5)), wider).only[1]


def test_a_wrong_side_counts_once_a_dimension_and_only_where_there_are_two_values():
    seen = find_binary(
        jnp.asarray([[-1.0, 0.0, 0.3, 0.5], [1.0, 0.04, 0.3, 0.1], [1.0, 0.0, 0.3, 0]])
    )
    assert seen.only.tolist() == [True, True, True, False]
    assert seen.two_valued.tolist() == [True, True, False, False]
    assert seen.any_two_valued
    action = jnp.asarray([-1.0, 0.04, 0.3, 0.5])
    decoded = jnp.asarray(
        [
            [-1.0, 0.04, 0.3, 0.5],
            [1.0, 0.04, 0.3, 0.5],
            [-1.0, 0.0, 0.3, 0.5],
            [1.0, 0.0, 9.0, -9.0],
            [-0.2, 0.03, 0.0, 0.0],  # on the same sides
        ]
    )
    np.testing.assert_array_equal(seen.wrong(decoded, action), [0, 1, 1, 2, 0])
    np.testing.assert_array_equal(seen.wrong(decoded, decoded[3]), [2, 1, 1, 0, 2])
    single = find_binary(jnp.full((3, 2), 0.4))
    assert single.only.all()
    assert not single.any_two_valued
