"""`saqrl collect`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import parse
from saqrl.datasets.formats.writers import check_destination, save_arrays
from saqrl.environments.oracles.collect import collect
from saqrl.training.progress import Reporter


@dataclass
class Collect:
    """Make demonstrations with scripted experts: cube, scene, puzzle, two-arm transport."""

    env: str
    """environment id, such as cube-single-singletask-task2-v0 or robosuite/TwoArmTransport"""
    out: str
    """file to write (.npz)"""
    style: Literal["expert", "human", "play", "noisy"] = "expert"
    """expert: one fixed task, all successes; human: the same, varied as people do (sides, arcs,
    speeds, wrist turns, order, rests of up to 1.5 s); play, noisy: like the benchmark's own data"""
    episodes: int = 100
    """episodes to collect"""
    seed: int = 0
    """random seed; the same seed gives the same file"""
    noise: float = 0.1
    """standard deviation of the noise on the actions, which are in [-1, 1]"""
    workers: int = 1
    """number of processes; the data do not depend on it"""
    json: bool = False
    """last line of stdout: what was collected, as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Collect, arguments)
    out, reporter = Path(asked.out), Reporter()
    check_destination(out)
    with reporter.stage("collect", asked.episodes, unit="episodes") as update:
        arrays = collect(
            asked.env,
            style=asked.style,
            episodes=asked.episodes,
            seed=asked.seed,
            noise=asked.noise,
            workers=min(asked.workers, os.cpu_count() or 1),
            progress=lambda done, total: update(done, ""),
        )
    save_arrays(out, arrays)
    tasks = "rewards" in arrays
    # Without a task the last row of an episode is where it ends, not a step.
    steps = len(arrays["actions"]) - (0 if tasks else asked.episodes)
    say(f"{out}: {asked.episodes} episodes, {steps:,} steps in {reporter.elapsed:.0f} s")
    train = f"saqrl train --dataset {out}"
    if not tasks:
        train += f" --env {asked.env.removesuffix('-v0')}-singletask-task1-v0"
    say(f"next: saqrl inspect {out}   or   {train}")
    if asked.json:
        print_json(
            {
                "out": str(out),
                "env": asked.env,
                "style": asked.style,
                "seed": asked.seed,
                "episodes": asked.episodes,
                "steps": steps,
                "wall_seconds": round(reporter.elapsed, 2),
            }
        )
    return 0
