"""Input checks: numbers that a policy cannot use are refused with a one-line error."""

import numpy as np
from jaxtyping import Float32, Int


def check_numbers(
    values: object, shape: tuple[int, ...], *, what: str
) -> Float32[np.ndarray, "..."]:
    """`values` as float32; ValueError for another shape, not numbers, or not finite numbers."""
    array = np.asarray(values)
    if array.shape != shape:
        raise _other_shape(array.shape, shape, what)
    return _finite(array, what)


def check_batch(
    values: object, shape: tuple[int, ...], *, what: str
) -> Float32[np.ndarray, "n ..."]:
    """The same for a batch: `shape` is that of one row of it."""
    array = np.asarray(values)
    if array.ndim != len(shape) + 1:
        raise ValueError(
            f"{what}s have shape {array.shape}; expected (batch, {', '.join(map(str, shape))})"
        )
    if array.shape[1:] != shape:
        raise _other_shape(array.shape[1:], shape, what)
    return _finite(array, what)


def check_codes(values: object, num_codes: int, *, count: int) -> Int[np.ndarray, " n"]:
    """`count` codes below `num_codes`; ValueError names the first that does not exist."""
    codes = np.asarray(values)
    if codes.dtype.kind not in "iu" or codes.shape != (count,):
        raise ValueError(
            f"codes are of type {codes.dtype} and shape {codes.shape}; expected {count} integers"
        )
    outside = codes[(codes < 0) | (codes >= num_codes)]
    if outside.size:
        raise ValueError(f"code {outside[0]} does not exist; codes are 0 to {num_codes - 1}")
    return codes.astype(np.int32)


def window_name(history: int) -> str:
    """What a policy with this history reads, in a message."""
    return "observation" if history == 1 else f"{history}-observation window"


def _other_shape(found: tuple[int, ...], expected: tuple[int, ...], what: str) -> ValueError:
    size = " x ".join(map(str, expected))
    return ValueError(f"the policy reads {what}s of {size} numbers, this one has shape {found}")


def _finite(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"the {what} is of type {array.dtype}; expected numbers")
    # What is too large for float32 becomes an infinity, which is refused below.
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        place = tuple(np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"number {place[-1]} of the {what} is {array[place]}; expected finite numbers"
        )
    return array
