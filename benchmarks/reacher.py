"""A moved target in a simulator: demonstrations reach to the right, what pays is on the left.

MuJoCo's two-joint Reacher-v5 with targets on one side of the base alone. A target is part of what
is observed, and a reward is minus the distance from it, so recorded rewards stay true when it
moves.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from jaxtyping import Float

LEFT, RIGHT = "saqrl-benchmarks/ReacherLeft-v0", "saqrl-benchmarks/ReacherRight-v0"
STEPS = 50
# Metres: how far from the base a target lies, and how far to its side at least.
FARTHEST, ASIDE = 0.2, 0.05
ARMS = (0.1, 0.11)
# Of the demonstrator: pull towards the target, brake, and deviation of its noise.
PULL, BRAKE, NOISE = 60.0, 0.12, 0.1


class Reacher(ReacherEnv):
    """Reacher-v5 whose targets lie on one side."""

    def __init__(self, side: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.side = side

    def reset_model(self) -> np.ndarray:
        super().reset_model()
        while True:
            goal = self.np_random.uniform(-FARTHEST, FARTHEST, 2)
            if np.linalg.norm(goal) < FARTHEST and self.side * goal[0] > ASIDE:
                break
        qpos, qvel = self.data.qpos.copy(), self.data.qvel.copy()
        qpos[-2:] = goal
        self.set_state(qpos, qvel)
        return self._get_obs()


def register() -> None:
    """Make both sides known to Gymnasium."""
    for name, side in ((LEFT, -1), (RIGHT, 1)):
        if name not in gymnasium.registry:
            kwargs = {"side": side}
            gymnasium.register(name, Reacher, max_episode_steps=STEPS, kwargs=kwargs)


def torque(seen: Float[np.ndarray, " 10"]) -> Float[np.ndarray, " 2"]:
    """Pulls the fingertip to the target by the Jacobian's transpose, and brakes."""
    first, second = np.arctan2(seen[2:4], seen[:2])
    outer = ARMS[1] * np.array([-np.sin(first + second), np.cos(first + second)])
    inner = ARMS[0] * np.array([-np.sin(first), np.cos(first)])
    jacobian = np.stack([inner + outer, outer])
    return np.clip(jacobian @ (-PULL * seen[8:10]) - BRAKE * seen[6:8], -1, 1)


def demonstrate(path: Path, *, episodes: int = 200) -> Path:
    """Episodes of the demonstrator with targets on the right, as a plain npz log."""
    register()
    environment, generator = gymnasium.make(RIGHT), np.random.default_rng(0)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "next_observations")
    }
    for episode in range(episodes):
        seen, _ = environment.reset(seed=episode)
        for _ in range(STEPS):
            action = np.clip(torque(seen) + NOISE * generator.normal(size=2), -1, 1)
            after, reward, *_ = environment.step(action.astype(np.float32))
            for name, value in zip(rows, (seen, action, reward, after), strict=True):
                rows[name].append(value)
            seen = after
    ends = np.arange(episodes * STEPS) % STEPS == STEPS - 1
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: np.asarray(values, np.float32) for name, values in rows.items()}
    np.savez(path, **columns, terminals=np.zeros(len(ends), bool), timeouts=ends)
    return path
