"""Recorded episodes executed again from their start: as they were, and through the codes.

What the return loses is what quantization alone costs, before any agent has chosen a code. Three
replays tell its causes apart: the recorded actions themselves (do start and simulator repeat the
recording?), the decoded codes of the recorded steps, and the recorded actions with Gaussian noise
of the codes' error (does any error of this size break a replay without feedback?).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from saqrl.datasets import Transitions
from saqrl.datasets.formats.robomimic import recorded_model
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.datasets.transitions import RecordedStart
from saqrl.environments.flat import FlatEnvironment
from saqrl.environments.make import make_environment
from saqrl.environments.scores import normalized_score
from saqrl.quantizers import ActionQuantizer
from saqrl.studies.codebooks.material import Material
from saqrl.studies.codebooks.study import Examination
from saqrl.training.progress import Reporter

# The start counts as restored where no number of the observation is farther off than this share
# of its size (or of 1).
START_TOLERANCE = 1e-3
# robosuite's reward of a solved task, shaped or not.
SOLVED = 1 - 1e-6

Place = Callable[[Any, Float32[np.ndarray, " obs"]], None]
Restore = Callable[[Any, RecordedStart], None]
Choose = Callable[[int, np.ndarray], np.ndarray]


class NoReplay(ValueError):
    """The recording cannot be executed again here; the text says why."""


def _place_planar(first_position: int) -> Place:
    """Hopper, HalfCheetah, Walker2d: the observation is the state but for x, which is free."""

    def place(env: Any, observation: Float32[np.ndarray, " obs"]) -> None:
        positions = env.model.nq - first_position
        free = np.zeros(first_position)
        env.set_state(
            np.concatenate([free, observation[:positions]]).astype(np.float64),
            observation[positions:].astype(np.float64),
        )

    return place


def _place_door(env: Any, observation: Float32[np.ndarray, " obs"]) -> None:
    """At rest; the hand as recorded, the frame where the recorded handle says.

    The arm's own slide, qpos[0], is not observed; the palm tells how far out it is.
    """
    positions = env.init_qpos.copy()
    positions[1:-2], positions[-1], positions[-2] = (
        observation[:27],
        observation[27],
        observation[28],
    )
    env.set_state(positions, env.init_qvel)
    palm = env.data.site_xpos[env.grasp_site_id].ravel()
    positions[0] += env.data.xaxis[0] @ (observation[29:32] - palm)
    handle = env.data.site_xpos[env.handle_site_id].ravel()
    env.model.body_pos[env.door_body_id] += observation[32:35] - handle
    env.set_state(positions, env.init_qvel)


def _place_hammer(env: Any, observation: Float32[np.ndarray, " obs"]) -> None:
    """From rest in the initial pose; the board stands where the recorded nail says."""
    nail = env.data.site_xpos[env.target_obj_site_id].ravel()
    env.model.body_pos[env.target_body_id] += observation[42:45] - nail
    env.set_state(env.init_qpos, env.init_qvel)


def _place_push_t(env: Any, observation: Float32[np.ndarray, " obs"]) -> None:
    """Agent and block at rest where they were recorded.

    The environment's own reset_to_state sets the block's angle last, which turns it about its
    centre of mass and so moves it.
    """
    env.agent.position = [float(value) for value in observation[:2]]
    env.agent.velocity = (0.0, 0.0)
    env.block.angle = float(observation[4])
    env.block.position = [float(value) for value in observation[2:4]]
    env.block.velocity, env.block.angular_velocity = (0.0, 0.0), 0.0
    env.space.reindex_shapes_for_body(env.block)


def _place_cubes(env: Any, observation: Float32[np.ndarray, " obs"]) -> None:
    """OGBench's cubes at rest, the gripper open as every episode begins.

    A cube's place is observed at ten times its size, from the middle of the table.
    """
    cubes = (len(observation) - 19) // 9
    positions = np.zeros(14 + 7 * cubes)
    positions[:6] = observation[:6]
    for number in range(cubes):
        seen = observation[19 + 9 * number :]
        positions[14 + 7 * number :][:3] = seen[:3] / 10 + np.array([0.425, 0, 0])
        positions[17 + 7 * number :][:4] = seen[3:7]
    env.set_state(positions, np.zeros(14 + 6 * cubes))
    env.pre_step()  # the controller goes on from where the arm is


# Where a recorded first observation determines the state, and how to get there.
STARTS: Mapping[str, Place] = {
    r"(Hopper|HalfCheetah|Walker2d)-v[1-5]": _place_planar(1),
    r"AdroitHandDoor(Sparse)?-v\d+": _place_door,
    r"AdroitHandHammer(Sparse)?-v\d+": _place_hammer,
    r"gym_pusht/PushT-v\d+": _place_push_t,
    r"cube-(single|double|triple|quadruple)(-\w+)*-v0": _place_cubes,
}


def _restore_robosuite(env: Any, start: RecordedStart) -> None:
    """The demonstration's own scene and state, as robomimic restores them, and then some.

    Its EnvRobosuite.reset_to leaves the controllers of the arms at the posture of a reset; that is
    where they pull the joints that the hand does not need, and so the recording is left by
    millimetres within one step.
    """
    task = env._task
    try:
        model = recorded_model(start)
        if model is not None:
            task.reset_from_xml_string(task.edit_model_xml(model))
    except Exception as error:  # whatever robosuite and MuJoCo find wrong with a scene
        raise NoReplay(
            f"{start.path}: the scene of {start.episode} cannot be loaded ({error})"
        ) from error
    _require_size(start, len(task.sim.get_state().flatten()))
    task.sim.set_state_from_flattened(start.state)
    task.sim.forward()
    for robot in task.robots:
        for controller in robot.composite_controller.part_controllers.values():
            controller.update_initial_joints(task.sim.data.qpos[controller.qpos_index])
    env._observed()  # relative poses are made from what was seen the time before


def _restore_cubes(env: Any, start: RecordedStart) -> None:
    """OGBench's arm and cubes with the recorded positions and velocities."""
    _require_size(start, env.model.nq + env.model.nv)
    env.set_state(start.state[: env.model.nq], start.state[env.model.nq :])
    env.pre_step()  # the controller goes on from where the arm is


def _require_size(start: RecordedStart, size: int) -> None:
    if len(start.state) != size:
        raise NoReplay(
            f"{start.path}: the recorded state has {len(start.state)} numbers and the simulator's "
            f"{size}: name the environment that the data are from with --env"
        )


# Where the file's own state of the simulator is taken instead, if it has one.
RECORDED_STARTS: Mapping[str, Restore] = {
    r"robosuite/\w+": _restore_robosuite,
    r"cube-(single|double|triple|quadruple)(-\w+)*-v0": _restore_cubes,
}


def replay(
    data: Transitions,
    quantizer: ActionQuantizer,
    scaling: ObservationScaling,
    *,
    episodes: int,
    error: Float32[np.ndarray, " act"],
    reporter: Reporter,
) -> dict[str, Any]:
    """Execute the first `episodes` of `data` that can be, three times each; means over them.

    Codes are of single recorded steps and are decoded in the state that the replay is in, as a
    policy decodes them. `error` is the codes' rms error per dimension, in the environment's units.
    NoReplay where no start can be restored.
    """
    if data.environment is None:
        raise NoReplay("the data name no environment to execute them in: give --env")
    _start_of(data, 0)  # refuse before the simulator is loaded
    environment = make_environment(data.environment.id, options=data.environment.options)
    act = _Decoder(quantizer, scaling, data.action_range)
    # A recording may be longer than an episode of the task: so far as that goes, then.
    limit = (environment.spec and environment.spec.max_episode_steps) or len(data)
    rows: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("recorded", "actions", "codes", "noise")
    }
    draw = np.random.default_rng(0)
    refused: NoReplay | None = None
    done = 0
    try:
        with reporter.stage("replay", episodes, unit="episodes") as update:
            for episode in range(data.num_episodes):
                if done == episodes:
                    break
                start, end = int(data.episode_starts[episode]), int(data.episode_ends[episode])
                if end - start == 1:
                    refused = refused or NoReplay("episodes of one step have nothing to repeat")
                    continue
                steps = slice(start, min(end, start + limit))
                observations, actions = data.observations[steps], data.actions[steps]
                try:
                    restore = partial(
                        _restore, environment, _start_of(data, episode), observations[0]
                    )
                    restore()
                except NoReplay as reason:  # others may begin where they can be restored
                    refused = refused or reason
                    continue
                rewards = _until_solved(data.rewards[steps], data.environment.id)
                rows["recorded"].append((float(rewards.sum()), float(rewards.max())))
                codes = act.encode(observations, actions)
                noisy = actions + draw.normal(0, 1, actions.shape) * error
                noisy = np.clip(noisy, data.action_range.low, data.action_range.high)
                plays: dict[str, Choose] = {
                    "actions": partial(_recorded, actions),
                    "codes": partial(act.decode, codes),
                    "noise": partial(_recorded, noisy),
                }
                for name, choose in plays.items():
                    restore()
                    rows[name].append(_play(environment, choose, observations[0], len(actions)))
                done += 1
                update(done, "")
    finally:
        environment.close()
    if refused and not done:
        raise refused
    return {
        "environment": data.environment.id,
        "episodes": done,
        **{name: _means(data.environment.id, values) for name, values in rows.items()},
    }


def replay_each(
    material: Material,
    examinations: Mapping[str, Examination],
    *,
    episodes: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Of every quantizer by name: what `replay` found, or the `reason` that there is nothing."""
    found: dict[str, Any] = {}
    shown = material.shown_transitions
    for name, examination in examinations.items():
        try:
            if material.settings.features.chunk > 1:
                raise NoReplay("a code stands for a chunk here; replay with --chunk 1")
            outcome = replay(
                shown,
                examination.quantizer,
                material.scaling,
                episodes=min(episodes, shown.num_episodes),
                error=np.asarray(examination.record["error"]["rms"], np.float32),
                reporter=reporter,
            )
            found[name] = {"num_codes": examination.record["num_codes"], **outcome}
        except (NoReplay, ImportError) as error:
            found[name] = {"reason": str(error)}
    return found


class _Decoder:
    """Encode recorded steps and decode a code in a state, in the environment's units."""

    def __init__(
        self, quantizer: ActionQuantizer, scaling: ObservationScaling, action_range: ActionRange
    ):
        self._codec, self._scaling, self._range = quantizer.codec, scaling, action_range
        self._encode = jax.jit(jax.vmap(type(self._codec).encode, (None, 0, 0)))
        self._decode = jax.jit(type(self._codec).decode)

    def encode(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        features = self._scaling(observations)
        return np.asarray(self._encode(self._codec, features, self._range.to_unit(actions)))

    def decode(self, codes: np.ndarray, step: int, observation: np.ndarray) -> np.ndarray:
        """The action that the step's code stands for in the state that is seen."""
        features = self._scaling(np.asarray(observation, np.float32)[None])[0]
        unit = self._decode(self._codec, jnp.asarray(features), jnp.asarray(codes[step]))
        return self._range.from_unit(np.asarray(unit))


def _recorded(actions: np.ndarray, step: int, observation: np.ndarray) -> np.ndarray:
    return actions[step]


def _start_of(data: Transitions, episode: int) -> Callable[[Any], None]:
    """What puts the environment at the start of an episode; NoReplay where nothing tells it."""
    assert data.environment is not None
    name = data.environment.id
    if data.starts is not None:
        start = data.starts[episode]
        for pattern, restore in RECORDED_STARTS.items():
            if re.fullmatch(pattern, name):
                return lambda env: restore(env, start)
    observation = data.observations[data.episode_starts[episode]]
    for pattern, place in STARTS.items():
        if re.fullmatch(pattern, name):
            return lambda env: place(env, observation)
    raise NoReplay(
        f"the observations of {name} do not determine the simulator's state, so recorded starts "
        + (
            "cannot be restored: the file holds no states"
            if any(re.fullmatch(pattern, name) for pattern in RECORDED_STARTS)
            else "cannot be restored"
        )
    )


def _restore(
    environment: FlatEnvironment, start: Callable[[Any], None], observation: np.ndarray
) -> None:
    """Put the environment where the recording began; NoReplay where it does not get there."""
    environment.reset(seed=0)
    inner: Any = environment.unwrapped
    start(inner)
    names = ("_get_obs", "get_obs", "compute_observation", "_observed")
    read = next(getattr(inner, name) for name in names if hasattr(inner, name))
    seen = environment._flat(read())
    if seen.shape != observation.shape:
        raise NoReplay(
            f"{environment._name} observes {len(seen)} numbers and the data have "
            f"{len(observation)}: name the environment that they are from with --env"
        )
    off = np.abs(seen - observation) / np.maximum(np.abs(observation), 1)
    if off.max() > START_TOLERANCE:
        raise NoReplay(
            f"a recorded start of {environment._name} cannot be restored: observation "
            f"{int(off.argmax())} comes out at {seen[off.argmax()]:.4g}, recorded is "
            f"{observation[off.argmax()]:.4g}"
        )


def _until_solved(
    rewards: Float32[np.ndarray, " n"], environment_id: str
) -> Float32[np.ndarray, " n"]:
    """The rewards that an episode of the task would have had.

    A robosuite task ends here once it is solved; robomimic's recordings go on holding it.
    """
    if not environment_id.startswith("robosuite/"):
        return rewards
    solved = np.flatnonzero(rewards >= SOLVED)
    return rewards[: solved[0] + 1] if solved.size else rewards


def _play(
    environment: gymnasium.Env[Any, Any],
    choose: Choose,
    observation: np.ndarray,
    steps: int,
) -> tuple[float, float]:
    rewards = []
    for step in range(steps):
        observation, reward, terminated, truncated, _ = environment.step(choose(step, observation))
        rewards.append(float(reward))
        if terminated or truncated:
            break
    return float(np.sum(rewards)), max(rewards)


def repeats_recording(found: Mapping[str, Any]) -> bool:
    """Whether the recorded actions bring the recorded return again, within a tenth.

    Where they do not, the simulator is chaotic or a start was not at rest, and the codes' return
    says nothing about the codes.
    """
    recorded = found["recorded"]["return_mean"]
    return abs(found["actions"]["return_mean"] - recorded) <= 0.1 * max(abs(recorded), 1e-6)


def _means(environment_id: str, values: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    returns, highest = np.asarray(values).T
    mean = float(returns.mean())
    return {
        "return_mean": mean,
        "return_std": float(returns.std()),
        "max_reward_mean": float(highest.mean()),
        "normalized_score": normalized_score(environment_id, mean),
    }
