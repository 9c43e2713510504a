"""A run's dataset with codes for actions, for libraries of discrete offline RL."""

from dataclasses import replace

import numpy as np

from saqrl.datasets import Transitions
from saqrl.policy import CodeController, Policy
from saqrl.training.codes import encode_all
from saqrl.training.preparation import prepare
from saqrl.training.settings import Settings


def coded_trajectories(
    data: Transitions, settings: Settings, policy: Policy
) -> dict[str, np.ndarray]:
    """The dataset with codes for actions, one row a decision, as d3rlpy's MDPDataset asks.

    observations (n, obs) raw, actions (n, 1) codes, rewards (n, 1) of the decision's steps
    (discounted inside a chunk, in the data's own units), terminals and timeouts (n,) at the
    episodes' ends. With action chunks an episode's decisions are `chunk` steps apart.
    ValueError: the policy has no codes.
    """
    if not isinstance(policy.controller, CodeController):
        raise ValueError("this policy is continuous: it has no codes to write")
    # A code means the same action in all data.
    data = replace(data, action_range=policy.action_range)
    codec = policy.controller.quantizer.codec
    prepared = prepare(data, settings, policy.observation_scaling, 1.0)
    codes = np.asarray(encode_all(codec, prepared.action_batch()))
    rows, last = [], []
    for start, end in zip(data.episode_starts, data.episode_ends, strict=True):
        decisions = np.arange(start, end, settings.features.chunk)
        rows.append(decisions)
        last.append(decisions == decisions[-1])
    chosen, ends = np.concatenate(rows), np.concatenate(last)
    finals = np.repeat(data.episode_ends - 1, [len(r) for r in rows])
    terminals = ends & data.terminated[finals]
    return {
        "observations": data.observations[chosen],
        "actions": codes[chosen, None].astype(np.int32),
        "rewards": prepared.rewards[chosen, None],
        "terminals": terminals.astype(np.float32),
        "timeouts": (ends & ~terminals).astype(np.float32),
    }
