"""Planners of the scripted experts: which oracle to run next, and its target."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

Info = Mapping[str, Any]


@dataclass(frozen=True)
class Subtask:
    """One oracle's target, as the keys that the oracle reads from `info`."""

    oracle: str
    target: Callable[[Info], dict[str, Any]]
    reached: Callable[[Info], bool]


# World, info, generator, and the metres that this demonstrator adds to each object's distance.
Planner = Callable[[Any, Info, np.random.Generator, Float64[np.ndarray, " things"]], Subtask]

# Heights (m) above which the oracles consider the arm clear of the object it has handled.
CLEAR_OF_TABLE, CLEAR_OF_DRAWER, CLEAR_OF_WINDOW = 0.16, 0.18, 0.28
# An object within this distance (m) is in place; the tasks accept 0.04.
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
    """Press once; the button changes state, and in a puzzle its neighbours too."""
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


Part = Literal["drawer", "window"]


def _slide(world: Any, part: Part, goal: float, height: float) -> Subtask:
    """Pull or push a drawer or window until its joint is at `goal` (m)."""
    axis = world.data.joint(f"{part}_slide").xaxis.copy()

    def target(info: Info) -> dict[str, Any]:
        missing = goal - info[f"privileged/{part}_pos"][0]
        handle = info[f"privileged/{part}_handle_pos"] + missing * axis
        return {f"privileged/target_{part}_handle_pos": handle}

    def reached(info: Info) -> bool:
        missing = abs(goal - info[f"privileged/{part}_pos"][0])
        return bool(missing <= IN_PLACE / 2 and _clear(info, height))

    return Subtask(part, target, reached)


def _plan_cubes(
    world: Any,
    info: Info,
    generator: np.random.Generator,
    preference: Float64[np.ndarray, " things"],
) -> Subtask:
    """The next cube to move: lowest goals first, and cubes that block a goal to a free spot."""
    count = world._num_cubes
    cubes = np.array([info[f"privileged/block_{i}_pos"] for i in range(count)])
    goals = np.array([world.data.mocap_pos[m] for m in world._cube_target_mocap_ids])
    away = np.linalg.norm(cubes - goals, axis=1) > IN_PLACE
    apart = np.linalg.norm(cubes[:, None, :2] - cubes[None, :, :2], axis=-1)
    # on[i, j]: cube j is on cube i.
    on = (apart < IN_PLACE) & (cubes[None, :, 2] - cubes[:, None, 2] > 0.02)
    to_goal = np.linalg.norm(goals[:, None, :2] - cubes[None, :, :2], axis=-1)
    # blocks[i, j]: cube j is at the goal of cube i, or above it. Cubes are 0.04 m wide.
    blocks = (to_goal < 0.035) & (cubes[None, :, 2] > goals[:, None, 2] - 0.02)
    np.fill_diagonal(blocks, val=False)
    below = goals[:, 2] - 0.04
    stands = (to_goal < IN_PLACE) & (np.abs(cubes[None, :, 2] - below[:, None]) < 0.02)
    supported = (below < 0) | (stands & ~away[None, :]).any(1)
    order = np.lexsort((preference[:count], goals[:, 2]))
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
    """Of 32 random places on the table, the one farthest from all cubes and goals."""
    low, high = world._object_sampling_bounds
    spots = generator.uniform(low, high, (32, 2))
    taken = np.concatenate([cubes, goals])[:, :2]
    room = np.linalg.norm(spots[:, None] - taken[None], axis=-1).min(1)
    return np.append(spots[np.argmax(room)], 0.02)


def _plan_scene(
    world: Any,
    info: Info,
    generator: np.random.Generator,
    preference: Float64[np.ndarray, " things"],
) -> Subtask:
    """Cube, then drawer and window (unlocked first if they are locked), then the locks."""
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
    slides: tuple[tuple[Part, int, float, float, float], ...] = (
        ("drawer", 0, drawer - drawer_goal, drawer_goal, CLEAR_OF_DRAWER),
        ("window", 1, window - window_goal, window_goal, CLEAR_OF_WINDOW),
    )
    for slide in np.argsort(preference[:2], kind="stable"):
        part, lock, missing, goal, height = slides[slide]
        if abs(missing) > IN_PLACE:
            return _press(world, lock) if states[lock] == 0 else _slide(world, part, goal, height)
    differing = np.flatnonzero(states != wanted)
    return _press(world, int(differing[0]) if differing.size else 0)


def _open_drawer(world: Any) -> Subtask:
    return _slide(world, "drawer", -0.16, CLEAR_OF_DRAWER)


def _plan_puzzle(
    world: Any,
    info: Info,
    generator: np.random.Generator,
    preference: Float64[np.ndarray, " things"],
) -> Subtask:
    """The nearest of the fewest presses that solve the board."""
    differing = world._cur_button_states != world._target_button_states
    presses = lights_out(differing.reshape(world._num_rows, world._num_cols))
    buttons = np.flatnonzero(presses)
    if not buttons.size:
        buttons = np.arange(1)
    tops = world.data.site_xpos[world._button_site_ids]
    distances = np.linalg.norm(tops[buttons] - info["proprio/effector_pos"], axis=1)
    return _press(world, int(buttons[np.argmin(distances + preference[buttons])]))


def lights_out(differing: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """The fewest presses that toggle exactly `differing`, each press toggling a plus sign.

    The presses of the last row determine all others: each light is toggled by the press above it.
    ValueError if no last row gives a solution.
    """
    rows, columns = differing.shape
    solutions = []
    for last in itertools.product((False, True), repeat=columns):
        # Row 0 is above the board and must stay empty, as must the row below the board.
        presses = np.zeros((rows + 2, columns + 2), bool)
        presses[rows, 1:-1] = last
        for row in range(rows, 0, -1):
            beside = presses[row, :-2] ^ presses[row, 1:-1] ^ presses[row, 2:]
            presses[row - 1, 1:-1] = differing[row - 1] ^ beside ^ presses[row + 1, 1:-1]
        if not presses[0].any():
            solutions.append(presses[1:-1, 1:-1])
    if not solutions:
        raise ValueError(f"no presses toggle exactly these lights of a {rows}x{columns} board")
    return min(solutions, key=np.sum)


PLANNERS: dict[str, Planner] = {
    "cube": _plan_cubes,
    "scene": _plan_scene,
    "puzzle": _plan_puzzle,
}
