"""How well what a policy may play fits what was recorded: the figure of a run without a robot."""

import numpy as np
from jaxtyping import Float, Int64

from saqrl.datasets import Transitions
from saqrl.datasets.windows import windows
from saqrl.policy import Act, Policy
from saqrl.policy.distribution import energy_score, spread

# States that are decided in: a second or two.
DECISIONS = 768


def held_out_skill(policy: Policy, log: Transitions, *, act: Act | None = None) -> float | None:
    """By what share the policy is nearer to the recorded actions than holding the last command.

    1: every recorded action was certain to be played. 0: no better than to play on what was last
    played. Below 0: worse. Distances are energy scores of all that may be played, in units of each
    dimension's range, over the steps that a decision plays: a longer chunk has more to foresee, and
    so has the last command. Of Push-T's policies this orders good and bad ones as their rollouts
    do, which the error alone does not (benchmarks/offline_figures.py).

    None where nothing is to be told: no two rows follow each other, or the action never changes.
    """
    rows = followers(log)
    if not len(rows):
        return None
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), DECISIONS)).astype(np.int64)]
    missed, held = distances(policy, log, rows, act=act)
    if not held.mean() > 1e-9:
        return None
    return float(1 - missed.mean() / held.mean())


def followers(log: Transitions) -> Int64[np.ndarray, " n"]:
    """Rows that follow another one of their episode."""
    return np.setdiff1d(np.arange(len(log)), log.episode_starts)


def distances(
    policy: Policy, log: Transitions, rows: Int64[np.ndarray, " n"], *, act: Act | None = None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """How far the decision in each row is from what was recorded, and the action before it is.

    Means over those steps of the action horizon that lie in the episode. In the first row of an
    episode, where nothing was played before, its own action is held.
    """
    found = spread(policy, windows(log, policy.history, rows), act=act)
    unit = policy.action_range.to_unit
    first, last = (
        np.repeat(bounds, log.episode_lengths)[rows]
        for bounds in (log.episode_starts, log.episode_ends - 1)
    )
    before = unit(log.actions[np.maximum(rows - 1, first)])
    missed, held, counted = (np.zeros(len(rows)) for _ in range(3))
    for step in range(policy.action_horizon):
        here = rows + step <= last
        happened = unit(log.actions[(rows + step)[here]])
        atoms = unit(found.chunks[here, :, step])
        missed[here] += energy_score(found.probabilities[here], atoms, happened)
        held[here] += np.linalg.norm(happened - before[here], axis=-1)
        counted += here
    return missed / counted, held / counted
