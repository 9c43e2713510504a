"""Training and held-out episodes."""

import numpy as np

from saqrl.datasets.transitions import Transitions


def split_episodes(
    transitions: Transitions, *, held_out_fraction: float, seed: int
) -> tuple[Transitions, Transitions | None]:
    """(training, held out), whole episodes in the file's order, chosen by `seed`.

    At least one episode stays on each side. Nothing is held out (None) when the fraction is 0 or
    there is a single episode. Raises ValueError unless 0 <= held_out_fraction < 1.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"the held-out fraction is {held_out_fraction}; it must lie in [0, 1)")
    episodes = transitions.num_episodes
    if held_out_fraction == 0 or episodes == 1:
        return transitions, None
    count = min(max(round(held_out_fraction * episodes), 1), episodes - 1)
    shuffled = np.random.default_rng(seed).permutation(episodes)
    held_out, training = np.sort(shuffled[:count]), np.sort(shuffled[count:])
    return transitions.select_episodes(training), transitions.select_episodes(held_out)
