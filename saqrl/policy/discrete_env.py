"""An environment whose actions are codes: any library for discrete actions can learn on it."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from jaxtyping import Array, Float, Int

from saqrl.policy import CodeController, Policy
from saqrl.quantizers import Codec


class QuantizedActions(
    gymnasium.Wrapper[np.ndarray, np.int64, np.ndarray, np.ndarray], RecordConstructorArgs
):
    """A continuous environment as Discrete(K): code k plays what it stands for in this state.

    With action chunks a step plays `policy.execute` actions, its reward is their sum, and it ends
    early where the episode does; info["steps"] says how many were played. Observations stay raw.
    ValueError: the policy has no codes, or is of another environment.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], policy: Policy):
        RecordConstructorArgs.__init__(self, policy=policy)
        gymnasium.Wrapper.__init__(self, env)  # type: ignore[misc]
        if not isinstance(policy.controller, CodeController):
            raise ValueError("a continuous policy has no codes; train with --actions quantized")
        widths = {
            "observations": (env.observation_space, policy.observation_size),
            "actions": (env.action_space, len(policy.action_range.low)),
        }
        for what, (space, width) in widths.items():
            if space.shape != (width,):
                raise ValueError(
                    f"the environment has {what} of shape {space.shape}, the policy ({width},)"
                )
        self._policy, self._codec = policy, policy.controller.quantizer.codec
        self.action_space = gymnasium.spaces.Discrete(policy.controller.quantizer.num_codes)
        self._observation: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play the code; ValueError for one that does not exist or before the first reset."""
        if self._observation is None:
            raise ValueError("step before reset")
        if not self.action_space.contains(action):
            raise ValueError(f"code {action} does not exist; codes are {self.action_space}")
        observation: np.ndarray = self._observation
        total, steps = 0.0, 0
        for played in self.decode(observation, int(action))[: self._policy.execute]:
            observation, reward, terminated, truncated, info = self.env.step(played)
            total, steps = total + float(reward), steps + 1
            if terminated or truncated:
                break
        self._observation = observation
        return observation, total, terminated, truncated, info | {"steps": steps}

    def decode(self, observation: np.ndarray, code: int) -> np.ndarray:
        """(chunk, act) in the environment's units: what `code` stands for in this state."""
        policy = self._policy
        features = policy.observation_scaling(np.asarray(observation, np.float32)[None])[0]
        unit = np.asarray(_decode(self._codec, features, np.int32(code)))
        return policy.action_range.from_unit(unit.reshape(policy.chunk, -1))


@jax.jit
def _decode(
    codec: Codec, features: Float[Array, " features"], code: Int[Array, ""]
) -> Float[Array, " chunk_act"]:
    return type(codec).decode(codec, jnp.asarray(features), code)
