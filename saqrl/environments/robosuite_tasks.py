"""robosuite's tasks as Gymnasium environments `robosuite/NAME`; importing this registers them.

Observations are a dictionary under robomimic's names (`object` is robosuite's `object-state`), so
that data recorded by robomimic and the environment share keys. The task ends when it is solved.
Source of the names and of the horizons: Mandlekar et al. 2021 (arXiv 2108.03298).
"""

from collections.abc import Mapping
from typing import Any, cast

import gymnasium
import numpy as np
import robosuite

from saqrl.environments.robomimic_keys import default_keys

# Steps after which an episode is truncated, at robomimic's 20 Hz.
HORIZONS = {"TwoArmTransport": 700, "ToolHang": 700}
HORIZON = 400
CAMERA = "agentview"
# Names of the tasks for two robots begin with this.
TWO_ARMS = "TwoArm"
# Keys with this suffix are concatenations of other keys.
JOINED = "proprio-state"


class RobosuiteTask(gymnasium.Env[Any, np.ndarray]):
    """One task; keywords are robosuite's own, as in robomimic's env_args["env_kwargs"]."""

    # Gymnasium reads it before there is an instance, and declares it so.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, name: str, *, render_mode: str | None = None, **keywords: Any) -> None:
        self.render_mode = render_mode
        robots: Any = ["Panda", "Panda"] if name.startswith(TWO_ARMS) else "Panda"
        keywords = {"robots": robots, "reward_shaping": False} | keywords
        self._task = robosuite.make(
            name,
            **keywords
            | {
                "has_renderer": False,
                "has_offscreen_renderer": render_mode is not None,
                "use_camera_obs": False,
                "use_object_obs": True,
                "ignore_done": True,
            },
        )
        low, high = self._task.action_spec
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {key: box(-np.inf, np.inf, part.shape) for key, part in self._observed().items()}
        )
        self.default_observation_keys = default_keys(self.observation_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            # In place, because the samplers of object positions hold the same generator.
            fresh = np.random.default_rng(seed)
            self._task.rng.bit_generator.state = fresh.bit_generator.state
        self._task.reset()
        return self._observed(), {"success": False}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        seen, reward, _, _ = self._task.step(action)
        success = bool(self._task._check_success())
        return _named(seen), float(reward), success, False, {"success": success}

    def _observed(self) -> dict[str, np.ndarray]:
        """The current observations. After a reset robosuite 1.5.2 returns zeros unless forced."""
        return _named(self._task._get_observations(force_update=True))

    def render(self) -> Any:
        frame = self._task.sim.render(width=512, height=512, camera_name=CAMERA)
        return np.ascontiguousarray(frame[::-1])

    def close(self) -> None:
        self._task.close()


def _named(seen: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An observation of robosuite under robomimic's names."""
    renamed = {("object" if key == "object-state" else key): seen[key] for key in seen}
    return {
        key: np.atleast_1d(np.asarray(value, np.float32))
        for key, value in renamed.items()
        if not key.endswith(JOINED)
    }


for _name in robosuite.ALL_ENVIRONMENTS:
    gymnasium.register(
        f"robosuite/{_name}",
        entry_point=cast(Any, RobosuiteTask),
        kwargs={"name": _name},
        max_episode_steps=HORIZONS.get(_name, HORIZON),
    )
