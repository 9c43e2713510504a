"""Tiny runs to test with: a point that walks to the origin, and demonstrations of it."""

import dataclasses
from pathlib import Path

import gymnasium
import numpy as np

from saqrl.training import train as training
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings, with_steps

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


def small(dataset: Path, agent: str = "iql", **changes) -> Settings:
    settings = build_settings("default", agent=agent, quantizer="vqvae")
    little = {"hidden": (16,), "batch_size": 16}
    settings = dataclasses.replace(
        settings,
        agent=dataclasses.replace(settings.agent, **little),
        quantizer=dataclasses.replace(settings.quantizer, codes=8, code_size=4, **little),
        prior=dataclasses.replace(settings.prior, steps=20, **little),
        dataset=str(dataset),
        env=ENVIRONMENT,
        eval_episodes=3,
        eval_every=20,
        log_every=10,
        **changes,
    )
    return with_steps(settings, steps=40, quantizer_steps=30)


def run(settings: Settings, out: Path, *, resume: bool = False):
    return training.train(settings, out, resume=resume, reporter=Reporter(quiet=True))


def outcome(out: Path) -> dict[str, bytes | str]:
    """Everything of a finished run that must not depend on interruptions."""
    with np.load(out / "policy" / "weights.npz") as archive:
        weights = {name: archive[name].tobytes() for name in archive.files}
    texts = {name: (out / f"{name}.jsonl").read_text() for name in ("metrics", "evaluations")}
    return weights | texts
