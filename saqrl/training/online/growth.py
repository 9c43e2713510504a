"""Networks with an axis of codes: add rows, copy one code's row to another, mask rows.

A spare row has DISALLOWED as its prior's bias and zeros as weights: its log-probability is
DISALLOWED in every state, and no agent sums over it (`operators.exists`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saqrl import nn
from saqrl.agents.operators import DISALLOWED

# The axis of the codes in each leaf, or None.
Axes = tuple[int | None, ...]
LOG_2 = 0.6931472


def code_axes(make: Callable[[int], Any]) -> Axes:
    """For each leaf of `make(codes)`: the axis whose length depends on the number of codes."""
    one, other = (jax.tree.leaves(jax.eval_shape(partial(make, codes))) for codes in (2, 3))
    return tuple(
        next((at for at, size in enumerate(a.shape) if size != b.shape[at]), None)
        for a, b in zip(one, other, strict=True)
    )


def widened(tree: Any, axes: Axes, count: int) -> Any:
    """Add this many rows of zeros."""

    def pad(leaf: Array, axis: int | None) -> Array:
        if axis is None:
            return leaf
        wider = [(0, count if at == axis else 0) for at in range(leaf.ndim)]
        return jnp.pad(leaf, wider)

    return _mapped(pad, tree, axes)


def copied(tree: Any, axes: Axes, source: Int[Array, ""], target: Int[Array, ""]) -> Any:
    """Replace the rows of `target` by those of `source`, also in the optimiser's moments."""

    def copy(leaf: Array, axis: int | None) -> Array:
        if axis is None:
            return leaf
        row = jax.lax.dynamic_index_in_dim(leaf, source, axis)
        return jax.lax.dynamic_update_slice_in_dim(leaf, row, target, axis)

    return _mapped(copy, tree, axes)


def _mapped(change: Callable[[Array, int | None], Array], tree: Any, axes: Axes) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    changed = [change(*pair) for pair in zip(leaves, axes, strict=True)]
    return jax.tree.unflatten(structure, changed)


def halved(network: nn.MLP, source: Int[Array, ""], target: Int[Array, ""]) -> nn.MLP:
    """Give `source` and its copy `target` half of the probability each, in every state."""
    *before, last = network.biases
    for code in (source, target):
        last = last.at[..., code].add(-LOG_2)
    return eqx.tree_at(lambda net: net.biases, network, (*before, last))


def shares_changed(agent: Any, state: Any, change: Callable[[nn.MLP], nn.MLP]) -> Any:
    """The agent's state with its own probability networks changed (`CodeValues.shares`)."""
    shares: Callable[[Any], list[nn.MLP]] = getattr(agent, "shares", lambda _: [])
    networks = shares(state)
    return eqx.tree_at(shares, state, [change(own) for own in networks]) if networks else state


def closed(prior: nn.MLP, live: Bool[Array, " codes"]) -> nn.MLP:
    """Set the probability of spare rows to 0."""
    *weights, weight = prior.weights
    *biases, bias = prior.biases
    return eqx.tree_at(
        lambda net: (net.weights, net.biases),
        prior,
        ((*weights, jnp.where(live, weight, 0)), (*biases, jnp.where(live, bias, DISALLOWED))),
    )


def chosen(
    near: Float[np.ndarray, " rows"],
    apart: Float[np.ndarray, "rows rows"],
    *,
    limit: float,
    most: int,
) -> list[int]:
    """Rows whose actions become codes, chosen greedily by the reduction of the summed distances.

    near: distance of each row to the nearest code; apart[i, j]: distance of row j to row i's latent
    decoded in its state. A row becomes a code only if it is beyond the limit and its own latent
    decodes nearer to it than every code.
    """
    found: list[int] = []
    while len(found) < most:
        gains = (near - apart).clip(0).sum(-1)
        able = (near > limit) & (apart.diagonal() < near)
        if not able.any():
            break
        best = int((gains * able).argmax())
        found.append(best)
        near = np.minimum(near, apart[best])
    return found
