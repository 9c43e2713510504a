"""How far the codes stand for what was done: the learned discretization on new data."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saqrl.quantizers import Codec
from saqrl.training.preparation import Prepared

# Rows that are looked at: all codes of each are decoded.
LOOKED_AT = 256
# Share of recorded decisions that codes count as standing for: what lies farther off is uncovered.
COVERED = 0.95


@jax.jit
def _nearest(
    codec: Codec, features: Float[Array, "n features"], actions: Float[Array, "n act"]
) -> Float[Array, " n"]:
    """Of each row the root mean square distance to the nearest decoded code."""
    codes = jnp.arange(codec.num_codes)

    def look(row: tuple[Array, Array]) -> Array:
        decoded = jax.vmap(type(codec).decode, (None, None, 0))(codec, row[0], codes)
        squares = jnp.square(decoded - row[1]).mean(-1)
        if (there := getattr(codec, "exists", None)) is not None:
            squares = jnp.where(there, squares, jnp.inf)
        return jnp.sqrt(squares.min())

    return jax.lax.map(look, (features, actions), batch_size=16)


def looked_at(rows: Prepared) -> Int[np.ndarray, " looked_at"]:
    """Some rows, evenly; of fewer some twice."""
    return np.linspace(0, len(rows.features) - 1, LOOKED_AT).astype(np.int64)


def distances(codec: Codec, rows: Prepared) -> Float[np.ndarray, " looked_at"]:
    """To the nearest decoded code, as a share of half an action's range; of rows `looked_at`."""
    places = looked_at(rows)
    found = _nearest(codec, jnp.asarray(rows.features[places]), jnp.asarray(rows.actions[places]))
    return np.asarray(found)


class Coverage:
    """Judges new decisions by how near codes come to recorded ones."""

    def __init__(self, codec: Codec, recorded: Prepared):
        known = distances(codec, recorded)
        self.error, self.limit = float(known.mean()), float(np.quantile(known, COVERED))

    def of(self, codec: Codec, rows: Prepared) -> dict[str, Any]:
        """What `judged` says of these rows."""
        return self.judged(distances(codec, rows))

    def judged(self, found: Float[np.ndarray, " looked_at"]) -> dict[str, Any]:
        """`code_error`, the mean distance, and `uncovered`, the share beyond the limit."""
        uncovered = float((found > self.limit).mean())
        return {"code_error": float(found.mean()), "uncovered": uncovered}
