"""Killed at any moment, with a full disk too: a resumed run ends as if nothing had happened."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from saqrl import arrays
from saqrl.cli import _message
from saqrl.experiment import train as training
from saqrl.experiment.presets import build_settings
from saqrl.experiment.progress import Reporter
from saqrl.experiment.run import Run, RunError, read_history
from saqrl.experiment.settings import Settings, with_steps

ENVIRONMENT = "saqrl-tests/Drift-v0"
ROWS = 60


class Drift(gymnasium.Env):
    """Five steps of a point that drifts."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.left = self.np_random.uniform(-1, 1, 3).astype(np.float32), 5
        return self.place.copy(), {}

    def step(self, action):
        self.place, self.left = self.place + 0.1 * np.float32(action), self.left - 1
        return self.place.copy(), float(-np.abs(self.place).sum()), False, self.left == 0, {}


@pytest.fixture(scope="module", autouse=True)
def _environment():
    gymnasium.register(ENVIRONMENT, entry_point=Drift)
    yield
    del gymnasium.registry[ENVIRONMENT]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Random steps of Pendulum's shape."""
    path = tmp_path_factory.mktemp("data") / "steps.npz"
    generator = np.random.default_rng(0)
    np.savez(
        path,
        observations=generator.normal(size=(ROWS, 3)).astype(np.float32),
        actions=generator.uniform(-2, 2, (ROWS, 1)).astype(np.float32),
        rewards=generator.uniform(0, 1, ROWS).astype(np.float32),
        next_observations=generator.normal(size=(ROWS, 3)).astype(np.float32),
        terminals=np.zeros(ROWS, bool),
        timeouts=np.arange(ROWS) % 10 == 9,
    )
    return path


def small(dataset: Path) -> Settings:
    settings = build_settings("default", agent="cql", quantizer="vqvae")
    little = {"hidden": (8,), "batch_size": 8}
    settings = dataclasses.replace(
        settings,
        agent=dataclasses.replace(settings.agent, **little),
        quantizer=dataclasses.replace(settings.quantizer, codes=4, code_size=2, **little),
        prior=dataclasses.replace(settings.prior, steps=2, **little),
        dataset=str(dataset),
        env=ENVIRONMENT,
        eval_episodes=2,
        eval_every=2,
        log_every=2,
    )
    return with_steps(settings, steps=4, quantizer_steps=4)


def run(settings: Settings, out: Path, *, resume: bool = False, loggers=()):
    # As the command does it: what does not exist yet is begun.
    resume = resume and out.exists()
    reporter = Reporter(quiet=True)
    return training.train(settings, out, resume=resume, reporter=reporter, loggers=loggers)


def outcome(out: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on interruptions."""
    stages: dict[str, Path] = {}
    for path in sorted((out / "checkpoints").glob("*.ckpt")):
        stages[path.stem.partition("-")[2]] = path
    found: dict[str, object] = {}
    for stage, path in stages.items():
        leaves, header = arrays.read_arrays(path)
        found[stage] = header["step"], {name: leaf.tobytes() for name, leaf in leaves.items()}
    for name in ("metrics.jsonl", "evaluations.jsonl", "policy/weights.npz", "policy/policy.json"):
        found[name] = (out / name).read_bytes()
    result = json.loads((out / "result.json").read_text())
    found["result"] = {
        k: v for k, v in result.items() if k not in ("run", "seconds", "wall_seconds")
    }
    leftovers = [path.name for path in out.rglob("*") if path.name.startswith(".")]
    found["leftovers"] = sorted(leftovers)
    return found


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


class Disk:
    """Counts what is done to files of one folder, and ends the process or its space there.

    "killed": the operation `fatal` does not happen (of a write, half happens) and neither does
    anything after it. "full": it fails for want of space, and so does whatever needs space later.
    """

    NEED_SPACE = ("write", "fsync", "mkdir", "create")

    def __init__(self, monkeypatch, folder: Path, *, fatal: int = -1, how: str = "killed"):
        self.count, self.fatal, self.how, self.over = 0, fatal, how, False
        self._folder, self._mine = str(folder), set()
        for name in ("open", "write", "fsync", "replace", "rename", "unlink", "truncate", "mkdir"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real):
        def watched(subject, *rest, **named):
            place = str(os.fspath(subject)) if not isinstance(subject, int) else ""
            if not (place.startswith(self._folder) or subject in self._mine):
                return real(subject, *rest, **named)
            kind = "create" if name == "open" and rest[0] & os.O_CREAT else name
            if kind != "open":
                self._strike(kind, lambda: real(subject, rest[0][: len(rest[0]) // 2]))
            made = real(subject, *rest, **named)
            if name == "open":
                self._mine.add(made)
            return made

        return watched

    def _strike(self, kind: str, half_write) -> None:
        now = self.count == self.fatal
        self.count += 1
        if self.how == "killed" and (now or self.over):
            if kind == "write" and not self.over:
                half_write()
            self.over = True
            raise Killed
        if self.how == "full" and (now or self.over) and kind in self.NEED_SPACE:
            if kind == "write":
                half_write()
            self.over = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """(settings, outcome of an uninterrupted run, how often it touches the disk)."""
    settings, folder = small(dataset), tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_PERIOD", 0.0)
        disk = Disk(patch, folder)
        run(settings, folder / "run")
    return settings, outcome(folder / "run"), disk.count


def test_a_run_touches_the_disk_often_enough_to_be_worth_killing(whole):
    assert whole[2] > 60
    assert whole[1]["leftovers"] == [".lock"]


def interrupt(settings, out, *, fatal, how):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_PERIOD", 0.0)
        Disk(patch, out.parent, fatal=fatal, how=how)
        try:
            run(settings, out, resume=True)
        except Killed:
            return None
        except OSError as error:
            return error
        except RunError as error:  # the folder could not be made
            return error
    return None


def check(whole, folder, *, fatal, how):
    settings, expected, _ = whole
    folder.mkdir()
    error = interrupt(settings, folder / "run", fatal=fatal, how=how)
    if error is not None:
        message = _message(error)
        assert "\n" not in message
        assert "space" in message, (fatal, message)
        assert str(folder / "run") in message, (fatal, message)
    run(settings, folder / "run", resume=True)
    assert outcome(folder / "run") == expected, (fatal, how)
    assert [path.name for path in folder.iterdir()] == ["run"], (fatal, how)


@pytest.mark.parametrize("how", ["killed", "full"])
def test_a_run_struck_at_any_of_some_operations_ends_like_a_whole_one(whole, tmp_path, how):
    # Every operation is struck in the slow set; a stride that is prime to what one checkpoint
    # does strikes each kind of operation here.
    for fatal in range(0, whole[2], 13):
        check(whole, tmp_path / f"{fatal}", fatal=fatal, how=how)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "full"])
def test_a_run_struck_at_every_operation_ends_like_a_whole_one(whole, tmp_path, how):
    for fatal in range(whole[2]):
        check(whole, tmp_path / f"{fatal}", fatal=fatal, how=how)


@pytest.mark.slow
def test_a_run_struck_again_and_again_ends_like_a_whole_one(whole, tmp_path):
    generator = random.Random(0)
    for attempt in range(20):
        out = tmp_path / f"{attempt}" / "run"
        out.parent.mkdir()
        for _ in range(6):
            how = generator.choice(["killed", "full"])
            interrupt(whole[0], out, fatal=generator.randrange(whole[2]), how=how)
        run(whole[0], out, resume=True)
        assert outcome(out) == whole[1], attempt
