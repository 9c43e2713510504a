"""Scores of a policy in an environment, as one record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from saqrl.datasets import EnvironmentSpec, Transitions
from saqrl.environments.flat import FlatEnvironment
from saqrl.environments.make import make_environment
from saqrl.environments.scores import normalized_score
from saqrl.policy import Act, Policy
from saqrl.policy.rollout import Arena, Episodes
from saqrl.training.progress import Reporter


@dataclass(frozen=True)
class Scores:
    """Means over episodes; None where there is no environment, or it reports nothing of the kind.

    Sources of the normalised score: `saqrl.environments.scores`.
    """

    act: Act
    episodes: int
    act_temperature: float = 1.0
    return_mean: float | None = None
    return_std: float | None = None
    success_rate: float | None = None
    normalized_score: float | None = None
    max_reward_mean: float | None = None
    length_mean: float | None = None


# Share of an action's range that a recorded one may lie beyond it: rounding.
BOUND_SLACK = 1e-3
# What is averaged over a run's last evaluations.
MEASURES = ("return_mean", "return_std", "success_rate", "normalized_score", "max_reward_mean")


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
    record: Callable[[Episodes], None] | None = None,
) -> Scores:
    """Play the episodes and summarise them; `record` gets them with their steps."""
    with reporter.stage(stage, episodes, unit="episodes") as update:
        played = arena.play(
            policy,
            episodes=episodes,
            act=act,
            seed=seed,
            keep_steps=record is not None,
            progress=lambda done: update(done, ""),
        )
    if record is not None:
        record(played)
    mean = float(played.returns.mean())
    return Scores(
        act=act,
        episodes=episodes,
        act_temperature=policy.act_temperature,
        return_mean=mean,
        return_std=float(played.returns.std()),
        success_rate=None if played.successes is None else float(played.successes.mean()),
        normalized_score=normalized_score(environment_id, mean),
        max_reward_mean=float(played.max_rewards.mean()),
        length_mean=float(played.lengths.mean()),
    )


def measure_of(environment_id: str, record: Mapping[str, Any]) -> tuple[str, float]:
    """The field that counts in an environment, and what makes it a percentage.

    Push-T counts the highest reward of an episode, D4RL's tasks their normalised score, others
    success where they report it, else the return.
    """
    if environment_id.startswith("gym_pusht/"):
        return "max_reward_mean", 100.0
    if record["normalized_score"] is not None:
        return "normalized_score", 1.0
    if record["success_rate"] is not None:
        return "success_rate", 100.0
    return "return_mean", 1.0


def episode_scores(environment_id: str, played: Episodes) -> Float[np.ndarray, " episodes"]:
    """Of each episode, in the measure that counts in its environment."""
    success = None if played.successes is None else float(played.successes.mean())
    record = {"normalized_score": normalized_score(environment_id, 0.0), "success_rate": success}
    columns = {"max_reward_mean": played.max_rewards, "success_rate": played.successes}
    scores = columns.get(measure_of(environment_id, record)[0])
    return np.asarray(played.returns if scores is None else scores, np.float64)


def open_arena(environment: EnvironmentSpec | None) -> Arena:
    """Environments of one kind, made when the first episodes are played."""

    def make() -> FlatEnvironment:
        if environment is None:
            raise ValueError("there is no environment to evaluate in: give one with --env")
        return make_environment(environment.id, options=environment.options)

    return Arena(make)


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
            f"{environment_id}: select the same keys in the same order with --dataset.keys"
        )


def check_environment(environment: EnvironmentSpec, transitions: Transitions) -> list[str]:
    """Make the environment once; what a person should know of it and the data.

    ValueError where its spaces do not match the data.
    """
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
                    f"{environment.id} has {what} of shape {of_env}, the data {of_data}: "
                    "give the environment of the data with --env"
                )
        return _bounds_warning(environment.id, made.action_space, transitions)
    finally:
        made.close()


def _bounds_warning(
    environment_id: str, space: gymnasium.Space[np.ndarray], log: Transitions
) -> list[str]:
    """A warning where actions of the data lie outside of what the environment takes."""
    assert isinstance(space, gymnasium.spaces.Box)
    low, high = space.low.ravel(), space.high.ravel()
    slack = BOUND_SLACK * np.where(np.isfinite(high - low), high - low, 1)
    beyond = (log.actions < low - slack) | (log.actions > high + slack)
    share = float(beyond.any(-1).mean())
    if not share:
        return []
    column = int(beyond.any(0).argmax())
    values = log.actions[:, column]
    return [
        (
            f"warning: {100 * share:.0f} % of the data's actions are outside the action space of "
            f"{environment_id}: dimension {column} ranges from {values.min():.4g} to "
            f"{values.max():.4g} in the data and from {low[column]:.4g} to {high[column]:.4g} in "
            "the environment: check the units and --env"
        )
    ]
