"""The skill: how well a policy's possible actions fit the recorded ones, without a simulator."""

import numpy as np
from jaxtyping import Float, Int64

from saqrl.datasets import Transitions
from saqrl.datasets.windows import windows
from saqrl.policy import Act, Policy
from saqrl.policy.distribution import energy_score, spread

# Maximum number of states: a second or two of work.
DECISIONS = 768


def held_out_skill(policy: Policy, log: Transitions, *, act: Act | None = None) -> float | None:
    """By what share the policy is nearer to the recorded actions than repeating the last command.

    1: it plays exactly the recorded actions. 0: it is as near as repeating the last command. Below
    0: it is worse. Distances are energy scores of all possible actions, in units of each
    dimension's range, over the steps that a decision plays: a longer chunk must predict more, and
    so must the last command. On Push-T it ranks good and bad policies as their rollouts do, which
    the error alone does not (benchmarks/offline_figures.py).

    None if it is not defined: no two rows follow each other, or the action never changes.
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
    """Distances from the recorded actions: of the decision in each row, and of the action before.

    Means over those steps of the action horizon that are in the episode. The first row of an
    episode has no action before, so its own action is used.
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
