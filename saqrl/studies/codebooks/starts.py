"""Where recorded episodes begin: what puts a simulator into the state of the recording."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from saqrl.datasets import Transitions
from saqrl.datasets.formats.robomimic import recorded_model
from saqrl.datasets.transitions import RecordedStart
from saqrl.environments.flat import FlatEnvironment

# The start counts as restored where no number of the observation is farther off than this share
# of its size (or of 1).
START_TOLERANCE = 1e-3

Place = Callable[[Any, Float32[np.ndarray, " obs"]], None]
Restore = Callable[[Any, RecordedStart], None]
Way = TypeVar("Way")


class NoReplay(ValueError):
    """The recording cannot be executed again here; the text says why."""


def _place_planar(env: Any, observation: Float32[np.ndarray, " obs"]) -> None:
    """Hopper, HalfCheetah, Walker2d: the observation is the state but for x, which is free."""
    state = np.concatenate([[0.0], observation]).astype(np.float64)
    env.set_state(state[: env.model.nq], state[env.model.nq :])


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


_CUBES = r"cube-(single|double|triple|quadruple)(-\w+)*-v0"
# Where a recorded first observation determines the state, and how to get there.
STARTS: Mapping[str, Place] = {
    r"(Hopper|HalfCheetah|Walker2d)-v[1-5]": _place_planar,
    r"AdroitHandDoor(Sparse)?-v\d+": _place_door,
    r"AdroitHandHammer(Sparse)?-v\d+": _place_hammer,
    r"gym_pusht/PushT-v\d+": _place_push_t,
    _CUBES: _place_cubes,
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
    _CUBES: _restore_cubes,
}


def start_of(data: Transitions, episode: int) -> Callable[[Any], None]:
    """What puts the environment at the start of an episode; NoReplay where nothing tells it."""
    assert data.environment is not None
    name = data.environment.id
    restore, place = _matching(RECORDED_STARTS, name), _matching(STARTS, name)
    if restore is not None and data.starts is not None:
        start = data.starts[episode]
        return lambda env: restore(env, start)
    if place is not None:
        observation = data.observations[data.episode_starts[episode]]
        return lambda env: place(env, observation)
    raise NoReplay(
        f"the observations of {name} do not determine the simulator's state, so recorded starts "
        f"cannot be restored{': the file holds no states' if restore else ''}"
    )


def _matching(ways: Mapping[str, Way], name: str) -> Way | None:
    return next((way for pattern, way in ways.items() if re.fullmatch(pattern, name)), None)


def restore(
    environment: FlatEnvironment, start: Callable[[Any], None], observation: np.ndarray
) -> None:
    """Put the environment where the recording began; NoReplay where it does not get there."""
    environment.reset(seed=0)
    inner: Any = environment.unwrapped
    start(inner)
    names = ("_get_obs", "get_obs", "compute_observation", "_observed")
    read = next(getattr(inner, name) for name in names if hasattr(inner, name))
    seen = environment.observation(read())
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
