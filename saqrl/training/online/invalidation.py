"""How well the codes cover executed actions: the learned discretization on new data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saqrl.quantizers import Codec
from saqrl.training.preparation import Prepared

# Maximum number of rows that are measured: all codes of each are decoded.
LOOKED_AT = 256
# Share of recorded decisions that count as covered; decisions farther from the codes are uncovered.
COVERED = 0.95


@jax.jit
def _nearest(
    codec: Codec, features: Float[Array, "n features"], actions: Float[Array, "n act"]
) -> Float[Array, " n"]:
    """Root mean square distance of each row to the nearest decoded code."""
    codes = jnp.arange(codec.num_codes)

    def look(row: tuple[Array, Array]) -> Array:
        decoded = jax.vmap(type(codec).decode, (None, None, 0))(codec, row[0], codes)
        squares = jnp.square(decoded - row[1]).mean(-1)
        if (there := getattr(codec, "exists", None)) is not None:
            squares = jnp.where(there, squares, jnp.inf)
        return jnp.sqrt(squares.min())

    return jax.lax.map(look, (features, actions), batch_size=16)


def looked_at(rows: Prepared) -> Int[np.ndarray, " looked_at"]:
    """Evenly spaced rows; if there are too few, some are repeated."""
    return np.linspace(0, len(rows.features) - 1, LOOKED_AT).astype(np.int64)


def distances(codec: Codec, rows: Prepared) -> Float[np.ndarray, " looked_at"]:
    """Distance to the nearest decoded code, relative to half an action's range, for `looked_at`."""
    places = looked_at(rows)
    found = _nearest(codec, jnp.asarray(rows.features[places]), jnp.asarray(rows.actions[places]))
    return np.asarray(found)


class Coverage:
    """Compares the distances of new decisions from codes with those of recorded decisions."""

    def __init__(self, codec: Codec, recorded: Prepared):
        known = distances(codec, recorded)
        self.error, self.limit = float(known.mean()), float(np.quantile(known, COVERED))

    def of(self, codec: Codec, rows: Prepared) -> dict[str, Any]:
        """`judged` for these rows."""
        return self.judged(distances(codec, rows))

    def judged(self, found: Float[np.ndarray, " looked_at"]) -> dict[str, Any]:
        """`code_error`, the mean distance, and `uncovered`, the share beyond the limit."""
        uncovered = float((found > self.limit).mean())
        return {"code_error": float(found.mean()), "uncovered": uncovered}
