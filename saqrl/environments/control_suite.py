"""DeepMind Control (Tassa et al. 2018, arXiv 1801.00690) as `dm_control/DOMAIN-TASK-v0`.

Importing this registers the tasks. Observations are dictionaries of vectors in alphabetical order.
"""

from typing import Any, cast

import gymnasium
import numpy as np
from dm_control import suite


class ControlTask(gymnasium.Env[Any, np.ndarray]):
    """One task of the suite; an episode has 1000 steps with rewards in [0, 1]."""

    # Gymnasium reads it before there is an instance, and declares it so.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, domain: str, task: str, *, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._suite = suite.load(domain, task, task_kwargs={"random": 0})
        rate = round(1 / self._suite.control_timestep())
        self.metadata = self.metadata | {"render_fps": rate}
        spec, box = self._suite.action_spec(), gymnasium.spaces.Box
        self.action_space = box(spec.minimum.astype(np.float32), spec.maximum.astype(np.float32))
        parts = self._suite.observation_spec()
        self.observation_space = gymnasium.spaces.Dict(
            {
                name: box(-np.inf, np.inf, (int(np.prod(part.shape)),))
                for name, part in sorted(parts.items())
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._suite.task._random = np.random.RandomState(seed)
        return self._vectors(self._suite.reset().observation), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        step = self._suite.step(action)
        ended = bool(step.last())
        terminated = ended and step.discount == 0
        return (
            self._vectors(step.observation),
            float(step.reward),
            terminated,
            ended and not terminated,
            {},
        )

    def _vectors(self, observation: Any) -> dict[str, np.ndarray]:
        return {name: np.asarray(part, np.float32).ravel() for name, part in observation.items()}

    def render(self) -> Any:
        return self._suite.physics.render(height=480, width=480, camera_id=0)

    def close(self) -> None:
        self._suite.close()


for _domain, _task in suite.ALL_TASKS:
    gymnasium.register(
        f"dm_control/{_domain}-{_task}-v0",
        entry_point=cast(Any, ControlTask),
        kwargs={"domain": _domain, "task": _task},
    )
