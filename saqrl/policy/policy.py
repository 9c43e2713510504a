"""The policy around a controller: raw observations in, the robot's actions out."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from saqrl.datasets import EnvironmentSpec
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.policy.checks import check_batch, check_numbers, window_name
from saqrl.policy.coding import PolicyQuantizer
from saqrl.policy.controllers import CodeController as CodeController
from saqrl.policy.controllers import ContinuousController as ContinuousController
from saqrl.policy.controllers import Controller as Controller
from saqrl.policy.window import Window
from saqrl.registry import Act as Act
from saqrl.registry import require_temperature


@dataclass(frozen=True, eq=False, repr=False)
class Policy:
    """Acts on the robot: raw observations in, actions in the environment's units out.

    A decision is a chunk of `chunk` actions; the first `action_horizon` of them are played before
    the next decision. `description` says how to rebuild the controller and where it came from.
    """

    controller: Controller
    observation_scaling: ObservationScaling
    action_range: ActionRange
    observation_size: int
    chunk: int = 1
    action_horizon: int = 1
    default_act: Act = "greedy"
    act_temperature: float = 1.0
    environment: EnvironmentSpec | None = None
    description: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_temperature(self.act_temperature)

    def __repr__(self) -> str:
        agent = self.description.get("agent", {}).get("name", type(self.controller).__name__)
        codes = ""
        if isinstance(self.controller, CodeController):
            codes = f" on {self.controller.quantizer.num_codes} codes"
        if self.members > 1:
            codes += f", {self.members} members"
        return (
            f"Policy({agent}{codes}, observations ({self.observation_size},), "
            f"actions ({len(self.action_range.low)},), chunk {self.chunk}, "
            f"action horizon {self.action_horizon}, {self.default_act})"
        )

    @property
    def members(self) -> int:
        """Number of agents in the ensemble."""
        return int(self.description.get("members") or 1)

    @property
    def history(self) -> int:
        """Number of last observations of the episode that the policy reads."""
        return self.observation_scaling.history

    @property
    def window_size(self) -> int:
        """Size of these observations concatenated."""
        return self.history * self.observation_size

    def act(self, observation: Float[np.ndarray, " obs"]) -> Float32[np.ndarray, " act"]:
        """The next action of one robot, in the environment's units; plays chunks.

        The rest of a chunk and the history are kept between calls: call `reset` at the start of
        every episode, and with several robots use one `player` for each. Raises ValueError for
        another size, not numbers, or not finite numbers.
        """
        return self._own_player.act(observation)

    def reset(self) -> None:
        """Start a new episode of `act`: forget the rest of the chunk and the history."""
        self._own_player.reset()

    def acting(self, act: Act | None = None, temperature: float | None = None) -> "Policy":
        """A copy with another rule or temperature; None keeps the present one. ValueError."""
        return replace(
            self,
            default_act=act or self.default_act,
            act_temperature=self.act_temperature if temperature is None else temperature,
        )

    def player(self, *, seed: int = 0, act: Act | None = None) -> "Player":
        """A player for one robot, at the start of an episode."""
        return Player(self, jax.random.key(seed), act=act or self.default_act)

    @cached_property
    def _own_player(self) -> "Player":
        return self.player()

    def plan(
        self, observations: Float[np.ndarray, "n history*obs"], keys: Key[Array, " n"], *, act: Act
    ) -> Float32[np.ndarray, "n chunk act"]:
        """Action chunks in the environment's units, one per observation and key.

        With a history, an observation is a window: the last observations concatenated, oldest
        first. Raises ValueError for observations of another size, not numbers, or not finite
        numbers, and for an action that is not finite.
        """
        rows = check_batch(observations, (self.window_size,), what=window_name(self.history))
        features = self.observation_scaling(rows)
        unit = _decide_batch(self.controller, features, keys, self.act_temperature, act=act)
        chunks = np.asarray(unit).reshape(len(rows), self.chunk, -1)
        if not np.isfinite(chunks).all():
            raise ValueError(
                "the policy returns an action that is not finite: its weights overflow"
            )
        return self.action_range.from_unit(chunks)

    @property
    def quantizer(self) -> PolicyQuantizer:
        """Encodes and decodes in the robot's units; ValueError if the policy is continuous."""
        if not isinstance(self.controller, CodeController):
            raise ValueError("a continuous policy has no codes; train with --actions quantized")
        return PolicyQuantizer(
            self.controller.quantizer,
            self.observation_scaling,
            self.action_range,
            self.observation_size,
            self.chunk,
        )


class Player:
    """Plays a policy one observation at a time; keeps the rest of the current chunk."""

    def __init__(self, policy: Policy, key: Key[Array, ""], *, act: Act):
        self._policy, self._key, self._act = policy, key, act
        self._queue: deque[Float32[np.ndarray, " act"]] = deque()
        self._decisions = 0
        self._window = Window(policy.history)

    def __repr__(self) -> str:
        return f"Player({self._act}, {len(self._queue)} left of its chunk, {self._policy})"

    def act(self, observation: Float[np.ndarray, " obs"]) -> Float32[np.ndarray, " act"]:
        """The next action, in the environment's units.

        Raises ValueError for an observation of another size, not numbers, or not finite numbers.
        """
        checked = check_numbers(observation, (self._policy.observation_size,), what="observation")
        self._window.see(checked)
        if not self._queue:
            key = jax.random.fold_in(self._key, self._decisions)
            chunk = self._policy.plan(self._window.flat()[None], key[None], act=self._act)[0]
            self._queue.extend(chunk[: self._policy.action_horizon])
            self._decisions += 1
        return self._queue.popleft()

    def reset(self) -> None:
        """Forget the rest of the chunk and the history; call it at the start of an episode."""
        self._queue.clear()
        self._window.clear()


@partial(jax.jit, static_argnames="act")
def _decide_batch(
    controller: Controller,
    features: Float[Array, "n features"],
    keys: Key[Array, " n"],
    temperature: float,
    *,
    act: Act,
) -> Float[Array, "n chunk_act"]:
    decide = partial(type(controller).decide, controller, act=act, temperature=temperature)
    return jax.vmap(decide)(features, keys)
