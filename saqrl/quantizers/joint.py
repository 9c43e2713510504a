"""Joint codes: several digits as one code, so that every code can be enumerated."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int

# Agents compute one number per joint code and state; above this the exact sums are expensive.
MAX_JOINT_CODES = 4096


def require_enumerable(codes: int, quantizer: str) -> None:
    """ValueError if `codes` joint codes are more than agents can enumerate."""
    if codes > MAX_JOINT_CODES:
        raise ValueError(
            f"{quantizer}: {codes:,} joint codes are too many, because agents sum over all of "
            f"them: choose at most {MAX_JOINT_CODES:,} codes"
        )


def share_out(codes: int, digits: int) -> tuple[int, ...]:
    """The number of values of each of `digits` digits, with a product of at most `codes`.

    As even as possible, each at least 2; 64 over 3 digits: (4, 4, 4); 16: (4, 2, 2).
    Raises ValueError if 2 values each are already too many.
    """
    if 2**digits > codes:
        raise ValueError(
            f"{digits} digits of 2 values each make {2**digits:,} joint codes, but codes is "
            f"{codes:,}"
        )
    levels = [2] * digits
    growing = True
    while growing:
        growing = False
        for position in sorted(range(digits), key=lambda digit: levels[digit]):
            if math.prod(levels) // levels[position] * (levels[position] + 1) <= codes:
                levels[position] += 1
                growing = True
                break
    return tuple(levels)


def code_of(digits: Int[Array, " digits"], levels: Sequence[int]) -> Int[Array, ""]:
    """The joint code of digits; the first digit is the most significant."""
    return (digits * jnp.asarray(_place_values(levels))).sum().astype(jnp.int32)


def digits_of(code: Int[Array, ""], levels: Sequence[int]) -> Int[Array, " digits"]:
    """The digits of a joint code: the inverse of `code_of`."""
    return code // jnp.asarray(_place_values(levels)) % jnp.asarray(levels)


def _place_values(levels: Sequence[int]) -> list[int]:
    return [math.prod(levels[position + 1 :]) for position in range(len(levels))]
