"""Tiny runs to test with: a point that walks to the origin, and demonstrations of it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from saqrl.training import train as training
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunFolder
from saqrl.training.settings import Settings

ENVIRONMENT = "saqrl-tests/Point-v0"


class Point(gymnasium.Env):
    """Go to the origin in the plane; 20 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.left = 20
        return self.place.copy(), {}

    def step(self, action):
        self.place = self.place + 0.2 * np.clip(action, -1, 1).astype(np.float32)
        self.left -= 1
        near = bool(np.linalg.norm(self.place) < 0.2)
        return self.place.copy(), float(near), near, self.left == 0, {"success": near}


def flags_of(dataset: Path, agent: str = "iql", **flags) -> dict[str, object]:
    """A tiny run as `saqrl train` is asked for it; `flags` add to it."""
    return {
        "dataset": str(dataset),
        "env": ENVIRONMENT,
        "agent": agent,
        "agent.hidden": 16,
        "agent.batch_size": 16,
        "steps": 40,
        "quantizer.hidden": 16,
        "quantizer.batch_size": 16,
        "quantizer.codes": 8,
        "quantizer.code_size": 4,
        "quantizer_steps": 30,
        "prior.hidden": 16,
        "prior.batch_size": 16,
        "prior.steps": 20,
        "eval_episodes": 3,
        "eval_every": 20,
        "log_every": 10,
        **flags,
    }


def small(dataset: Path, agent: str = "iql", **flags) -> Settings:
    """A tiny run's settings."""
    return settings_from(flags_of(dataset, agent, **flags))


def words(dataset: Path, agent: str = "iql", **flags) -> list[str]:
    """The same for the command."""
    named = flags_of(dataset, agent, **flags).items()
    return [word for name, value in named for word in (f"--{name.replace('_', '-')}", str(value))]


def run(settings: Settings, out: Path, *, resume: bool = False):
    return training.train(settings, out, resume=resume, reporter=Reporter(quiet=True))


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


@contextmanager
def dying(monkeypatch, *, blow: int) -> Iterator[None]:
    """What runs inside dies right after so many lines of its histories."""
    append, lines = RunFolder.append, 0

    def deadly(self, history, record):
        nonlocal lines
        append(self, history, record)
        lines += 1
        if lines == blow:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", deadly)
        with pytest.raises(Killed):
            yield


@contextmanager
def full_disk(monkeypatch, *, stage: str, after: int) -> Iterator[None]:
    """Inside no checkpoint of the stage is written after so many of them."""
    save, count = RunFolder.save_checkpoint, 0

    def full(self, name, *arguments, **keywords):
        nonlocal count
        count += name == stage
        if count > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, name, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", full)
        yield


def killed(settings: Settings, out: Path, monkeypatch, *, blow: int) -> None:
    """A run that dies."""
    with dying(monkeypatch, blow=blow):
        run(settings, out)


def outcome(out: Path) -> dict[str, bytes | str]:
    """Everything of a finished run that must not depend on interruptions."""
    with np.load(out / "policy" / "weights.npz") as archive:
        weights = {name: archive[name].tobytes() for name in archive.files}
    texts = {name: (out / f"{name}.jsonl").read_text() for name in ("metrics", "evaluations")}
    return weights | texts
