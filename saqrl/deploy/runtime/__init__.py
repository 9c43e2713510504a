"""Plays an exported policy next to the robot: NumPy, and onnxruntime for .onnx files.

This folder stands alone: no JAX, no pickle, nothing else of the package.

    policy = saqrl.deploy.runtime.load("policy.onnx")
    decision = policy.act(observation)   # decision.action, decision.distance, ...
"""

import io
import math
import os
import zipfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .checks import (
    FORMAT,
    LARGEST_FILE,
    METADATA_KEY,
    PolicyFileError,
    check_metadata,
    sealed,
)
from .engines import Engine, NumpyEngine, OnnxEngine
from .window import Window

__all__ = [
    "FORMAT",
    "METADATA_KEY",
    "Decision",
    "Engine",
    "NumpyEngine",
    "OnnxEngine",
    "Plan",
    "PolicyFileError",
    "RobotPolicy",
    "Window",
    "load",
    "load_graph",
    "sealed",
]


class Decision(NamedTuple):
    """One action and what is known about it."""

    action: np.ndarray
    """(act,) in the environment's units, within the action range of the data."""
    code: int | None
    """The chosen code; None for a continuous policy, and with act mean."""
    distance: float
    """Distance of the observation to the data; above 1: farther than 99 % of the data itself."""
    entropy: float | None
    """Entropy of the behaviour prior in this state, in nats; None for a continuous policy."""
    clipped: int
    """Number of action coordinates at the bounds of the range, where they were clipped."""
    planned: bool
    """Whether a new chunk was decided for this observation; else an earlier chunk continues."""


class Plan(NamedTuple):
    """What one run of the graph gives, for a batch."""

    actions: np.ndarray
    """(batch, chunk, act)"""
    distance: np.ndarray
    code: np.ndarray | None
    entropy: np.ndarray | None


def load(path: str | os.PathLike[str], *, seed: int = 0) -> "RobotPolicy":
    """The policy in an exported file. `seed` starts the noise of a sampling policy.

    FileNotFoundError; PolicyFileError for a damaged or foreign file or one that holds only an
    encoder or decoder; ImportError for .onnx without onnxruntime.
    """
    engine = load_graph(path)
    check_metadata(path, engine.metadata)
    if engine.metadata["part"] != "policy":
        raise PolicyFileError(
            f"{path} holds the {engine.metadata['part']} of a quantizer, not a policy; "
            "export one with --part policy"
        )
    policy = RobotPolicy(engine, seed=seed)
    try:
        policy.rehearse()
    except Exception as error:  # whatever a graph that is none has NumPy or onnxruntime raise
        words = " ".join(str(error).split())[:200]
        raise PolicyFileError(
            f"{path} has a graph that cannot be run ({type(error).__name__}: {words}); "
            "export it again"
        ) from error
    return policy


def load_graph(path: str | os.PathLike[str]) -> Engine:
    """Any exported file (policy, encoder or decoder) as arrays in, arrays out."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(2, "no such file", str(file))
    if (size := file.stat().st_size) > LARGEST_FILE:
        raise PolicyFileError(f"{file} has {size:,} bytes; at most {LARGEST_FILE:,} are allowed")
    content = file.read_bytes()
    if zipfile.is_zipfile(io.BytesIO(content)):
        return NumpyEngine(file, content)
    if file.suffix == ".npz":
        raise PolicyFileError(
            f"{file} is damaged: not an npz archive ({len(content)} bytes); export it again"
        )
    return OnnxEngine(file, content)


class RobotPolicy:
    """Acts on one robot: plays chunks, clips, counts, refuses what is not a number."""

    def __init__(self, engine: Engine, *, seed: int = 0):
        self.metadata = engine.metadata
        self._engine = engine
        self._random = np.random.default_rng(seed)
        self._low = np.asarray(engine.metadata["action_low"], np.float32)
        self._high = np.asarray(engine.metadata["action_high"], np.float32)
        # A coordinate that cannot move is not counted as one that was stopped.
        self._movable = self._low < self._high
        self._size = int(engine.metadata["observation_size"])
        self.history: int = engine.metadata.get("history") or 1
        """Number of last observations that a decision depends on."""
        self._window = Window(self.history)
        self._action_horizon = int(engine.metadata["action_horizon"])
        self._draws = engine.metadata["draws"]
        self._queue: deque[np.ndarray] = deque()
        self._last: tuple[int | None, float, float | None] = (None, 0.0, None)
        self.decisions = 0
        """Number of decisions so far."""
        self.clipped = 0
        """Number of action coordinates at the bounds of the range so far."""

    def __repr__(self) -> str:
        described = self.metadata
        agent = (described.get("agent") or {}).get("name", described.get("kind"))
        return (
            f"RobotPolicy({agent}, observations ({self._size},), actions ({len(self._low)},), "
            f"chunk {described['chunk']}, action horizon {self._action_horizon}, "
            f"{described['act']})"
        )

    def reset(self) -> None:
        """Forget a chunk's rest and what was seen: call it at the start of an episode."""
        self._queue.clear()
        self._window.clear()

    def act(self, observation: np.ndarray) -> Decision:
        """The next action.

        ValueError for another size, or a number that is not finite in the observation or the
        action.
        """
        self._window.see(self._checked(observation, self._size))
        planned = not self._queue
        if planned:
            plan = self._run(self._window.flat()[None])
            self._queue.extend(plan.actions[0, : self._action_horizon])
            self._last = (
                None if plan.code is None else int(plan.code[0]),
                float(plan.distance[0]),
                None if plan.entropy is None else float(plan.entropy[0]),
            )
            self.decisions += 1
        action = self._queue.popleft()
        clipped = self.on_edge(action)
        self.clipped += clipped
        code, distance, entropy = self._last
        return Decision(action, code, distance, entropy, clipped, planned)

    def plan(self, observations: np.ndarray, noise: Mapping[str, np.ndarray] | None = None) -> Plan:
        """Chunks for a batch of observations (batch, obs); `noise` is drawn unless given.

        With a history each is a window, the last ones side by side, oldest first:
        (batch, history * obs) or (batch, history, obs).
        """
        batch = np.asarray(observations)
        if self.history > 1 and batch.shape[1:] == (self.history, self._size):
            batch = batch.reshape(len(batch), -1)
        if batch.ndim != 2:
            shape = "(batch, obs)" if self.history == 1 else f"(batch, {self.history}, obs)"
            raise ValueError(f"observations have shape {batch.shape}; expected {shape}")
        size = self.history * self._size
        return self._run(np.stack([self._checked(row, size) for row in batch]), noise)

    def checked(self, observation: np.ndarray) -> np.ndarray:
        """One observation as float32; ValueError for another size, or what is no finite number."""
        return self._checked(observation, self._size)

    def on_edge(self, actions: np.ndarray) -> int:
        """How many coordinates of `actions` (..., act) lie on the edge of the data's range."""
        edge = (actions <= self._low) | (actions >= self._high)
        return int(np.count_nonzero(edge & self._movable))

    def _checked(self, observation: np.ndarray, size: int) -> np.ndarray:
        array = np.asarray(observation)
        if array.shape != (size,):
            past = "" if size == self._size else f", the last {self.history} side by side"
            raise ValueError(
                f"expected an observation of {size} numbers{past}, got shape {array.shape}"
            )
        if array.dtype.kind not in "fiub":
            raise ValueError(f"the observation has type {array.dtype}; expected numbers")
        array = array.astype(np.float32)
        # The sum of squares is finite where every number is, unless they are huge: then look.
        if not math.isfinite(array.dot(array)) and not np.isfinite(array).all():
            place = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(
                f"number {place} of the observation is {array[place]}: no action is "
                "returned; check the sensors"
            )
        return array

    def _run(self, observations: np.ndarray, noise: Mapping[str, np.ndarray] | None = None) -> Plan:
        inputs = {"observation": observations}
        if self._draws:
            inputs |= self.draw(len(observations)) if noise is None else noise
        found = self._engine(inputs)
        actions, distance = found["action"], found["distance"]
        flat = actions.ravel()
        if not math.isfinite(flat.dot(flat)) and not np.isfinite(flat).all():
            raise ValueError(
                "the policy computed an action that is not finite: no action is returned"
            )
        if math.isnan(distance.dot(distance)):  # too far to be told must not look near
            distance = np.where(np.isnan(distance), np.float32(np.inf), distance)
        # The graph clips too; a file that does not must still not leave the range.
        actions = actions.clip(self._low, self._high)
        return Plan(actions, distance, found.get("code"), found.get("entropy"))

    def rehearse(self) -> None:
        """Plan once for an observation of zeros; an error where what comes out is no plan."""
        noise = {
            draw["name"]: np.full((1, *draw["shape"]), 0.5, np.float32) for draw in self._draws
        }
        plan = self._run(np.zeros((1, self.history * self._size), np.float32), noise)
        expected: dict[str, tuple[np.ndarray, tuple[int, ...], str]] = {}
        expected["action"] = plan.actions, (1, self.metadata["chunk"], len(self._low)), "f"
        expected["distance"] = plan.distance, (1,), "f"
        if plan.code is not None:
            expected["code"] = plan.code, (1,), "i"
        if plan.entropy is not None:
            expected["entropy"] = plan.entropy, (1,), "f"
        for name, (array, shape, kind) in expected.items():
            if array.shape != shape or array.dtype.kind != kind:
                raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}")

    def draw(self, batch: int) -> dict[str, np.ndarray]:
        """Noise for a batch, by the names of the graph's inputs; nothing for a greedy policy."""
        random = self._random
        draws: Mapping[str, Callable[..., np.ndarray]] = {
            "gumbel": random.gumbel,
            "normal": random.normal,
            "uniform": random.random,
        }
        return {
            draw["name"]: draws[draw["distribution"]](size=(batch, *draw["shape"])).astype("f4")
            for draw in self._draws
        }
