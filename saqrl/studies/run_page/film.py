"""Rollouts of a run that has just been trained, as a short film beside its result."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saqrl.datasets import EnvironmentSpec
from saqrl.environments.make import make_environment
from saqrl.policy.side_by_side import FILM_RATE, SPEED, side_by_side, without_shadows
from saqrl.policy.storage import load_policy
from saqrl.policy.video import FRAMES_PER_SECOND
from saqrl.training.summary import method_name

FILM = "rollouts.mp4"
# Seconds of drawing that a film is worth, and episodes where there is time for them.
WORTH, EPISODES = 12.0, 2


def leave_film(run: Path, result: Mapping[str, Any]) -> str | None:
    """Write rollouts.mp4 into the run's folder; why there is none, where nothing can be drawn.

    Plain BC moves beside the policy where it was trained. The environment is made: only for a run
    that this process has trained, never for a folder from elsewhere.
    """
    if not result["env"] or (run / FILM).is_file():
        return None
    try:
        policy = load_policy(run)
        if policy.environment is None:
            return None
        shown = {method_name(result): policy}
        if (run / "baseline" / "policy.json").is_file():
            shown["continuous BC"] = load_policy(run / "baseline")
        beside = result.get("baseline") or {}
        steps = sum(record.get("length_mean") or 0 for record in (result, beside))
        seconds = _seconds(policy.environment, float(steps))
        episodes = min(EPISODES, int(WORTH / max(seconds, 1e-3)))
        if not episodes:
            return f"an episode takes about {seconds:.0f} s to draw here"
        side_by_side(shown, policy.environment, run / FILM, episodes=episodes)
    except Exception as error:  # of many kinds, by simulator and driver
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


def _seconds(environment: EnvironmentSpec, steps: float) -> float:
    """What drawing an episode of so many steps takes about."""
    made = make_environment(environment.id, options=environment.options, render=True)
    try:
        without_shadows(made)
        made.reset(seed=0)
        made.render()  # the first one sets up the drawing
        began = time.perf_counter()
        made.render()
        frame = time.perf_counter() - began
        rate = made.metadata.get("render_fps") or FRAMES_PER_SECOND
    finally:
        made.close()
    return frame * steps / max(1, round(rate * SPEED / FILM_RATE))
