"""Range and moments of columns, a block of rows at a time, so that size costs no memory."""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

BLOCK_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class ColumnStatistics:
    """Of each column, in the column's own units; `deviation` divides by n."""

    minimum: Float64[np.ndarray, " columns"]
    maximum: Float64[np.ndarray, " columns"]
    mean: Float64[np.ndarray, " columns"]
    deviation: Float64[np.ndarray, " columns"]

    @property
    def constant(self) -> Bool[np.ndarray, " columns"]:
        """Whether nothing but rounding moves: float32 keeps about 1e-7 of a column's size."""
        still: Bool[np.ndarray, " columns"]
        still = self.deviation <= 1e-6 * np.maximum(np.abs(self.mean), 1)
        return still


def blocks(table: np.ndarray, *, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
    """The rows in order, so many at a time; a mapped table leaves memory as it goes by."""
    for start in range(0, len(table), rows):
        yield table[start : start + rows]
        release(table)


def release(table: np.ndarray) -> None:
    """Let a memory-mapped table leave memory; it is read again where it is used again."""
    base = getattr(table, "base", None)
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def column_statistics(
    table: Float32[np.ndarray, "n columns"],
    *,
    block_rows: int = BLOCK_ROWS,
    columns: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> ColumnStatistics:
    """Statistics in float64 of a table of finite numbers with at least one row.

    `columns` says what of a block of rows is looked at, in place of its own columns. Blocks are
    merged by the parallel formula of Chan, Golub and LeVeque (1979).
    """
    width = columns(table[:1]).shape[1]
    minimum, maximum = np.full(width, np.inf), np.full(width, -np.inf)
    mean, squares, rows = np.zeros(width), np.zeros(width), 0
    for given in blocks(table, rows=block_rows):
        block = np.asarray(columns(given), np.float64)
        minimum = np.minimum(minimum, block.min(0))
        maximum = np.maximum(maximum, block.max(0))
        block_mean, total = block.mean(0), rows + len(block)
        shift = block_mean - mean
        squares += ((block - block_mean) ** 2).sum(0) + shift**2 * rows * len(block) / total
        mean += shift * len(block) / total
        rows = total
    return ColumnStatistics(minimum, maximum, mean, np.sqrt(squares / rows))
