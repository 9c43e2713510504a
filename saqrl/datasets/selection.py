"""Which episodes of a log are kept, and what they are rewarded with."""

from dataclasses import replace

import numpy as np

from saqrl.datasets.errors import DatasetError, counted
from saqrl.datasets.options import ReadOptions, Rewards
from saqrl.datasets.transitions import Transitions

# Of the draw of a fraction: the same episodes every time.
FRACTION_SEED = 0


def rewarded(transitions: Transitions, rewards: Rewards) -> Transitions:
    """The log with other rewards.

    success-at-end: 1 on the last step of each episode, which then terminates, 0 elsewhere.
    none: no rewards at all; what terminated still does.
    """
    if rewards == "file":
        return transitions
    held_out = transitions.held_out and rewarded(transitions.held_out, rewards)
    if rewards == "none":
        nothing = np.zeros(len(transitions), np.float32)
        changed = replace(transitions, rewards=nothing, has_rewards=False, held_out=held_out)
        return changed.noted("Rewards are ignored (--dataset.rewards none).", rewards=rewards)
    last = transitions.last_rows
    # Without the reader's remark that there are none.
    notes = [note for note in transitions.notes if not note.startswith("There are no rewards")]
    changed = replace(
        transitions,
        rewards=last.astype(np.float32),
        terminated=last,
        has_rewards=True,
        held_out=held_out,
        successes=np.ones(transitions.num_episodes, bool),
        provenance={**transitions.provenance, "notes": notes},
    )
    return changed.noted(
        "Every episode counts as a success (--dataset.rewards success-at-end): reward 1 on "
        "its last step, which terminates it.",
        rewards=rewards,
    )


def selected(spec: str, transitions: Transitions, options: ReadOptions) -> Transitions:
    """The episodes that pass the filters, then the drawn fraction of them."""
    kept = np.arange(transitions.num_episodes)
    reasons: dict[str, object] = {}
    for name, limit, measure in (
        ("min_return", options.min_return, np.add),
        ("min_reward", options.min_reward, np.maximum),
    ):
        if limit is None:
            continue
        if not transitions.has_rewards:
            raise DatasetError(
                f"{spec}: dataset.{name} needs rewards, and the data have none; remove that "
                "flag, or pass --dataset.rewards success-at-end"
            )
        values = measure.reduceat(
            transitions.rewards.astype(np.float64), transitions.episode_starts
        )
        kept = kept[values[kept] >= limit]
        reasons[name] = limit
        if not kept.size:
            raise DatasetError(
                f"{spec}: no episode passes dataset.{name} {limit:g}; the highest of the "
                f"{counted(transitions.num_episodes, 'episode')} is {values.max():g}"
            )
    if options.fraction < 1:
        count = max(round(options.fraction * len(kept)), 1)
        kept = np.sort(np.random.default_rng(FRACTION_SEED).permutation(kept)[:count])
        reasons["fraction"] = options.fraction
    if not reasons:
        return transitions
    note = (
        f"{len(kept):,} of {counted(transitions.num_episodes, 'episode')} are kept ("
        + ", ".join(f"{name.replace('_', '-')} {value}" for name, value in reasons.items())
        + ")."
    )
    return transitions.select_episodes(kept).noted(note, selected=reasons)


def best_episodes(spec: str, transitions: Transitions, share: float) -> Transitions:
    """Keep a share of the episodes, at least one: those with the highest returns.

    Episodes as good as the worst of them stay too, and of the file's own held-out episodes those
    that are as good. 1 keeps all. DatasetError: not above 0 and at most 1, or no rewards.
    """
    if not 0 < share <= 1:
        raise DatasetError(f"data-best is {share:g}; it must be above 0 and at most 1")
    if share == 1:
        return transitions
    if not transitions.has_rewards:
        raise DatasetError(
            f"{spec}: data-best needs rewards, and the data have none; remove that flag, or "
            "pass --dataset.rewards success-at-end"
        )
    returns, held = transitions.episode_returns, transitions.num_episodes
    least = np.sort(returns)[-max(round(share * held), 1)]
    kept = np.flatnonzero(returns >= least)
    other = transitions.held_out
    if other is not None:
        good = np.flatnonzero(other.episode_returns >= least)
        other = other.select_episodes(good) if good.size else None
    return replace(transitions.select_episodes(kept), held_out=other).noted(
        f"{len(kept):,} of {counted(held, 'episode')} are kept: the best, with a return of "
        f"{least:g} or more.",
        best=share,
    )
