"""Training and held-out episodes."""

import numpy as np

from saqrl.datasets.transitions import Transitions


def split_episodes(
    transitions: Transitions, *, held_out_fraction: float, seed: int
) -> tuple[Transitions, Transitions | None]:
    """(training, held out), whole episodes in the file's order, chosen by `seed`.

    Copies of an episode (`groups`) stay together. At least one episode stays on each side; nothing
    is held out (None) when the fraction is 0 or there is a single episode.
    Raises ValueError unless 0 <= held_out_fraction < 1.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"the held-out fraction is {held_out_fraction}; it must lie in [0, 1)")
    groups = transitions.groups
    if groups is None:
        groups = np.arange(transitions.num_episodes)
    distinct = np.unique(groups)
    if held_out_fraction == 0 or len(distinct) == 1:
        return transitions, None
    count = min(max(round(held_out_fraction * len(distinct)), 1), len(distinct) - 1)
    shuffled = np.random.default_rng(seed).permutation(distinct)
    held = np.isin(groups, shuffled[:count])
    training, held_out = np.flatnonzero(~held), np.flatnonzero(held)
    return transitions.select_episodes(training), transitions.select_episodes(held_out)
