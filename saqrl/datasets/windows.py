"""Windows: the last observations of an episode side by side, what a policy with a history sees.

Oldest first, the current one last; before an episode's start its first observation is repeated.
"""

import numpy as np
from jaxtyping import Float32, Int64

from saqrl.datasets.transitions import Transitions


def windows(
    transitions: Transitions, history: int, rows: Int64[np.ndarray, " n"] | None = None
) -> Float32[np.ndarray, "n history*obs"]:
    """The window at each of the rows, by default at all. ValueError if history < 1."""
    _require_history(history)
    if history == 1:
        return transitions.observations if rows is None else transitions.observations[rows]
    rows = np.arange(len(transitions)) if rows is None else rows
    seen = transitions.observations[_last(transitions, rows, history)]
    return seen.reshape(len(rows), -1)


def next_windows(
    transitions: Transitions, rows: Int64[np.ndarray, " n"], history: int
) -> Float32[np.ndarray, "n history*obs"]:
    """The window after the action of each row: it ends with the row's own next observation."""
    _require_history(history)
    following = transitions.next_observations[rows]
    if history == 1:
        return following
    seen = transitions.observations[_last(transitions, rows, history - 1)]
    return np.concatenate([seen, following[:, None]], axis=1).reshape(len(rows), -1)


def _last(
    transitions: Transitions, rows: Int64[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, "n count"]:
    """The last `count` rows up to each row, none before the start of its episode."""
    starts = transitions.episode_starts
    own = starts[np.searchsorted(starts, rows, side="right") - 1]
    return np.maximum(rows[:, None] + np.arange(1 - count, 1), own[:, None])


def _require_history(history: int) -> None:
    if history < 1:
        raise ValueError(f"history is {history}; it must be at least 1")
