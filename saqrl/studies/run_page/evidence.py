"""What a run's policies do on recorded episodes that they did not learn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from saqrl.datasets import Transitions
from saqrl.datasets.windows import windows
from saqrl.policy import Policy
from saqrl.policy.distribution import Spread, spread
from saqrl.training.held_out_skill import DECISIONS, distances

# Parts that an episode is cut into, from its beginning to its end.
PHASES = 10
# Chosen states with several ways, and episodes that are shown.
STATES, EPISODES = 3, 3
# Steps of an episode that is shown; a longer one is shown up to there.
LONGEST = 400


@dataclass(frozen=True)
class Traced:
    """One recorded episode, and what a policy would have played along it.

    It decides where it would: every `action_horizon` steps, from what was recorded there.
    """

    name: str
    recorded: Float32[np.ndarray, "steps act"]
    likeliest: Float32[np.ndarray, "steps act"]
    probabilities: Float32[np.ndarray, "steps atoms"]
    atoms: Float32[np.ndarray, "steps atoms act"]
    """What may be played in each step."""


@dataclass(frozen=True)
class Ways:
    """A state in which a policy may act in different ways, and what was recorded there."""

    episode: int
    step: int
    probabilities: Float32[np.ndarray, " atoms"]
    chunks: Float32[np.ndarray, "atoms chunk act"]
    recorded: Float32[np.ndarray, "chunk act"]
    codes: Int[np.ndarray, " atoms"] | None


class Evidence:
    """Figures of one policy along a log."""

    def __init__(self, policy: Policy, log: Transitions):
        self.policy, self.log = policy, log
        count = min(len(log), DECISIONS)
        self.rows = np.unique(np.linspace(0, len(log) - 1, count).astype(np.int64))

    @property
    def quantized(self) -> bool:
        return "quantizer" in self.policy.description

    @cached_property
    def distances(self) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Of each row's decision from what was recorded, and of the last command held."""
        return distances(self.policy, self.log, self.rows)

    @cached_property
    def spreads(self) -> Spread:
        """What may be played in each of the rows, however the policy acts: all codes."""
        return self._spread(self.rows)

    def _spread(self, rows: Int64[np.ndarray, " n"]) -> Spread:
        seen = windows(self.log, self.policy.history, rows)
        return spread(self.policy, seen, act="sample" if self.quantized else "greedy")

    @cached_property
    def errors(self) -> Float[np.ndarray, "rows act"]:
        """Of the likeliest action, in the robot's units."""
        likeliest = self.spreads.chunks[:, 0, 0]
        return likeliest.astype(np.float64) - self.log.actions[self.rows]

    @cached_property
    def error(self) -> Float[np.ndarray, " act"]:
        """Root mean square in the robot's units."""
        return np.sqrt(np.square(self.errors).mean(0))

    @cached_property
    def deviation(self) -> Float[np.ndarray, " act"]:
        return self.log.actions.astype(np.float64).std(0)

    @cached_property
    def phases(self) -> Int64[np.ndarray, " rows"]:
        """The part of its episode that a row lies in."""
        episode = self._episode(self.rows)
        within = self.rows - self.log.episode_starts[episode]
        return PHASES * within // self.log.episode_lengths[episode]

    def by_phase(self, values: Float[np.ndarray, " rows"]) -> list[float]:
        """The mean in each part; NaN where no row lies."""
        here = [values[self.phases == phase] for phase in range(PHASES)]
        return [float(found.mean()) if len(found) else float("nan") for found in here]

    def _episode(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.searchsorted(self.log.episode_starts, rows, side="right") - 1

    @cached_property
    def usage(self) -> tuple[Float[np.ndarray, " codes"], Float[np.ndarray, " codes"]]:
        """How often each code stands for what was recorded, and how probably it is played."""
        quantizer = self.policy.quantizer
        rows, chunk = self.rows, self.policy.chunk
        seen = windows(self.log, self.policy.history, rows)
        taken = self._recorded(rows, chunk).reshape(len(rows), *quantizer.action_shape)
        recorded = np.bincount(quantizer.encode(seen, taken), minlength=quantizer.num_codes)
        played = np.zeros(quantizer.num_codes)
        assert self.spreads.codes is not None
        np.add.at(played, self.spreads.codes, self.spreads.probabilities)
        return recorded / len(rows), played / len(rows)

    def _recorded(self, rows: Int64[np.ndarray, " n"], steps: int) -> np.ndarray:
        """The actions from each row on; past the end of its episode the last one again."""
        last = self.log.episode_ends[self._episode(rows)] - 1
        return self.log.actions[np.minimum(rows[:, None] + np.arange(steps), last[:, None])]

    def ways(self) -> list[Ways]:
        """States of different episodes where probable chunks lie farthest apart."""
        found, unit = self.spreads, self.policy.action_range.to_unit
        likely = found.probabilities[:, :8] / found.probabilities[:, :8].sum(1, keepdims=True)
        chunks = unit(found.chunks[:, :8]).reshape(*likely.shape, -1)
        mean = np.einsum("na,nac->nc", likely, chunks)
        apart = np.einsum("na,nac->n", likely, np.square(chunks - mean[:, None]))
        taken: dict[int, Ways] = {}
        for place in np.argsort(-apart):
            row = self.rows[place]
            episode = int(self._episode(row[None])[0])
            if episode not in taken and apart[place] > 1e-6:
                taken[episode] = Ways(
                    episode,
                    int(row - self.log.episode_starts[episode]),
                    found.probabilities[place],
                    found.chunks[place],
                    self._recorded(row[None], self.policy.chunk)[0],
                    None if found.codes is None else found.codes[place],
                )
            if len(taken) == STATES:
                break
        return list(taken.values())

    def shown_episodes(self) -> list[tuple[str, int]]:
        """The one that is foreseen as well as most, the worst and the best, with their words.

        Among those long enough to show something: relabelled play data have episodes of one step.
        """
        own, lengths = self._episode(self.rows), self.log.episode_lengths
        numbers = np.unique(own)
        longer = np.sort(lengths[numbers])[::-1]
        half = np.searchsorted(longer.cumsum(), longer.sum() / 2)
        numbers = numbers[lengths[numbers] > longer[half] / 2]
        missed, held = self.distances
        means = np.array([missed[own == n].sum() / (held[own == n].sum() + 1e-9) for n in numbers])
        order = numbers[np.argsort(means)]
        words = {"typical": order[len(order) // 2], "worst": order[-1], "best": order[0]}
        shown: dict[int, str] = {}
        for word, number in words.items():
            shown.setdefault(int(number), word)
        return [(word, number) for number, word in shown.items()][:EPISODES]

    def traced(self, episode: int, name: str = "") -> Traced:
        """The policy along one episode, up to LONGEST steps of it."""
        start = int(self.log.episode_starts[episode])
        steps = min(int(self.log.episode_lengths[episode]), LONGEST)
        horizon = self.policy.action_horizon
        rows = np.arange(start, start + steps, horizon)
        found = self._spread(rows)
        # Every step's atoms: those of its decision, at its place in their chunks.
        ahead = np.arange(steps)
        atoms = found.chunks[ahead // horizon, :, ahead % horizon]
        return Traced(
            name,
            self.log.actions[start : start + steps],
            atoms[:, 0],
            found.probabilities[ahead // horizon],
            atoms,
        )


def action_names(log: Transitions) -> Sequence[str]:
    """The file's own words for the dimensions of an action, else their numbers."""
    return log.action_names or [f"action {place}" for place in range(log.actions.shape[1])]
