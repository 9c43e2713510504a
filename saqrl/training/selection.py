"""Which way of acting is best, by playing: successive halving on episodes of its own.

Source: Karnin, Koren and Somekh 2013, "Almost optimal exploration in multi-armed bandits",
algorithm 1 (sequential halving), with the same episodes for every candidate of a round.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Trial:
    """What a candidate has scored, over the episodes that it has played."""

    candidate: Any
    scores: Float[np.ndarray, " episodes"]

    @property
    def mean(self) -> float:
        return float(self.scores.mean()) if len(self.scores) else -math.inf


def select(
    candidates: Sequence[Candidate],
    play: Callable[[Candidate, int, int], Float[np.ndarray, " episodes"]],
    *,
    episodes: int,
) -> tuple[Candidate, tuple[Trial, ...]]:
    """The best candidate and what each has scored, in the order given.

    play(candidate, first, count) gives the scores of the episodes first, first + 1, ...; more is
    better. `episodes` are spent in all at most, evenly over ceil(log2(candidates)) rounds, after
    each of which the worse half leaves. ValueError: too few episodes for one each a round.
    """
    rounds = max(math.ceil(math.log2(max(len(candidates), 1))), 1)
    if episodes < rounds * len(candidates):
        raise ValueError(
            f"select is {episodes} episodes for {len(candidates)} ways of acting; at least "
            f"{rounds * len(candidates)}"
        )
    trials = [Trial(candidate, np.zeros(0)) for candidate in candidates]
    alive, first = list(range(len(trials))), 0
    for _ in range(rounds):
        count = episodes // rounds // len(alive)
        for place in alive:
            scores = np.append(trials[place].scores, play(candidates[place], first, count))
            trials[place] = Trial(candidates[place], scores)
        first += count
        alive = sorted(alive, key=lambda place: -trials[place].mean)[: -(-len(alive) // 2)]
    return candidates[alive[0]], tuple(trials)
