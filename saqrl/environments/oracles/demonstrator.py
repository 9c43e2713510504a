"""One episode of a collection: seeds, attempts, arrays. Subclasses define what is demonstrated."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from saqrl.environments.packages import quiet

Style = Literal["expert", "human", "play", "noisy"]

# Environment seeds of collected data have this bit; those of evaluations count up from 100000.
SEED_BIT = 1 << 31
# A failed demonstration is attempted this often before collection stops with an error.
ATTEMPTS = 20

# The fields of one step, in the order of Step.
STEP_FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals")
Step = tuple[np.ndarray, np.ndarray, float, np.ndarray, bool]
# What a hand does next, from the observation and the environment's info.
Act = Callable[[np.ndarray, dict[str, Any]], np.ndarray]
# The arrays of an episode, and the number of failed attempts before it.
Result = tuple[dict[str, np.ndarray], int]


@dataclass(frozen=True)
class Recipe:
    """What a worker process needs to make any episode of a collection."""

    environment_id: str
    base: str
    """Which oracle: the id without its task, such as cube-double."""
    task: bool
    """Whether the id names one task."""
    style: Style
    seed: int
    noise: float
    max_steps: int | None


class Draws(NamedTuple):
    """The random sources of one attempt, independent of each other."""

    environment_seed: int
    noise: np.random.Generator
    manners: np.random.Generator


class Demonstrator(abc.ABC):
    """Environment and oracles of one process; a call with an episode's number makes it."""

    recipe: Recipe
    max_steps: int
    world: Any

    def __call__(self, episode: int) -> Result:
        for attempt in range(ATTEMPTS):
            entropy = np.random.SeedSequence((self.recipe.seed, episode, attempt))
            environment_seed, oracle_seed, stream, manner = entropy.spawn(4)
            draws = Draws(
                int(environment_seed.generate_state(1)[0]) | SEED_BIT,
                np.random.default_rng(stream),
                np.random.default_rng(manner),
            )
            with quiet(), _global_seed(int(oracle_seed.generate_state(1)[0])):
                rows = self.attempt(draws)
            if rows is not None:
                return rows, attempt
        raise RuntimeError(
            f"{self.recipe.environment_id}: episode {episode} failed {ATTEMPTS} times in a row "
            f"with noise {self.recipe.noise} and at most {self.max_steps} steps; "
            "lower the noise or choose another task"
        )

    @abc.abstractmethod
    def attempt(self, draws: Draws) -> dict[str, np.ndarray] | None:
        """The arrays of one episode, or None if it failed."""

    def solve(
        self, observation: np.ndarray, info: dict[str, Any], act: Act
    ) -> dict[str, np.ndarray] | None:
        """Play clipped actions until the task ends, or None if `max_steps` were not enough."""
        steps: list[Step] = []
        while len(steps) < self.max_steps:
            action = np.clip(act(observation, info), -1, 1).astype(np.float32)
            following, reward, terminated, _, info = self.world.step(action)
            steps.append((observation, action, reward, following, terminated))
            observation = following
            if terminated:
                return arrays_of(steps)
        return None


def arrays_of(steps: Sequence[Step]) -> dict[str, np.ndarray]:
    """The steps of one whole episode, field by field."""
    columns = zip(STEP_FIELDS, zip(*steps, strict=True), strict=True)
    arrays = {
        name: np.array(values, bool if name == "terminals" else np.float32)
        for name, values in columns
    }
    timeouts = np.zeros(len(steps), bool)
    timeouts[-1] = not arrays["terminals"][-1]
    return {**arrays, "timeouts": timeouts}


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which oracles use, and restore its state afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
