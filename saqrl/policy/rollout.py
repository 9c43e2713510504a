"""Episodes of a policy in an environment, several in parallel."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import gymnasium
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from saqrl.policy.policy import Act, Policy
from saqrl.policy.window import Window

# First environment seed of evaluations; collected and recorded data have other seeds.
EVALUATION_SEEDS = 100_000

# Environments in parallel: enough to share a call of the policy and to keep two cores busy.
LANES = 4


@dataclass(frozen=True, eq=False)
class Steps:
    """One episode, step by step, in the environment's units."""

    observations: Float32[np.ndarray, "steps+1 obs"]
    """The last one is the observation at the end of the episode."""
    actions: Float32[np.ndarray, "steps act"]
    rewards: Float[np.ndarray, " steps"]
    terminated: bool
    """Whether the task ended the episode; otherwise a time limit did."""


@dataclass(frozen=True)
class Episodes:
    """Results, episode by episode. `successes` is None if the task reports no success."""

    returns: Float[np.ndarray, " episodes"]
    max_rewards: Float[np.ndarray, " episodes"]
    lengths: Int[np.ndarray, " episodes"]
    successes: Bool[np.ndarray, " episodes"] | None
    steps: tuple[Steps, ...] | None = None
    """None unless `keep_steps` was set."""


class _Lane:
    """One environment playing its share of the episodes, one after the other."""

    def __init__(
        self,
        environment: gymnasium.Env,
        episodes: Iterable[int],
        seed: int,
        history: int,
        keep_steps: bool,
    ):
        self.environment = environment
        self.window = Window(history)
        self._waiting = iter(episodes)
        self._seed = seed
        self._keep_steps = keep_steps
        self.done: dict[int, tuple[float, float, int, bool | None, Steps | None]] = {}
        self._begin()

    @property
    def active(self) -> bool:
        return self.episode >= 0

    def _begin(self) -> None:
        self.episode = next(self._waiting, -1)
        self.chunk: list[np.ndarray] = []
        self.decisions = 0
        self._rewards: list[float] = []
        self._success: bool | None = None
        self._seen: list[np.ndarray] = []
        self._done: list[np.ndarray] = []
        if self.active:
            seed = EVALUATION_SEEDS + self._seed + self.episode
            observation, _ = self.environment.reset(seed=seed)
            self.window.clear()
            self._see(observation)

    def _see(self, observation: np.ndarray) -> None:
        self.window.see(observation)
        if self._keep_steps:
            self._seen.append(self.window.newest)

    def step(self) -> None:
        action = self.chunk.pop(0)
        if self._keep_steps:
            self._done.append(np.array(action))  # a copy: an environment may change its action
        observation, reward, terminated, truncated, info = self.environment.step(action)
        self._see(observation)
        self._rewards.append(float(reward))
        if "success" in info:
            self._success = bool(self._success) or bool(info["success"])
        if terminated or truncated:
            total, best = float(np.sum(self._rewards)), max(self._rewards)
            steps = self._steps(bool(terminated)) if self._keep_steps else None
            self.done[self.episode] = total, best, len(self._rewards), self._success, steps
            self._begin()

    def _steps(self, terminated: bool) -> Steps:
        seen, done = np.stack(self._seen), np.stack(self._done)
        return Steps(seen, done, np.asarray(self._rewards), terminated)


class Arena:
    """Environments that stay open between evaluations: making one can take seconds."""

    def __init__(self, make: Callable[[], gymnasium.Env], *, lanes: int = LANES):
        """`make` makes one environment; at most `lanes` of them run in parallel."""
        self._make, self._count = make, lanes
        self._environments: list[gymnasium.Env] = []

    def __enter__(self) -> "Arena":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        while self._environments:
            self._environments.pop().close()

    def play(
        self,
        policy: Policy,
        *,
        episodes: int,
        act: Act,
        seed: int = 0,
        keep_steps: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Episodes:
        """Play `episodes` episodes to their end; with `keep_steps` the result has their steps.

        Episode i always starts from environment seed EVALUATION_SEEDS + seed + i and draws from
        its own key, whichever lane plays it.
        """
        count = min(self._count, episodes)
        while len(self._environments) < count:
            self._environments.append(self._make())
        lanes = [
            _Lane(environment, range(lane, episodes, count), seed, policy.history, keep_steps)
            for lane, environment in enumerate(self._environments[:count])
        ]
        key = evaluation_key(seed)
        with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as threads:
            while running := [lane for lane in lanes if lane.active]:
                _plan(policy, lanes, key, act)
                list(threads.map(_Lane.step, running))
                progress(sum(len(lane.done) for lane in lanes))
        done = {episode: row for lane in lanes for episode, row in lane.done.items()}
        returns, max_rewards, lengths, successes, steps = zip(
            *(done[episode] for episode in range(episodes)), strict=True
        )
        return Episodes(
            np.asarray(returns),
            np.asarray(max_rewards),
            np.asarray(lengths),
            None if None in successes else np.asarray(successes, bool),
            steps if keep_steps else None,
        )


def evaluation_key(seed: int) -> Key[Array, ""]:
    """The key of an evaluation: folded with episode and decision number, it samples a decision."""
    return jax.random.key(EVALUATION_SEEDS + seed)


def _plan(policy: Policy, lanes: Sequence[_Lane], key: Key[Array, ""], act: Act) -> None:
    """Give a new chunk to every lane that has played its own."""
    needy = [lane for lane in lanes if lane.active and not lane.chunk]
    if not needy:
        return
    # Plan for all lanes, so that the compiled program always gets the same shapes; lanes that need
    # no chunk get zeros.
    observations = np.zeros((len(lanes), policy.window_size), np.float32)
    for row, lane in zip(observations, lanes, strict=True):
        if lane in needy:
            row[...] = lane.window.flat()
    keys = _decision_keys(
        key,
        np.asarray([max(lane.episode, 0) for lane in lanes], np.uint32),
        np.asarray([lane.decisions for lane in lanes], np.uint32),
    )
    chunks = policy.plan(observations, keys, act=act)
    for lane, chunk in zip(lanes, chunks, strict=True):
        if lane in needy:
            lane.chunk = list(chunk[: policy.action_horizon])
            lane.decisions += 1


@jax.jit
def _decision_keys(
    key: Key[Array, ""], episodes: Int[Array, " n"], decisions: Int[Array, " n"]
) -> Key[Array, " n"]:
    return jax.vmap(lambda e, d: jax.random.fold_in(jax.random.fold_in(key, e), d))(
        episodes, decisions
    )
