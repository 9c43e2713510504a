"""Recorded episodes of a policy as a data set: an npz as `saqrl collect` and `convert` write it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.datasets import EnvironmentSpec
from saqrl.datasets.assembly import assemble
from saqrl.datasets.extras import NAME, extras_of
from saqrl.datasets.formats.npz import flat_fields
from saqrl.datasets.formats.writers import check_destination, save_arrays
from saqrl.policy.policy import Policy
from saqrl.policy.rollout import Episodes, Steps

# Environment seeds of recorded episodes are lower than those of evaluations by this number, so that
# policies trained on them are evaluated from other starts.
RECORDING_SEEDS = 50_000


def check_recording(path: Path) -> None:
    """ValueError, FileExistsError or FileNotFoundError if no data set can be written there."""
    check_destination(path, flag="--record")


def recording_seed(seed: int, episodes: int) -> int:
    """The seed of recorded episodes; ValueError if some would start as an evaluation's do."""
    if not 0 <= seed <= RECORDING_SEEDS - episodes:
        raise ValueError(
            f"seed is {seed}; with --record and {episodes:,} episodes it must be from 0 to "
            f"{RECORDING_SEEDS - episodes:,}: larger seeds give the starts of evaluations"
        )
    return seed - RECORDING_SEEDS


def write_recording(
    path: Path,
    policy: Policy,
    environment: EnvironmentSpec,
    played: Episodes,
    *,
    about: Mapping[str, Any],
) -> None:
    """Write played episodes with their steps, the whole file or none.

    `about` is added to the provenance. The action range is the policy's, which contains all
    actions. Raises ValueError if a reward is not finite.
    """
    assert played.steps is not None
    log = assemble(
        {
            "observations": np.concatenate([steps.observations[:-1] for steps in played.steps]),
            "actions": np.concatenate([steps.actions for steps in played.steps]),
            "rewards": np.concatenate([steps.rewards for steps in played.steps]),
            "next_observations": np.concatenate([_successors(steps) for steps in played.steps]),
            "terminals": np.concatenate(
                [_ends(steps) & steps.terminated for steps in played.steps]
            ),
            "timeouts": np.concatenate([_ends(steps) for steps in played.steps]),
            "action_low": policy.action_range.low,
            "action_high": policy.action_range.high,
        },
        source=str(path),
        environment=environment,
    ).named(successes=played.successes)
    agent = policy.description.get("agent", {}).get("name")
    provenance = {
        "made_by": "saqrl evaluate --record",
        "agent": agent,
        "actions": policy.description.get("kind"),
        "act": policy.default_act,
        "act_temperature": policy.act_temperature,
        "episodes": len(played.steps),
        **about,
    }
    arrays = {
        **flat_fields(log),
        "environment_id": np.array(environment.id),
        NAME: np.array(json.dumps(extras_of(log))),
        "provenance": np.array(json.dumps(provenance, sort_keys=True)),
    }
    save_arrays(path, arrays)


def _successors(steps: Steps) -> np.ndarray:
    """The observation after each step; if a simulator ends with nan or infinity, the one before."""
    following = steps.observations[1:]
    return np.where(np.isfinite(following), following, steps.observations[:-1])


def _ends(steps: Steps) -> np.ndarray:
    return np.arange(len(steps.rewards)) == len(steps.rewards) - 1
