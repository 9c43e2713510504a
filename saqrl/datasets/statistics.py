"""Range and moments of columns, a block of rows at a time, so that size costs no memory."""

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


def column_statistics(
    table: Float32[np.ndarray, "n columns"], *, block_rows: int = BLOCK_ROWS
) -> ColumnStatistics:
    """Statistics in float64 of a table of finite numbers with at least one row.

    Blocks are merged by the parallel formula of Chan, Golub and LeVeque (1979).
    """
    width = table.shape[1]
    minimum, maximum = np.full(width, np.inf), np.full(width, -np.inf)
    mean, squares, rows = np.zeros(width), np.zeros(width), 0
    for start in range(0, len(table), block_rows):
        block = np.asarray(table[start : start + block_rows], np.float64)
        minimum = np.minimum(minimum, block.min(0))
        maximum = np.maximum(maximum, block.max(0))
        block_mean, total = block.mean(0), rows + len(block)
        shift = block_mean - mean
        squares += ((block - block_mean) ** 2).sum(0) + shift**2 * rows * len(block) / total
        mean += shift * len(block) / total
        rows = total
    return ColumnStatistics(minimum, maximum, mean, np.sqrt(squares / rows))
