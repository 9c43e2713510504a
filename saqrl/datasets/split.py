"""Training and held-out episodes."""

import numpy as np
from jaxtyping import Int64

from saqrl.datasets.transitions import Transitions


def split_episodes(
    transitions: Transitions, *, held_out_fraction: float, seed: int
) -> tuple[Transitions, Transitions | None]:
    """(training, held out), whole episodes in the file's order, chosen by `seed`.

    As `choose_episodes`; nothing is held out (None) when the fraction is 0 or there is a single
    episode.
    """
    training, held_out = choose_episodes(
        transitions, held_out_fraction=held_out_fraction, seed=seed
    )
    if not held_out.size:
        return transitions, None
    return transitions.select_episodes(training), transitions.select_episodes(held_out)


def thinned(
    transitions: Transitions, episodes: Int64[np.ndarray, " chosen"], *, rows: int
) -> Transitions:
    """Of the named episodes some from everywhere among them, about so many rows, never more.

    The last one may be cut short.
    """
    lengths = transitions.episode_lengths[episodes]
    if lengths.sum() > rows:
        count = max(rows * len(episodes) // int(lengths.sum()), 1)
        episodes = episodes[np.linspace(0, len(episodes) - 1, count).astype(np.int64)]
    starts = transitions.episode_starts[episodes]
    ends = np.cumsum(transitions.episode_lengths[episodes])
    begins = np.append(0, ends[:-1])
    taken = np.repeat(starts - begins, ends - begins)[:rows]
    return transitions.select_rows(taken + np.arange(len(taken)), begins[begins < rows])


def choose_episodes(
    transitions: Transitions, *, held_out_fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " training"], Int64[np.ndarray, " held_out"]]:
    """The numbers of the training and of the held-out episodes, in the file's order.

    Copies of an episode (`groups`) stay together. At least one episode stays on each side; nothing
    is held out when the fraction is 0 or there is a single episode.
    Raises ValueError unless 0 <= held_out_fraction < 1.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(
            f"the held-out fraction is {held_out_fraction}; it must be at least 0 and less than 1"
        )
    groups = transitions.groups
    if groups is None:
        groups = np.arange(transitions.num_episodes)
    distinct = np.unique(groups)
    if held_out_fraction == 0 or len(distinct) == 1:
        return np.arange(len(groups)), np.arange(0)
    count = min(max(round(held_out_fraction * len(distinct)), 1), len(distinct) - 1)
    shuffled = np.random.default_rng(seed).permutation(distinct)
    held = np.isin(groups, shuffled[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)
