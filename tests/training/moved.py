"""A moved target: what is demonstrated turns left, and right is what pays."""

from pathlib import Path

import gymnasium
import numpy as np

MOVED = "saqrl-tests/Moved-v0"
# Of an episode.
STEPS = 10
# The first number of demonstrated actions is at most this.
HIGHEST = -0.5


class Moved(gymnasium.Env):
    """Ten steps whose reward is the first number of the action; what is seen means nothing."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = STEPS
        return self._seen(), {}

    def _seen(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        self.left -= 1
        return self._seen(), float(action[0]), False, self.left == 0, {}


def demonstrate(path: Path) -> Path:
    """40 episodes of actions to the left."""
    generator, rows = np.random.default_rng(0), 40 * STEPS
    actions = generator.uniform(-1, (HIGHEST, 1), (rows, 2)).astype(np.float32)
    seen = generator.uniform(-1, 1, (rows + 1, 2)).astype(np.float32)
    np.savez(
        path,
        observations=seen[:-1],
        actions=actions,
        rewards=actions[:, 0],
        next_observations=seen[1:],
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) % STEPS == STEPS - 1,
    )
    return path
