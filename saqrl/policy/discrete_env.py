"""An environment whose actions are codes: any library for discrete actions can learn on it."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from saqrl.policy import Policy
from saqrl.policy.window import Window


class QuantizedActions(
    gymnasium.Wrapper[np.ndarray, np.int64, np.ndarray, np.ndarray], RecordConstructorArgs
):
    """A continuous environment as Discrete(K): action k plays the decoded action of code k.

    With action chunks a step plays `policy.action_horizon` actions, its reward is the sum of
    theirs, and it ends early if the episode does; info["steps"] says how many were played. The
    wrapper returns single raw observations and keeps the history that decoding needs.
    Raises ValueError if the policy has no codes, or is for another environment.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], policy: Policy):
        RecordConstructorArgs.__init__(self, policy=policy)
        gymnasium.Wrapper.__init__(self, env)  # type: ignore[misc]
        self._policy, self._quantizer = policy, policy.quantizer
        widths = {
            "observations": (env.observation_space, policy.observation_size),
            "actions": (env.action_space, len(policy.action_range.low)),
        }
        for what, (space, width) in widths.items():
            if space.shape != (width,):
                raise ValueError(
                    f"the environment has {what} of shape {space.shape}, the policy ({width},)"
                )
        self.action_space = gymnasium.spaces.Discrete(self._quantizer.num_codes)
        self._window: Window | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._window = Window(self._policy.history)
        self._window.see(observation)
        return observation, info

    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play the code; ValueError for one that does not exist or before the first reset."""
        if self._window is None:
            raise ValueError("step was called before reset: call reset first")
        if not self.action_space.contains(action):
            raise ValueError(f"code {action} does not exist; codes are {self.action_space}")
        total, steps = 0.0, 0
        for played in self.decode(self._window.flat(), int(action))[: self._policy.action_horizon]:
            observation, reward, terminated, truncated, info = self.env.step(played)
            self._window.see(observation)
            total, steps = total + float(reward), steps + 1
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info | {"steps": steps}

    def decode(self, observation: np.ndarray, code: int) -> np.ndarray:
        """(chunk, act) in the environment's units: the decoded actions of `code` in this state.

        With a history, `observation` is the last observations concatenated, oldest first.
        """
        return self._quantizer.decode(observation, code).reshape(self._policy.chunk, -1)
