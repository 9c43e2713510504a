"""Demonstrations from the scripted oracles of the `ogbench` package: cube, scene, puzzle.

"expert" solves one fixed task of a single-task environment, over and over (narrow data); "play"
and "noisy" wander among random targets as the benchmark's own data do.
Source: Park et al. 2025, OGBench (arXiv 2410.20092), whose oracles and settings these are.

An episode depends on (seed, its number) alone, so neither the number of workers nor the number of
episodes changes it.
"""

import contextlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from jaxtyping import Bool, Float64, Int

from saqrl.environments.simulators import import_simulator, quiet, reproducible
from saqrl.registry import closest

Style = Literal["expert", "play", "noisy"]
Info = Mapping[str, Any]

# Environment seeds of collected data have this bit; those of evaluations count up from 100000.
SEED_BIT = 1 << 31

# A demonstration that fails is drawn anew this often before collection gives up.
ATTEMPTS = 20

# The benchmark's files: 1001 rows an episode, of which the last has no successor.
PLAY_STEPS = 1000

CUBES = ("single", "double", "triple", "quadruple", "octuple")
PUZZLES = ("3x3", "4x4", "4x5", "4x6")
BASES = (*(f"cube-{n}" for n in CUBES), "scene", *(f"puzzle-{n}" for n in PUZZLES))

# Chance that a play target lies on top of another cube, drawn once an episode between these.
# Source: OGBench's generator of its manipulation data.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}

# Rows of `noisy` data on which a uniform action replaces the oracle's; the commands behind
# OGBench's published files use 0.2 for puzzle and 0.1 elsewhere.
RANDOM_ACTIONS = {"puzzle": 0.2}


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
    """Demonstrate in `environment_id` and return the arrays of a plain npz data set.

    expert: `<env>-singletask-taskN-v0`; every episode ends in success (failures are drawn anew),
    Gaussian noise of standard deviation `noise` on each action in [-1, 1], rewards and terminals
    of the environment, which ends one step after the goal is reached.
    play: open-loop plans with correlated noise. noisy: closed-loop oracle, Gaussian noise of a
    strength drawn from [0, noise] an episode, some actions uniform. With a single-task id both
    carry that task's rewards, by ogbench's own relabelling: an episode stops at a solved state and
    goes on as another once it is left. Otherwise rewards are 0 and nothing terminates.

    `max_steps` defaults to the environment's limit (expert) or 1000 (play, noisy). `workers` other
    processes share the episodes if above 1; each takes about 3 seconds to start, and the caller's
    script needs the usual `if __name__ == "__main__"`. `progress` gets (done, total).

    ValueError: an id without oracle, a style that does not fit it, a number out of range.
    ImportError: ogbench is missing. RuntimeError: an episode failed ATTEMPTS times in a row.
    """
    base, task = _parse(environment_id, style)
    _check_numbers(episodes=episodes, seed=seed, noise=noise, workers=workers, max_steps=max_steps)
    recipe = Recipe(environment_id, base, task, style, seed, float(noise), max_steps)
    _import_ogbench(environment_id)  # here, so that a missing package is one clear error
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
    width = arrays["actions"].shape[1]
    return {
        **arrays,
        "environment_id": np.array(environment_id),
        "action_low": np.full(width, -1, np.float32),
        "action_high": np.full(width, 1, np.float32),
        "provenance": np.array(json.dumps(provenance, sort_keys=True)),
    }


def check_destination(path: Path) -> None:
    """Refuse a file that cannot or must not be written, before any work is done for it."""
    if path.suffix != ".npz":
        raise ValueError(f"{path}: this is written as npz; choose a name that ends in .npz")
    if path.exists():
        raise FileExistsError(f"{path} exists and is never overwritten: remove it or rename --out")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; create it first")


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as a compressed npz: the whole file or none."""
    check_destination(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Recipe:
    """What a worker process needs to make any episode of a collection."""

    environment_id: str
    base: str
    task: bool
    style: Style
    seed: int
    noise: float
    max_steps: int | None


def _parse(environment_id: str, style: str) -> tuple[str, bool]:
    """(name such as 'cube-double', whether a task is fixed); ValueError if no oracle fits."""
    if style not in get_args(Style):
        raise ValueError(f"unknown style {style!r}; {closest(style, get_args(Style))}")
    match = re.fullmatch(r"(.+?)(-singletask(-task[1-5])?)?-v0", environment_id)
    if match is None or match[1] not in BASES:
        known = [f"{base}-singletask-task1-v0" for base in BASES]
        raise ValueError(
            f"no scripted oracle for {environment_id!r}: ogbench has them for its cube, scene and "
            f"puzzle environments; {closest(environment_id, known)}"
        )
    if style == "expert" and match[2] is None:
        raise ValueError(
            f"style expert needs one fixed task, and {environment_id!r} has many: "
            f"give {match[1]}-singletask-task1-v0 (to task5), or another style"
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
            raise ValueError(f"{name} is {value}; expected a whole number from {lowest} on")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is {noise}; expected 0 to 1, as actions are in [-1, 1]")


def _import_ogbench(environment_id: str) -> None:
    import_simulator(environment_id, ("mujoco", "ogbench"), extra="ogbench")


def _versions(environment_id: str) -> dict[str, str]:
    versions = {
        name: importlib.metadata.version(name)
        for name in ("ogbench", "mujoco", "dm_control", "gymnasium", "numpy")
    }
    timing = gymnasium.spec(environment_id).kwargs.get("success_timing", "post")
    return {**versions, "success_timing": str(timing)}


# Processes.

Result = tuple[dict[str, np.ndarray], int]
_demonstrator: "Demonstrator | None" = None


def _run(recipe: Recipe, episodes: int, workers: int) -> Iterator[Result]:
    """Episodes in their order, with the number of attempts that each one lost."""
    if workers == 1 or episodes == 1:
        yield from map(Demonstrator(recipe), range(episodes))
        return
    pool = ProcessPoolExecutor(
        min(workers, episodes),
        multiprocessing.get_context("spawn"),  # a fork would copy locks of JAX's threads
        initializer=_start_worker,
        initargs=(recipe,),
    )
    try:
        yield from pool.map(_demonstrate, range(episodes))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(recipe: Recipe) -> None:
    global _demonstrator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers an interrupt
    _demonstrator = Demonstrator(recipe)


def _demonstrate(episode: int) -> Result:
    if _demonstrator is None:
        raise RuntimeError("this process was not started as a worker")
    return _demonstrator(episode)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """NumPy's global generator, which the oracles draw from, seeded and afterwards put back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


class Demonstrator:
    """Environment and oracles of one process; called with an episode's number, makes it."""

    def __init__(self, recipe: Recipe) -> None:
        _import_ogbench(recipe.environment_id)
        self.recipe = recipe
        expert = recipe.style == "expert"
        options: dict[str, Any] = (
            {} if expert else {"mode": "data_collection", "terminate_at_goal": False}
        )
        own_id = recipe.environment_id if expert else f"{recipe.base}-v0"
        environment = _make(own_id, **options)
        limit = environment.spec.max_episode_steps if environment.spec else None
        self.max_steps = recipe.max_steps or (limit if expert and limit else PLAY_STEPS)
        # The wrappers only count steps; this loop does so itself.
        self.world: Any = environment.unwrapped
        self.judge = _make(recipe.environment_id) if recipe.task and not expert else None
        self.oracles = _oracles(recipe, self.world)

    def __call__(self, episode: int) -> Result:
        for attempt in range(ATTEMPTS):
            entropy = np.random.SeedSequence((self.recipe.seed, episode, attempt))
            environment_seed, oracle_seed, stream = entropy.spawn(3)
            generator = np.random.default_rng(stream)
            seed = int(environment_seed.generate_state(1)[0]) | SEED_BIT
            with quiet(), _global_seed(int(oracle_seed.generate_state(1)[0])):
                observation, info = self.world.reset(seed=seed)
                play = self._demonstrate if self.recipe.style == "expert" else self._wander
                rows = play(observation, info, generator)
            if rows is not None:
                return rows, attempt
        raise RuntimeError(
            f"{self.recipe.environment_id}: episode {episode} failed {ATTEMPTS} times in a row "
            f"with noise {self.recipe.noise} and at most {self.max_steps} steps; "
            "lower the noise or choose another task"
        )

    def _demonstrate(
        self, observation: np.ndarray, info: dict[str, Any], generator: np.random.Generator
    ) -> dict[str, np.ndarray] | None:
        """One solution of the fixed task, or None if the time ran out."""
        rows = _Rows()
        plan = PLANNERS[self.recipe.base.partition("-")[0]]
        subtask: Subtask | None = None
        while len(rows) < self.max_steps:
            if subtask is None or subtask.reached(info) or self.oracles[subtask.oracle].done:
                subtask = plan(self.world, info, generator)
                self.oracles[subtask.oracle].reset(observation, info | subtask.target(info))
            action = self.oracles[subtask.oracle].select_action(
                observation, info | subtask.target(info)
            )
            noisy = np.asarray(action) + generator.normal(0, self.recipe.noise, np.shape(action))
            action = np.clip(noisy, -1, 1).astype(np.float32)
            following, reward, terminated, _, info = self.world.step(action)
            rows.add(observation, action, reward, following, terminated)
            observation = following
            if terminated:
                return rows.arrays()
        return None

    def _wander(
        self, observation: np.ndarray, info: dict[str, Any], generator: np.random.Generator
    ) -> dict[str, np.ndarray] | None:
        """One episode after random targets, or None if the cube left the scene."""
        recipe, rows = self.recipe, _Rows()
        stacking = generator.uniform(*STACKING.get(recipe.base, (0.5, 0.5)))
        family = recipe.base.partition("-")[0]
        noisy = recipe.style == "noisy"
        strength = generator.uniform(0, recipe.noise) if noisy else 0.0
        scale = strength * np.array([1, 1, 1, 3, 10])  # metres, radians, gripper: their own ranges
        random_actions = RANDOM_ACTIONS.get(family, 0.1) if noisy else 0.0
        oracle = self.oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        while len(rows) < self.max_steps:
            rows.add_state(self.world)
            if generator.uniform() < random_actions:
                action = generator.uniform(-1, 1, len(scale))
            else:
                action = oracle.select_action(observation, info) + generator.normal(0, 1, 5) * scale
            action = np.clip(action, -1, 1).astype(np.float32)
            following, _, _, _, info = self.world.step(action)
            rows.add(observation, action, 0.0, following, terminated=False)
            observation = following
            if oracle.done:
                _, info = self.world.set_new_target(p_stack=stacking)
                oracle = self.oracles[info["privileged/target_task"]]
                oracle.reset(observation, info)
        if family == "scene" and not _in_view(rows.states["qpos"]):
            return None
        arrays = rows.arrays()
        return arrays if self.judge is None else self._relabelled(arrays, rows.states)

    def _relabelled(
        self, arrays: dict[str, np.ndarray], states: Mapping[str, list[np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Rewards and terminals of the fixed task; of each stay in a solved state, its first row.

        A solved state ends an episode, so its further rows would be episodes of one step.
        """
        from ogbench.relabel_utils import relabel_dataset

        judged: dict[str, Any] = {key: np.array(values) for key, values in states.items()}
        relabel_dataset(self.recipe.environment_id, self.judge, judged)
        solved = judged["masks"] == 0
        keep = ~(solved & np.append(False, solved[:-1]))
        return {
            **{key: value[keep] for key, value in arrays.items()},
            "rewards": judged["rewards"].astype(np.float32)[keep],
            "terminals": solved[keep],
            "timeouts": (arrays["timeouts"] & ~solved)[keep],
        }


class _Rows:
    """Steps of one episode as they come."""

    def __init__(self) -> None:
        self._steps: list[tuple[np.ndarray, np.ndarray, float, np.ndarray, bool]] = []
        self.states: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._steps)

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        following: np.ndarray,
        terminated: bool,
    ) -> None:
        self._steps.append((observation, action, reward, following, terminated))

    def add_state(self, world: Any) -> None:
        """What relabelling needs to know of the state before the step."""
        self.states.setdefault("qpos", []).append(world.data.qpos.copy())
        if hasattr(world, "_cur_button_states"):
            self.states.setdefault("button_states", []).append(world._cur_button_states.copy())

    def arrays(self) -> dict[str, np.ndarray]:
        observations, actions, rewards, following, terminated = zip(*self._steps, strict=True)
        terminals = np.array(terminated, bool)
        timeouts = np.zeros(len(self), bool)
        timeouts[-1] = not terminals[-1]
        return {
            "observations": np.array(observations, np.float32),
            "actions": np.array(actions, np.float32),
            "rewards": np.array(rewards, np.float32),
            "next_observations": np.array(following, np.float32),
            "terminals": terminals,
            "timeouts": timeouts,
        }


def _make(environment_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    with quiet():
        return gymnasium.make(
            reproducible(gymnasium.spec(environment_id)), disable_env_checker=True, **options
        )


def _oracles(recipe: Recipe, world: Any) -> dict[str, Any]:
    """One oracle a kind of target, as OGBench's generator of its data sets them up."""
    from ogbench.manipspace.oracles.markov import (
        button_markov,
        cube_markov,
        drawer_markov,
        window_markov,
    )
    from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

    closed = {"gripper_always_closed": True} if recipe.base.startswith("puzzle") else {}
    if recipe.style == "play":
        shared: dict[str, Any] = {"env": world, "noise": recipe.noise, "noise_smoothing": 0.5}
        kinds: dict[str, Any] = {
            "cube": cube_plan.CubePlanOracle,
            "button": button_plan.ButtonPlanOracle,
            "drawer": drawer_plan.DrawerPlanOracle,
            "window": window_plan.WindowPlanOracle,
        }
    else:
        shared = {"env": world, "min_norm": 0.4}
        kinds = {
            "cube": cube_markov.CubeMarkovOracle,
            "button": button_markov.ButtonMarkovOracle,
            "drawer": drawer_markov.DrawerMarkovOracle,
            "window": window_markov.WindowMarkovOracle,
        }
    wanted = {"cube": ("cube",), "puzzle": ("button",)}.get(recipe.base.partition("-")[0], kinds)
    return {kind: kinds[kind](**shared, **(closed if kind == "button" else {})) for kind in wanted}


def _in_view(qpos: list[np.ndarray]) -> bool:
    """Whether the cube of `scene` stayed on the table or in the drawer; metres.

    Source: the check in OGBench's generator, which draws such an episode anew.
    """
    _, y, z = np.array(qpos)[:, 14:17].T
    beside_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not ((y >= 0.29) | beside_drawer).any()


# The expert: which oracle to run next, and towards what.


@dataclass(frozen=True)
class Subtask:
    """One oracle's target, told in the words that the oracle reads from `info`."""

    oracle: str
    target: Callable[[Info], dict[str, Any]]
    reached: Callable[[Info], bool]


Planner = Callable[[Any, Info, np.random.Generator], Subtask]

# Heights (m) at which the oracles themselves consider the arm clear of what it has handled.
CLEAR_OF_TABLE, CLEAR_OF_DRAWER, CLEAR_OF_WINDOW = 0.16, 0.18, 0.28
# Nearer than this (m) a thing is in place; the tasks accept 0.04.
IN_PLACE = 0.03


def _clear(info: Info, height: float) -> bool:
    return bool(info["proprio/effector_pos"][2] > height)


def _move_cube(cube: int, goal: Float64[np.ndarray, "3"]) -> Subtask:
    target = {
        "privileged/target_block": cube,
        "privileged/target_block_pos": goal,
        "privileged/target_block_yaw": np.zeros(1),
    }

    def reached(info: Info) -> bool:
        distance = np.linalg.norm(info[f"privileged/block_{cube}_pos"] - goal)
        released = info["proprio/gripper_contact"][0] < 0.1
        return bool(distance <= IN_PLACE and released and _clear(info, CLEAR_OF_TABLE))

    return Subtask("cube", lambda info: target, reached)


def _press(world: Any, button: int) -> Subtask:
    """Press once; the button, and in a puzzle its neighbours, change state."""
    wanted = 1 - int(world._cur_button_states[button])

    def target(info: Info) -> dict[str, Any]:
        return {
            "privileged/target_button": button,
            "privileged/target_button_state": wanted,
            "privileged/target_button_top_pos": world.data.site_xpos[
                world._button_site_ids[button]
            ].copy(),
        }

    def reached(info: Info) -> bool:
        pressed = info[f"privileged/button_{button}_state"] == wanted
        return bool(pressed and _clear(info, CLEAR_OF_TABLE))

    return Subtask("button", target, reached)


def _slide(world: Any, part: Literal["drawer", "window"], goal: float, height: float) -> Subtask:
    """Pull or push a drawer or window until its joint stands at `goal` (m)."""
    axis = world.data.joint(f"{part}_slide").xaxis.copy()

    def target(info: Info) -> dict[str, Any]:
        missing = goal - info[f"privileged/{part}_pos"][0]
        handle = info[f"privileged/{part}_handle_pos"] + missing * axis
        return {f"privileged/target_{part}_handle_pos": handle}

    def reached(info: Info) -> bool:
        missing = abs(goal - info[f"privileged/{part}_pos"][0])
        return bool(missing <= IN_PLACE / 2 and _clear(info, height))

    return Subtask(part, target, reached)


def _plan_cubes(world: Any, info: Info, generator: np.random.Generator) -> Subtask:
    """The next cube to carry: lowest goals first, and out of the way what stands in the way."""
    count = world._num_cubes
    cubes = np.array([info[f"privileged/block_{i}_pos"] for i in range(count)])
    goals = np.array([world.data.mocap_pos[m] for m in world._cube_target_mocap_ids])
    away = np.linalg.norm(cubes - goals, axis=1) > IN_PLACE
    apart = np.linalg.norm(cubes[:, None, :2] - cubes[None, :, :2], axis=-1)
    # on[i, j]: cube j stands on cube i.
    on = (apart < IN_PLACE) & (cubes[None, :, 2] - cubes[:, None, 2] > 0.02)
    to_goal = np.linalg.norm(goals[:, None, :2] - cubes[None, :, :2], axis=-1)
    # blocks[i, j]: cube j stands where cube i is to go, or above it. Cubes are 0.04 m wide.
    blocks = (to_goal < 0.035) & (cubes[None, :, 2] > goals[:, None, 2] - 0.02)
    np.fill_diagonal(blocks, val=False)
    below = goals[:, 2] - 0.04
    stands = (to_goal < IN_PLACE) & (np.abs(cubes[None, :, 2] - below[:, None]) < 0.02)
    supported = (below < 0) | (stands & ~away[None, :]).any(1)
    order = np.argsort(goals[:, 2], kind="stable")
    free = ~on.any(1)
    for cube in order:
        if away[cube] and free[cube] and supported[cube] and not blocks[cube].any():
            return _move_cube(int(cube), goals[cube])
    in_the_way = free & ((blocks & away[:, None]).any(0) | (on & away[:, None]).any(0))
    if in_the_way.any():
        return _move_cube(
            int(np.flatnonzero(in_the_way)[0]), _free_spot(world, cubes, goals, generator)
        )
    return _move_cube(int(order[np.argmax(away[order])]), goals[order[np.argmax(away[order])]])


def _free_spot(
    world: Any,
    cubes: Float64[np.ndarray, "cubes 3"],
    goals: Float64[np.ndarray, "cubes 3"],
    generator: np.random.Generator,
) -> Float64[np.ndarray, "3"]:
    """A place on the table as far from cubes and goals as a few draws allow."""
    low, high = world._object_sampling_bounds
    spots = generator.uniform(low, high, (32, 2))
    taken = np.concatenate([cubes, goals])[:, :2]
    room = np.linalg.norm(spots[:, None] - taken[None], axis=-1).min(1)
    return np.append(spots[np.argmax(room)], 0.02)


def _plan_scene(world: Any, info: Info, generator: np.random.Generator) -> Subtask:
    """Cube, then drawer and window, unlocked first if need be, then the locks."""
    drawer, window = info["privileged/drawer_pos"][0], info["privileged/window_pos"][0]
    drawer_goal, window_goal = world._target_drawer_pos, world._target_window_pos
    states, wanted = world._cur_button_states, world._target_button_states
    cube = info["privileged/block_0_pos"]
    goal = world.data.mocap_pos[world._cube_target_mocap_ids[0]].copy()
    if world._is_in_drawer(goal) or goal[1] < -0.3:  # the drawer's place while it is shut
        if not world._is_in_drawer(cube):
            if drawer > -0.14:  # not open: fully open is -0.16
                return _press(world, 0) if states[0] == 0 else _open_drawer(world)
            return _move_cube(0, world._drawer_center.copy())
    elif np.linalg.norm(cube - goal) > IN_PLACE:
        return _move_cube(0, goal)
    if abs(drawer - drawer_goal) > IN_PLACE:
        locked = states[0] == 0
        return _press(world, 0) if locked else _slide(world, "drawer", drawer_goal, CLEAR_OF_DRAWER)
    if abs(window - window_goal) > IN_PLACE:
        locked = states[1] == 0
        return _press(world, 1) if locked else _slide(world, "window", window_goal, CLEAR_OF_WINDOW)
    differing = np.flatnonzero(states != wanted)
    return _press(world, int(differing[0]) if differing.size else 0)


def _open_drawer(world: Any) -> Subtask:
    return _slide(world, "drawer", -0.16, CLEAR_OF_DRAWER)


def _plan_puzzle(world: Any, info: Info, generator: np.random.Generator) -> Subtask:
    """Of the fewest presses that solve the board, the one nearest to the arm."""
    differing = world._cur_button_states != world._target_button_states
    presses = lights_out(differing.reshape(world._num_rows, world._num_cols))
    buttons = np.flatnonzero(presses)
    if not buttons.size:
        buttons = np.arange(1)
    tops = world.data.site_xpos[world._button_site_ids]
    distances = np.linalg.norm(tops[buttons] - info["proprio/effector_pos"], axis=1)
    return _press(world, int(buttons[np.argmin(distances)]))


def lights_out(differing: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """The fewest presses that toggle exactly `differing`, each press toggling a plus sign.

    Linear over GF(2): Gaussian elimination, then the lightest of all solutions. ValueError if
    there is none.
    """
    rows, columns = differing.shape
    size = differing.size
    y, x = np.divmod(np.arange(size), columns)
    plus = np.abs(y[:, None] - y[None]) + np.abs(x[:, None] - x[None]) <= 1
    system = np.column_stack([plus, differing.ravel()])
    pivots: list[int] = []
    for column in range(size):
        row = len(pivots)
        below = np.flatnonzero(system[row:, column])
        if not below.size:
            continue
        system[[row, row + below[0]]] = system[[row + below[0], row]]
        others = system[:, column].copy()
        others[row] = False
        system[others] ^= system[row]
        pivots.append(column)
    if system[len(pivots) :, -1].any():
        raise ValueError(f"no presses toggle exactly these lights of a {rows}x{columns} board")
    loose = np.setdiff1d(np.arange(size), pivots)
    solutions = []
    for chosen in itertools.product((False, True), repeat=len(loose)):
        presses = np.zeros(size, bool)
        presses[loose] = chosen
        parity: Int[np.ndarray, " pivots"] = system[: len(pivots), loose] @ np.array(chosen, int)
        presses[pivots] = system[: len(pivots), -1] ^ (parity % 2 == 1)
        solutions.append(presses)
    return min(solutions, key=np.sum).reshape(rows, columns)


PLANNERS: dict[str, Planner] = {
    "cube": _plan_cubes,
    "scene": _plan_scene,
    "puzzle": _plan_puzzle,
}
