"""Which way of acting is best, by playing: sequential halving on episodes of its own.

Source: Karnin, Koren and Somekh 2013, "Almost optimal exploration in multi-armed bandits",
algorithm 1 (sequential halving), with the same episodes for every candidate of a round.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from saqrl.policy import Act, CodeController, Policy
from saqrl.policy.rollout import Arena
from saqrl.training.evaluation import episode_scores
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings

Candidate = TypeVar("Candidate")
# Added to the seeds of evaluations: a table's episodes are never chosen by.
SELECTION_SEED = 100_000


@dataclass(frozen=True)
class Trial:
    """What a candidate has scored, over the episodes that it has played."""

    candidate: Any
    scores: Float[np.ndarray, " episodes"]

    @property
    def mean(self) -> float:
        return float(self.scores.mean()) if len(self.scores) else -math.inf


def rounds_of(candidates: int) -> int:
    """ceil(log2) of them, at least 1."""
    return max(math.ceil(math.log2(candidates)), 1)


def select(
    candidates: Sequence[Candidate],
    play: Callable[[Candidate, int, int], Float[np.ndarray, " episodes"]],
    *,
    episodes: int,
) -> tuple[Candidate, tuple[Trial, ...]]:
    """The best candidate and what each has scored, in the order given.

    play(candidate, first, count) gives the scores of the episodes first, first + 1, ...; more is
    better. At most `episodes` are spent in all, evenly over the rounds, after each of which the
    worse half leaves; at least one for each candidate of a round.
    """
    rounds = rounds_of(len(candidates))
    trials = [Trial(candidate, np.zeros(0)) for candidate in candidates]
    alive, first = list(range(len(trials))), 0
    for _ in range(rounds):
        count = max(episodes // rounds // len(alive), 1)
        for place in alive:
            scores = np.append(trials[place].scores, play(candidates[place], first, count))
            trials[place] = Trial(candidates[place], scores)
        first += count
        alive = sorted(alive, key=lambda place: -trials[place].mean)[: -(-len(alive) // 2)]
    return candidates[alive[0]], tuple(trials)


@dataclass(frozen=True)
class Way:
    """One way for a policy to act."""

    act: Act
    act_temperature: float
    action_horizon: int

    def __str__(self) -> str:
        temperature = "" if self.act == "greedy" else f" at temperature {self.act_temperature:g}"
        return f"{self.act}{temperature}, {self.action_horizon} steps at a time"

    def applied(self, policy: Policy) -> Policy:
        """The policy, acting so."""
        return replace(
            policy,
            default_act=self.act,
            act_temperature=self.act_temperature,
            action_horizon=self.action_horizon,
        )


def ways(own: Way, *, chunk: int, quantized: bool) -> list[Way]:
    """A policy's own way first; then every rule, with a whole chunk at a time and with half."""
    rules: list[tuple[Act, float]] = [("greedy", 1.0), ("sample", 1.0)]
    if quantized:
        rules += [("sample", 0.5), ("mean", 1.0)]
    horizons = dict.fromkeys((chunk, -(-chunk // 2)))
    return list(dict.fromkeys((own, *(Way(*rule, m) for rule in rules for m in horizons))))


def check_selection(settings: Settings) -> None:
    """ValueError where too few episodes are given to choose by."""
    asked = settings.evaluation
    own = Way(asked.act, asked.act_temperature, asked.action_horizon)
    found = ways(own, chunk=settings.features.chunk, quantized=settings.quantized)
    if asked.select and asked.select < (least := rounds_of(len(found)) * len(found)):
        raise ValueError(
            f"select is {asked.select} episodes for {len(found)} ways of acting; it must be "
            f"at least {least}"
        )


def choose_way(
    policy: Policy, arena: Arena, environment_id: str, *, episodes: int, reporter: Reporter
) -> tuple[Policy, list[dict[str, Any]]]:
    """The policy as it acts best, and what each way has scored; ValueError: too few episodes."""
    with reporter.stage("selection", episodes, unit="episodes") as update:
        spent = 0

        def play(way: Way, first: int, count: int) -> Float[np.ndarray, " episodes"]:
            nonlocal spent
            acting = way.applied(policy)
            seed = SELECTION_SEED + first
            played = arena.play(acting, episodes=count, act=way.act, seed=seed)
            spent += count
            update(spent, str(way))
            return episode_scores(environment_id, played)

        own = Way(policy.default_act, policy.act_temperature, policy.action_horizon)
        quantized = isinstance(policy.controller, CodeController)
        candidates = ways(own, chunk=policy.chunk, quantized=quantized)
        best, trials = select(candidates, play, episodes=episodes)
    records = [
        asdict(trial.candidate) | {"episodes": len(trial.scores), "score": trial.mean}
        for trial in trials
    ]
    mean = next(trial.mean for trial in trials if trial.candidate == best)
    reporter.say(f"selection: {best} (score {mean:.3g} over its episodes)")
    return best.applied(policy), records
