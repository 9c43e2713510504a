"""Which keyword arguments of an environment a data file may set, and within what bounds.

Data files are untrusted: only the options listed here reach a constructor.
The user may set any option with --env-kwargs.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from saqrl.environments.families import FAMILIES, Family

Check = Callable[[object], bool]

# An id that a data file may name; a colon would make it import a module.
ID = re.compile(r"[A-Za-z0-9_][\w./ -]{0,199}")
WORD = re.compile(r"[\w. -]{1,100}")
# Depth and number of values of a nested option.
DEEP, MANY = 8, 20_000


def _number(low: float, high: float) -> Check:
    def check(value: object) -> bool:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        )

    return check


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _one_of(*words: object) -> Check:
    return lambda value: isinstance(value, (str, type(None))) and value in words


def _word(value: object) -> bool:
    """A name without path separators."""
    return value is None or (isinstance(value, str) and bool(WORD.fullmatch(value)))


def _plain(value: object, depth: int = 0) -> bool:
    """Numbers and names in lists and objects: no paths, limited in depth and number."""
    if depth > DEEP:
        return False
    if isinstance(value, (bool, type(None))):
        return True
    if isinstance(value, (int, float)):
        return abs(value) <= 1e9
    if isinstance(value, str):
        return bool(WORD.fullmatch(value))
    if isinstance(value, Mapping):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, Sequence):
        inside = list(value)
    else:
        return False
    return len(inside) <= MANY and all(_plain(part, depth + 1) for part in inside)


def _keys(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) <= 1000
        and all(isinstance(key, str) and len(key) <= 200 for key in value)
    )


def _maze(value: object) -> bool:
    """Rows of cells: 0, 1, r, g, c."""
    return (
        isinstance(value, list)
        and 1 <= len(value) <= 100
        and all(isinstance(row, list) and 1 <= len(row) <= 100 for row in value)
        and all(cell in (0, 1, "r", "g", "c") for row in value for cell in row)
    )


EVERYWHERE: Mapping[str, Check] = {
    "max_episode_steps": _whole(1, 100_000),
    "observation_keys": _keys,
}
_REWARD: Mapping[str, Check] = {"reward_type": _one_of("dense", "sparse")}
_ROBOT: Mapping[str, Check] = {
    **dict.fromkeys(
        (
            "forward_reward_weight",
            "ctrl_cost_weight",
            "contact_cost_weight",
            "healthy_reward",
            "reset_noise_scale",
        ),
        _number(0, 1e6),
    ),
    **dict.fromkeys(
        (
            "terminate_when_unhealthy",
            "exclude_current_positions_from_observation",
            "use_contact_forces",
        ),
        _flag,
    ),
    **dict.fromkeys(
        (
            "healthy_z_range",
            "healthy_angle_range",
            "healthy_state_range",
            "contact_force_range",
            "contact_cost_range",
        ),
        _plain,
    ),
    "frame_skip": _whole(1, 100),
}
_ROBOSUITE: Mapping[str, Check] = {
    **dict.fromkeys(
        (
            "robots",
            "controller_configs",
            "gripper_types",
            "base_types",
            "initialization_noise",
            "table_full_size",
            "table_friction",
            "env_configuration",
            "single_object_mode",
            "object_type",
            "nut_type",
            "placement_initializer",
            "num_waypoints",
            "prehensile",
        ),
        _plain,
    ),
    **dict.fromkeys(
        (
            "reward_shaping",
            "use_object_obs",
            "hard_reset",
            "ignore_done",
            "lite_physics",
            "use_latch",
            "use_indicator_object",
            "use_touch_obs",
            "tool_type",
        ),
        lambda value: _flag(value) or value is None,
    ),
    "control_freq": _number(1, 1000),
    "horizon": _whole(1, 100_000),
    "reward_scale": lambda value: value is None or _number(-1e6, 1e6)(value),
}
# A family's key is the first of its examples.
PERMITTED: Mapping[str, Mapping[str, Check]] = {
    "gym_pusht/PushT-v0": {"obs_type": _one_of("state")},
    "AdroitHandDoor-v1": _REWARD,
    "AdroitHandPen-v1": _REWARD,
    "cube-single-singletask-task1-v0": {"terminate_at_goal": _flag, "reward_task_id": _whole(0, 5)},
    "antmaze-medium-singletask-task1-v0": {
        "terminate_at_goal": _flag,
        "reward_task_id": _whole(0, 5),
    },
    "Ant-v4": _ROBOT,
    "FrankaKitchen-v1": {
        "tasks_to_complete": _plain,
        "terminate_on_tasks_completed": _flag,
        "remove_task_when_completed": _flag,
        "robot_noise_ratio": _number(0, 1),
        "object_noise_ratio": _number(0, 1),
    },
    "PointMaze_UMaze-v3": {
        **_REWARD,
        "maze_map": _maze,
        "continuing_task": _flag,
        "reset_target": _flag,
    },
    "robosuite/Lift": _ROBOSUITE,
}


def permitted(
    environment_id: str, options: Mapping[str, object]
) -> tuple[dict[str, object], list[str]]:
    """The options of a data file that may reach the environment, and the names of the others."""
    family = next((f for f in FAMILIES if re.fullmatch(f.pattern, environment_id)), None)
    checks = {**EVERYWHERE, **_of_family(family)}
    kept = {
        name: value for name, value in options.items() if name in checks and checks[name](value)
    }
    left = [name for name, value in options.items() if name not in kept and value is not None]
    return kept, left


def may_be_named(environment_id: str) -> bool:
    """Whether a data file may name this environment: never one with a module to import."""
    return bool(ID.fullmatch(environment_id))


def _of_family(family: Family | None) -> Mapping[str, Check]:
    return PERMITTED.get(family.examples[0], {}) if family else {}
