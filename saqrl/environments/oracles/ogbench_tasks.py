"""OGBench's tasks, demonstrated by its own oracles: one fixed task, or random targets.

Source of the oracles and their settings: Park et al. 2025, OGBench (arXiv 2410.20092).
"""

import importlib
from typing import Any

import gymnasium
import numpy as np

from saqrl.environments.oracles.demonstrator import (
    Demonstrator,
    Draws,
    Recipe,
    Step,
    arrays_of,
)
from saqrl.environments.oracles.manners import MANNERS, Hand, noise_scale
from saqrl.environments.oracles.planners import PLANNERS, Subtask
from saqrl.environments.packages import quiet
from saqrl.environments.simulators import reproducible

# The benchmark's files have 1001 rows per episode; the last has no successor.
PLAY_STEPS = 1000

# Probability that a play target is on top of another cube, drawn once per episode between these.
# Source: OGBench's generator of its manipulation data.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
# Share of rows of `noisy` data with a uniform action in place of the oracle's; the commands that
# made OGBench's published files use 0.2 for puzzle and 0.1 elsewhere.
RANDOM_ACTIONS = {"puzzle": 0.2}


class OGBenchDemonstrator(Demonstrator):
    """Makes an episode of a cube, scene or puzzle environment."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.family = recipe.base.partition("-")[0]
        self.manners = MANNERS.get(recipe.style)
        fixed = self.manners is not None
        options: dict[str, Any] = (
            {} if fixed else {"mode": "data_collection", "terminate_at_goal": False}
        )
        own_id = recipe.environment_id if fixed else f"{recipe.base}-v0"
        environment = _make(own_id, **options)
        limit = environment.spec.max_episode_steps if environment.spec else None
        self.max_steps = recipe.max_steps or (limit if fixed and limit else PLAY_STEPS)
        # The wrappers only count steps, which this class does itself.
        self.world = environment.unwrapped
        self.judge = _make(recipe.environment_id) if recipe.task and not fixed else None
        self.oracles = _oracles(recipe, self.family, self.world)

    def attempt(self, draws: Draws) -> dict[str, np.ndarray] | None:
        observation, info = self.world.reset(seed=draws.environment_seed)
        if self.manners is None:
            return self._wander(observation, info, draws.noise)
        return self._demonstrate(observation, info, draws.noise, Hand(self.manners, draws.manners))

    def _demonstrate(
        self,
        observation: np.ndarray,
        info: dict[str, Any],
        generator: np.random.Generator,
        hand: Hand,
    ) -> dict[str, np.ndarray] | None:
        """One solution of the fixed task, or None if `max_steps` were not enough."""
        plan = PLANNERS[self.family]
        subtask: Subtask | None = None
        oracle: Any = None

        def act(observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            nonlocal subtask, oracle
            if subtask is None or subtask.reached(info) or oracle.done:
                subtask = plan(self.world, info, generator, hand.preference)
                oracle = self.oracles[subtask.oracle]
                oracle.reset(observation, info | subtask.target(info))
                hand.begin_leg()
            chosen = hand.pending()
            if chosen is None:
                wanted = oracle.select_action(observation, info | subtask.target(info))
                chosen = hand.do(np.asarray(wanted), info["proprio/effector_pos"][2])
            scale = self.recipe.noise * noise_scale(chosen)
            return chosen + generator.normal(0, scale, chosen.shape)

        return self.solve(observation, info, act)

    def _wander(
        self, observation: np.ndarray, info: dict[str, Any], generator: np.random.Generator
    ) -> dict[str, np.ndarray] | None:
        """One episode with random targets, or None if the cube left the scene."""
        recipe = self.recipe
        steps: list[Step] = []
        states: list[dict[str, np.ndarray]] = []
        stacking = generator.uniform(*STACKING.get(recipe.base, (0.5, 0.5)))
        noisy = recipe.style == "noisy"
        strength = generator.uniform(0, recipe.noise) if noisy else 0.0
        scale = strength * np.array([1, 1, 1, 3, 10])  # metres, radians, gripper: their own ranges
        random_actions = RANDOM_ACTIONS.get(self.family, 0.1) if noisy else 0.0
        oracle = self.oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        while len(steps) < self.max_steps:
            states.append(_state(self.world))
            if generator.uniform() < random_actions:
                action = generator.uniform(-1, 1, len(scale))
            else:
                action = oracle.select_action(observation, info) + generator.normal(0, 1, 5) * scale
            action = np.clip(action, -1, 1).astype(np.float32)
            following, _, _, _, info = self.world.step(action)
            steps.append((observation, action, 0.0, following, False))
            observation = following
            if oracle.done:
                _, info = self.world.set_new_target(p_stack=stacking)
                oracle = self.oracles[info["privileged/target_task"]]
                oracle.reset(observation, info)
        if self.judge is None:
            states.append(_state(self.world))
        judged = {name: np.array([state[name] for state in states]) for name in states[0]}
        if self.family == "scene" and not _in_view(judged["qpos"]):
            return None
        arrays = arrays_of(steps)
        return _compact(arrays, judged) if self.judge is None else self._relabelled(arrays, judged)

    def _relabelled(
        self, arrays: dict[str, np.ndarray], judged: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Add rewards and terminals of the fixed task; of consecutive solved rows keep the first.

        A solved state ends an episode, so each further row would be an episode of one step.
        """
        from ogbench.relabel_utils import relabel_dataset

        relabel_dataset(self.recipe.environment_id, self.judge, judged)
        solved = judged["masks"] == 0
        keep = ~(solved & np.append(False, solved[:-1]))
        return {
            **{key: value[keep] for key, value in arrays.items()},
            "rewards": judged["rewards"].astype(np.float32)[keep],
            "terminals": solved[keep],
            "timeouts": (arrays["timeouts"] & ~solved)[keep],
        }


def _compact(arrays: dict[str, np.ndarray], states: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The episode in the layout of OGBench's own files: no task, one row more than actions."""
    last = {"observations": arrays["next_observations"][-1:], "actions": arrays["actions"][-1:]}
    rows = {name: np.concatenate([arrays[name], row]) for name, row in last.items()}
    terminals = np.zeros(len(rows["actions"]), bool)
    terminals[-1] = True
    dtypes = {name: np.float32 if name.startswith("q") else np.int64 for name in states}
    kept = {name: state.astype(dtypes[name]) for name, state in states.items()}
    return {**rows, "terminals": terminals, **kept}


def _state(world: Any) -> dict[str, np.ndarray]:
    """The part of a state that relabelling and restarting need."""
    state = {"qpos": world.data.qpos.copy(), "qvel": world.data.qvel.copy()}
    if hasattr(world, "_cur_button_states"):
        state["button_states"] = world._cur_button_states.copy()
    return state


def _make(environment_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    with quiet():
        return gymnasium.make(
            reproducible(gymnasium.spec(environment_id)), disable_env_checker=True, **options
        )


def _oracles(recipe: Recipe, family: str, world: Any) -> dict[str, Any]:
    """One oracle per kind of target, configured as in OGBench's data generator."""
    way = "plan" if recipe.style == "play" else "markov"
    shared: dict[str, Any] = {"env": world, "min_norm": 0.4}
    if way == "plan":
        shared = {"env": world, "noise": recipe.noise, "noise_smoothing": 0.5}
    if family == "puzzle":
        shared["gripper_always_closed"] = True
    one = {"cube": ("cube",), "puzzle": ("button",)}
    oracles = {}
    for kind in one.get(family, ("cube", "button", "drawer", "window")):
        module = importlib.import_module(f"ogbench.manipspace.oracles.{way}.{kind}_{way}")
        oracles[kind] = getattr(module, f"{kind.title()}{way.title()}Oracle")(**shared)
    return oracles


def _in_view(qpos: np.ndarray) -> bool:
    """Whether the cube of `scene` stayed on the table or in the drawer; metres.

    Source: the check in OGBench's generator, which repeats such an episode.
    """
    _, y, z = qpos[:, 14:17].T
    beside_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not ((y >= 0.29) | beside_drawer).any()
