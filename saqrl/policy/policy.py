"""Controllers and the policy around them."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key

from saqrl import agents, baselines
from saqrl.datasets import EnvironmentSpec
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.quantizers import ActionQuantizer
from saqrl.registry import Act as Act


class Controller(Protocol):
    """From features to an action chunk in [-1, 1], for one state. A pytree of arrays."""

    def decide(
        self, features: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " chunk_act"]: ...


class CodeController(eqx.Module):
    """Chooses a code by the actor's scores and decodes it in this state."""

    quantizer: ActionQuantizer
    actor: agents.Actor

    def decide(
        self, features: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " chunk_act"]:
        return self.quantizer.decode(features, self.choose(features, key, greedy=greedy))

    def choose(
        self, features: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Int[Array, ""]:
        """The code to play: the best scored, or one drawn by its score."""
        logits = self.actor.logits(features, self.quantizer.log_prior(features))
        return jnp.argmax(logits) if greedy else jax.random.categorical(key, logits)


class ContinuousController(eqx.Module):
    """A continuous actor as a controller."""

    actor: baselines.Actor

    def decide(
        self, features: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " chunk_act"]:
        return self.actor.act(features, key, greedy=greedy)


@dataclass(frozen=True, eq=False)
class Policy:
    """What acts on the robot.

    A decision covers `chunk` actions, of which `execute` are played before the next decision.
    `description` says how to build the controller again and where it came from.
    """

    controller: Controller
    observation_scaling: ObservationScaling
    action_range: ActionRange
    observation_size: int
    chunk: int = 1
    execute: int = 1
    default_act: Act = "greedy"
    environment: EnvironmentSpec | None = None
    description: Mapping[str, Any] = field(default_factory=dict)

    def plan(
        self, observations: Float32[np.ndarray, "n obs"], keys: Key[Array, " n"], *, act: Act
    ) -> Float32[np.ndarray, "n chunk act"]:
        """Action chunks in the environment's units, one per observation and key."""
        if observations.shape[1:] != (self.observation_size,):
            raise ValueError(
                f"the policy was trained on observations of {self.observation_size} numbers, "
                f"these have shape {observations.shape[1:]}"
            )
        features = self.observation_scaling(np.asarray(observations, np.float32))
        unit = _decide_batch(self.controller, features, keys, greedy=act == "greedy")
        chunks = np.asarray(unit).reshape(len(observations), self.chunk, -1)
        return self.action_range.from_unit(chunks)

    def player(self, *, seed: int = 0, act: Act | None = None) -> "Player":
        """A player for one robot, at the start of an episode."""
        return Player(self, jax.random.key(seed), act=act or self.default_act)


class Player:
    """Plays a policy one observation at a time, with what is left of the current chunk."""

    def __init__(self, policy: Policy, key: Key[Array, ""], *, act: Act):
        self._policy, self._key, self._act = policy, key, act
        self._queue: deque[Float32[np.ndarray, " act"]] = deque()
        self._decisions = 0

    def act(self, observation: Float32[np.ndarray, " obs"]) -> Float32[np.ndarray, " act"]:
        """The next action, in the environment's units."""
        if not self._queue:
            key = jax.random.fold_in(self._key, self._decisions)
            chunk = self._policy.plan(observation[None], key[None], act=self._act)[0]
            self._queue.extend(chunk[: self._policy.execute])
            self._decisions += 1
        return self._queue.popleft()


@partial(jax.jit, static_argnames="greedy")
def _decide_batch(
    controller: Controller,
    features: Float[Array, "n features"],
    keys: Key[Array, " n"],
    *,
    greedy: bool,
) -> Float[Array, "n chunk_act"]:
    decide = partial(type(controller).decide, controller, greedy=greedy)
    return jax.vmap(decide)(features, keys)
