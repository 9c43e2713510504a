"""Scores of a policy in an environment, as one record."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from saqrl.datasets import EnvironmentSpec, Transitions
from saqrl.environments.make import make_environment
from saqrl.environments.scores import normalized_score
from saqrl.policy import Act, Policy
from saqrl.policy.rollout import Arena, Episodes, play_together
from saqrl.training.progress import Reporter

# The fields of a score where there is no environment to measure it in.
NO_SCORE: Mapping[str, None] = dict.fromkeys(
    ("return_mean", "return_std", "success_rate", "normalized_score", "max_reward_mean")
)


class Evaluation(NamedTuple):
    """A request to play the episodes, made by yielding it; the answer is the summary."""

    policy: Policy
    arena: Arena
    environment_id: str
    episodes: int
    act: Act
    seed: int


def evaluate(
    policy: Policy,
    arena: Arena,
    environment_id: str,
    *,
    episodes: int,
    act: Act,
    seed: int,
    reporter: Reporter,
    stage: str = "evaluation",
) -> dict[str, Any]:
    """Play the episodes and summarise them."""
    asked = Evaluation(policy, arena, environment_id, episodes, act, seed)
    return evaluate_together([asked], reporter, stage)[0]


def evaluate_together(
    requests: Sequence[Evaluation], reporter: Reporter, stage: str = "evaluation"
) -> list[dict[str, Any]]:
    """The summaries of several policies, those of like evaluations played side by side."""
    answers: dict[int, dict[str, Any]] = {}
    alike: dict[Any, list[int]] = defaultdict(list)
    for position, asked in enumerate(requests):
        alike[asked.episodes, asked.act, asked.seed].append(position)
    for (episodes, act, seed), members in alike.items():
        with reporter.stage(stage, episodes, unit="episodes") as update:
            played = play_together(
                [(requests[member].arena, requests[member].policy) for member in members],
                episodes=episodes,
                act=act,
                seed=seed,
                progress=lambda done: update(done, ""),
            )
        for member, result in zip(members, played, strict=True):
            scores = summarize(result, requests[member].environment_id)
            answers[member] = {"act": act, "episodes": episodes, **scores}
    return [answers[position] for position in range(len(requests))]


def summarize(played: Episodes, environment_id: str) -> dict[str, float | None]:
    """Means over episodes; null where the task reports nothing of the kind."""
    mean = float(played.returns.mean())
    success = None if played.successes is None else float(played.successes.mean())
    return {
        "return_mean": mean,
        "return_std": float(played.returns.std()),
        "success_rate": success,
        "normalized_score": normalized_score(environment_id, mean),
        "max_reward_mean": float(played.max_rewards.mean()),
        "length_mean": float(played.lengths.mean()),
    }


def open_arena(environment: EnvironmentSpec) -> Arena:
    """Environments of one kind, made when the first episodes are played."""
    return Arena(lambda: make_environment(environment.id, options=environment.options))


def _check_layout(
    environment_id: str, made: tuple[tuple[str, int], ...], data: tuple[tuple[str, int], ...]
) -> None:
    """ValueError names the first part of an observation that differs, where both name theirs."""
    if not made or not data:
        return
    for place, (ours, theirs) in enumerate(zip_longest(data, made)):
        if ours == theirs:
            continue
        words = [f"{part[0]} ({part[1]})" if part else "nothing" for part in (ours, theirs)]
        raise ValueError(
            f"part {place} of an observation is {words[0]} in the data and {words[1]} in "
            f"{environment_id}: choose the same keys in the same order with --dataset.keys"
        )


def check_environment(environment: EnvironmentSpec, transitions: Transitions) -> None:
    """Make the environment once; ValueError where its spaces do not match the data."""
    made = make_environment(environment.id, options=environment.options)
    try:
        observed, acted = made.observation_space.shape, made.action_space.shape
        expected = transitions.observations.shape[1:], transitions.actions.shape[1:]
        _check_layout(environment.id, made.layout, transitions.observation_keys)
        for what, of_env, of_data in zip(
            ("observations", "actions"), (observed, acted), expected, strict=True
        ):
            if of_env is None or int(np.prod(of_env)) != of_data[0]:
                raise ValueError(
                    f"{environment.id} has {what} of shape {of_env}, the data {of_data}: name the "
                    "environment that the data came from with --env"
                )
    finally:
        made.close()
