"""Demonstrations from scripted oracles: OGBench's cube, scene and puzzle; robosuite's transport.

"expert" solves one fixed task of a single-task environment in every episode (narrow data); "human"
does the same with the variation of people (`manners`); "play" and "noisy" move to random targets,
like OGBench's own data.
Source of oracles and settings: Park et al. 2025, OGBench (arXiv 2410.20092); of transport, saqrl.

An episode depends on (seed, its number) alone, so neither the number of workers nor the number of
episodes changes it.
"""

import importlib.metadata
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import get_args

import numpy as np

from saqrl.environments.families import family_of
from saqrl.environments.make import environment_versions
from saqrl.environments.oracles.demonstrator import Demonstrator, Recipe, Result, Style
from saqrl.environments.oracles.manners import MANNERS
from saqrl.environments.oracles.ogbench_tasks import OGBenchDemonstrator
from saqrl.environments.oracles.robosuite_tasks import TASKS, TransportDemonstrator
from saqrl.environments.simulators import import_simulator
from saqrl.registry import closest

CUBES = ("single", "double", "triple", "quadruple", "octuple")
PUZZLES = ("3x3", "4x4", "4x5", "4x6")
BASES = (*(f"cube-{n}" for n in CUBES), "scene", *(f"puzzle-{n}" for n in PUZZLES))


def collect(
    environment_id: str,
    *,
    style: Style,
    episodes: int,
    seed: int,
    noise: float = 0.1,
    workers: int = 1,
    max_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Demonstrate in `environment_id` and return the arrays of an npz data set.

    expert: `<env>-singletask-taskN-v0` or one of `robosuite_tasks.TASKS`; every episode ends in
    success (failed ones are repeated), Gaussian noise of standard deviation `noise` on each action
    in [-1, 1], rewards and terminals of the environment. OGBench ends an episode one step after
    the goal is reached, robosuite at that step; its noise grows with the command.
    human: as expert, with what `manners.MANNERS` draws for each episode and leg: sides, arcs,
    speeds, rests, corrections, order; while the hand rests, the noise is a fifth.
    play: open-loop plans with correlated noise. noisy: closed-loop oracle, Gaussian noise whose
    strength is drawn from [0, noise] for each episode, some actions uniform. With a single-task id
    both have that task's rewards, from ogbench's own relabelling: an episode ends at a solved
    state, and a new one begins when the state is no longer solved. Otherwise the arrays are those
    of OGBench's own files (positions, velocities and buttons, no rewards): a reader can compute the
    rewards of any task.

    `max_steps` defaults to the environment's limit (expert, human) or 1000 (play, noisy). If
    `workers` is above 1, as many processes share the episodes; each takes about 3 seconds to start,
    and the caller's script needs the usual `if __name__ == "__main__"`. `progress` gets (done,
    total).

    Raises ValueError for an id without an oracle, a style that does not fit it, or a number out of
    range; ImportError if the simulator is missing; RuntimeError if an episode failed ATTEMPTS times
    in a row.
    """
    base, task = _parse(environment_id, style)
    _check_numbers(episodes=episodes, seed=seed, noise=noise, workers=workers, max_steps=max_steps)
    recipe = Recipe(environment_id, base, task, style, seed, float(noise), max_steps)
    _import_simulator(environment_id)  # here, so that a missing package is one clear error
    results = []
    for result in _run(recipe, episodes, workers):
        results.append(result)
        if progress is not None:
            progress(len(results), episodes)
    arrays = {key: np.concatenate([rows[key] for rows, _ in results]) for key in results[0][0]}
    provenance = {
        "made_by": "saqrl collect",
        "style": style,
        "episodes": episodes,
        "seed": seed,
        "noise": float(noise),
        "max_steps": max_steps,
        "failed_attempts": sum(failures for _, failures in results),
        "versions": _versions(environment_id),
    }
    arrays["provenance"] = np.array(json.dumps(provenance, sort_keys=True))
    if "qpos" in arrays:
        return arrays
    width = arrays["actions"].shape[1]
    return {
        **arrays,
        "environment_id": np.array(environment_id),
        "action_low": np.full(width, -1, np.float32),
        "action_high": np.full(width, 1, np.float32),
    }


def _parse(environment_id: str, style: str) -> tuple[str, bool]:
    """(name such as 'cube-double', whether a task is fixed); ValueError if no oracle fits."""
    if style not in get_args(Style):
        raise ValueError(f"unknown style {style!r}; {closest(style, get_args(Style))}")
    if environment_id in TASKS:
        if style not in MANNERS:
            raise ValueError(
                f"style {style} is for OGBench, but {environment_id} was given: "
                f"choose style {' or '.join(MANNERS)}"
            )
        return environment_id, True
    match = re.fullmatch(r"(.+?)(-singletask(-task[1-5])?)?-v0", environment_id)
    if match is None or match[1] not in BASES:
        known = [*(f"{base}-singletask-task1-v0" for base in BASES), *TASKS]
        raise ValueError(
            f"no scripted oracle for {environment_id!r}: there are oracles only for OGBench's "
            f"cube, scene and puzzle and for {', '.join(TASKS)}; {closest(environment_id, known)}"
        )
    if style in MANNERS and match[2] is None:
        raise ValueError(
            f"style {style} needs one fixed task, but {environment_id!r} has many: "
            f"choose {match[1]}-singletask-task1-v0 (to task5), or another style"
        )
    return match[1], match[2] is not None


def _check_numbers(
    *, episodes: int, seed: int, noise: float, workers: int, max_steps: int | None
) -> None:
    for name, value, lowest in (
        ("episodes", episodes, 1),
        ("seed", seed, 0),
        ("workers", workers, 1),
        ("max_steps", 1 if max_steps is None else max_steps, 1),
    ):
        if value < lowest:
            raise ValueError(f"{name} is {value}; expected a whole number of at least {lowest}")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is {noise}; expected 0 to 1, because actions are in [-1, 1]")


def _versions(environment_id: str) -> dict[str, str]:
    return environment_versions(environment_id) | {"numpy": importlib.metadata.version("numpy")}


def _import_simulator(environment_id: str) -> None:
    """ImportError with the install command if its package is missing."""
    family = family_of(environment_id)
    import_simulator(environment_id, family.modules, extra=family.extra)


def _made(recipe: Recipe) -> Demonstrator:
    """The demonstrator of this process; the import registers the simulator's ids."""
    _import_simulator(recipe.environment_id)
    if recipe.environment_id in TASKS:
        return TransportDemonstrator(recipe)
    return OGBenchDemonstrator(recipe)


# Of a worker process.
_demonstrator: Demonstrator | None = None


def _run(recipe: Recipe, episodes: int, workers: int) -> Iterator[Result]:
    """Episodes in their order, each with the number of its failed attempts."""
    if workers == 1 or episodes == 1:
        yield from map(_made(recipe), range(episodes))
        return
    pool = ProcessPoolExecutor(
        min(workers, episodes),
        multiprocessing.get_context("spawn"),  # a fork would copy the locks of JAX's threads
        initializer=_start_worker,
        initargs=(recipe,),
    )
    try:
        yield from pool.map(_demonstrate, range(episodes))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(recipe: Recipe) -> None:
    global _demonstrator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles an interrupt
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _demonstrator = _made(recipe)


def _end_with_parent() -> None:
    """End the worker when its parent is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _demonstrate(episode: int) -> Result:
    if _demonstrator is None:
        raise RuntimeError("this process was not started as a worker")
    return _demonstrator(episode)
