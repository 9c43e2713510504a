"""Action chunks: h consecutive actions as one, with the reward and successor that go with them."""

import numpy as np
from jaxtyping import Float32, Int64

from saqrl.datasets.transitions import Transitions


def chunk_actions(transitions: Transitions, horizon: int) -> Float32[np.ndarray, "n horizon*act"]:
    """Row t holds a_t, ..., a_{t+horizon-1} side by side, in the environment's units.

    Past the end of the episode its last action is repeated. Raises ValueError if horizon < 1.
    """
    _require_horizon(horizon)
    last = _last_rows(transitions)
    steps, width = transitions.actions.shape
    chunks = np.empty((steps, horizon, width), np.float32)
    for offset in range(horizon):
        chunks[:, offset] = transitions.actions[np.minimum(np.arange(steps) + offset, last)]
    return chunks.reshape(steps, horizon * width)


def chunk_rewards(
    transitions: Transitions, *, horizon: int, discount: float, between: float | None = None
) -> tuple[Float32[np.ndarray, " n"], Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """(rewards, next_rows, discounts) of the chunk from each row on, cut at the episode's end.

    rewards[t] = sum of discount^i r_{t+i} over the m = next_rows[t] - t + 1 steps taken; the
    observation after the chunk is next_observations[next_rows[t]], and what its value counts is
    discounts[t] = discount^m (1 - terminated[next_rows[t]]). With horizon 1 these are r_t, t and
    discount (1 - terminated_t). Sums are float64. With a discount `between` decisions that stands
    in place of discount^m, for a chunk that the episode's end cuts short too.
    Raises ValueError if horizon < 1 or a discount leaves [0, 1].
    """
    _require_horizon(horizon)
    for given in (discount, 0.0 if between is None else between):
        if not 0 <= given <= 1:
            raise ValueError(f"discount is {given}; it must be from 0 to 1")
    last, rows = _last_rows(transitions), np.arange(len(transitions))
    rewards = np.zeros(len(transitions), np.float64)
    for offset in range(horizon):
        inside = rows + offset <= last
        rewards[inside] += discount**offset * transitions.rewards[rows[inside] + offset]
    next_rows = np.minimum(rows + horizon - 1, last)
    following = float(discount) ** (next_rows - rows + 1) if between is None else between
    discounts = following * ~transitions.terminated[next_rows]
    return rewards.astype(np.float32), next_rows, discounts.astype(np.float32)


def _last_rows(transitions: Transitions) -> Int64[np.ndarray, " n"]:
    """Of each row, the last row of its episode."""
    return np.repeat(transitions.episode_ends - 1, transitions.episode_lengths)


def _require_horizon(horizon: int) -> None:
    if horizon < 1:
        raise ValueError(f"chunk is {horizon}; it must be at least 1")
