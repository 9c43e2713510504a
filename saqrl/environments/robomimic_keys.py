"""Names of robomimic's observations: which are used by default, and in what order."""

import re
from collections.abc import Iterable

# Of each arm, in this order; robot0_, robot1_, or robot0_right_ and robot0_left_.
ARM_KEYS = ("eef_pos", "eef_quat", "gripper_qpos")
ARM = re.compile(r"robot\d+_(\w+_)?eef_pos")
OBJECT_KEY = "object"


def default_keys(known: Iterable[str]) -> tuple[str, ...]:
    """Position, quaternion and gripper of every arm, then the object; without arms all keys."""
    names = sorted(known, key=natural_order)
    arms = [name.removesuffix("eef_pos") for name in names if ARM.fullmatch(name)]
    chosen = [f"{arm}{part}" for arm in arms for part in ARM_KEYS if f"{arm}{part}" in names]
    if not chosen:
        return tuple(names)
    return (*chosen, *([OBJECT_KEY] if OBJECT_KEY in names else []))


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key: demo_2 before demo_10."""
    parts = re.findall(r"\d{1,18}|\D+|\d", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)
