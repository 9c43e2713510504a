"""One process's environment and oracles, which make the episode of a given number.

Source of the oracles and their settings: Park et al. 2025, OGBench (arXiv 2410.20092).
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np

from saqrl.environments.oracles.manners import MANNERS, Hand, Manners, noise_scale
from saqrl.environments.oracles.planners import PLANNERS, Subtask
from saqrl.environments.packages import quiet
from saqrl.environments.simulators import import_simulator, reproducible

Style = Literal["expert", "human", "play", "noisy"]

# Environment seeds of collected data have this bit; those of evaluations count up from 100000.
SEED_BIT = 1 << 31
# A failed demonstration is attempted this often before collection stops with an error.
ATTEMPTS = 20
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

# The fields of one step, in the order of Step.
STEP_FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals")
Step = tuple[np.ndarray, np.ndarray, float, np.ndarray, bool]
# The arrays of an episode, and the number of failed attempts before it.
Result = tuple[dict[str, np.ndarray], int]


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

    @property
    def family(self) -> str:
        """cube, scene or puzzle."""
        return self.base.partition("-")[0]

    @property
    def manners(self) -> Manners | None:
        """How a fixed task is demonstrated; None for the styles with random targets."""
        return MANNERS.get(self.style)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which the oracles use, and restore its state afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


class Demonstrator:
    """Environment and oracles of one process; a call with an episode's number makes it."""

    def __init__(self, recipe: Recipe) -> None:
        import_ogbench(recipe.environment_id)
        self.recipe = recipe
        fixed = recipe.manners is not None
        options: dict[str, Any] = (
            {} if fixed else {"mode": "data_collection", "terminate_at_goal": False}
        )
        own_id = recipe.environment_id if fixed else f"{recipe.base}-v0"
        environment = _make(own_id, **options)
        limit = environment.spec.max_episode_steps if environment.spec else None
        self.max_steps = recipe.max_steps or (limit if fixed and limit else PLAY_STEPS)
        # The wrappers only count steps, which this class does itself.
        self.world: Any = environment.unwrapped
        self.judge = _make(recipe.environment_id) if recipe.task and not fixed else None
        self.oracles = _oracles(recipe, self.world)

    def __call__(self, episode: int) -> Result:
        for attempt in range(ATTEMPTS):
            entropy = np.random.SeedSequence((self.recipe.seed, episode, attempt))
            environment_seed, oracle_seed, stream, manner = entropy.spawn(4)
            generator = np.random.default_rng(stream)
            seed = int(environment_seed.generate_state(1)[0]) | SEED_BIT
            with quiet(), _global_seed(int(oracle_seed.generate_state(1)[0])):
                observation, info = self.world.reset(seed=seed)
                if self.recipe.manners is None:
                    rows = self._wander(observation, info, generator)
                else:
                    hand = Hand(self.recipe.manners, np.random.default_rng(manner))
                    rows = self._demonstrate(observation, info, generator, hand)
            if rows is not None:
                return rows, attempt
        raise RuntimeError(
            f"{self.recipe.environment_id}: episode {episode} failed {ATTEMPTS} times in a row "
            f"with noise {self.recipe.noise} and at most {self.max_steps} steps; "
            "lower the noise or choose another task"
        )

    def _demonstrate(
        self,
        observation: np.ndarray,
        info: dict[str, Any],
        generator: np.random.Generator,
        hand: Hand,
    ) -> dict[str, np.ndarray] | None:
        """One solution of the fixed task, or None if `max_steps` were not enough."""
        steps: list[Step] = []
        plan = PLANNERS[self.recipe.family]
        subtask: Subtask | None = None
        oracle: Any = None
        while len(steps) < self.max_steps:
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
            noisy = chosen + generator.normal(0, scale, chosen.shape)
            action = np.clip(noisy, -1, 1).astype(np.float32)
            following, reward, terminated, _, info = self.world.step(action)
            steps.append((observation, action, reward, following, terminated))
            observation = following
            if terminated:
                return _arrays(steps)
        return None

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
        random_actions = RANDOM_ACTIONS.get(recipe.family, 0.1) if noisy else 0.0
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
        if recipe.family == "scene" and not _in_view(judged["qpos"]):
            return None
        arrays = _arrays(steps)
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


def _arrays(steps: Sequence[Step]) -> dict[str, np.ndarray]:
    """The steps of one whole episode, field by field."""
    columns = zip(STEP_FIELDS, zip(*steps, strict=True), strict=True)
    arrays = {
        name: np.array(values, bool if name == "terminals" else np.float32)
        for name, values in columns
    }
    timeouts = np.zeros(len(steps), bool)
    timeouts[-1] = not arrays["terminals"][-1]
    return {**arrays, "timeouts": timeouts}


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


def import_ogbench(environment_id: str) -> None:
    """ImportError with the install command if ogbench is missing."""
    import_simulator(environment_id, ("mujoco", "ogbench"), extra="ogbench")


def _make(environment_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    with quiet():
        return gymnasium.make(
            reproducible(gymnasium.spec(environment_id)), disable_env_checker=True, **options
        )


def _oracles(recipe: Recipe, world: Any) -> dict[str, Any]:
    """One oracle per kind of target, configured as in OGBench's data generator."""
    way = "plan" if recipe.style == "play" else "markov"
    shared: dict[str, Any] = {"env": world, "min_norm": 0.4}
    if way == "plan":
        shared = {"env": world, "noise": recipe.noise, "noise_smoothing": 0.5}
    if recipe.family == "puzzle":
        shared["gripper_always_closed"] = True
    one = {"cube": ("cube",), "puzzle": ("button",)}
    oracles = {}
    for kind in one.get(recipe.family, ("cube", "button", "drawer", "window")):
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
