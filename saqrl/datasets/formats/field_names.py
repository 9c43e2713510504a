"""Which array of a flat file is which field, by the names that people use."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from saqrl.datasets.errors import DatasetError, listing, nearest
from saqrl.datasets.formats.boundaries import KEYS, missing_boundaries

# Other names that people use; each is read only while exactly one of its row is in the file.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "observations": ("observation", "obs", "states", "state"),
    "actions": ("action", "acts"),
    "rewards": ("reward",),
    "next_observations": ("next_observation", "next_obs", "next_states", "next_state"),
    "terminals": ("terminal", "terminated", "terminations", "dones", "done"),
    "timeouts": ("timeout", "truncated", "truncations"),
}
# Arrays that are often one part of an observation each.
PARTS = re.compile(r"(qpos|qvel|joint|eef|ee_|gripper|robot|object|pos|vel|force|state).*")


def field_keys(path: Path, names: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Field -> the file's key, with a note for each alias.

    DatasetError where several names could be one field.
    """
    keys: dict[str, str] = {}
    for field, aliases in ALIASES.items():
        candidates = [field] if field in names else [a for a in aliases if a in names]
        if len(candidates) > 1:
            raise DatasetError(
                f"{path}: each of {listing(candidates)} could be {field}; rename the right "
                f"one to {field}"
            )
        if candidates:
            keys[field] = candidates[0]
            if candidates[0] != field:
                notes.append(f"{candidates[0]} is read as {field}.")
    return keys


def require_fields(path: Path, keys: Mapping[str, str], names: Sequence[str], remedy: str) -> None:
    """DatasetError where the names in a file do not give all that `assemble` needs."""
    missing = [field for field in ("observations", "actions") if field not in keys]
    bounded = bool({"terminals", "timeouts"} & keys.keys() or set(KEYS) & set(names))
    others = [str(name) for name in names if name not in keys.values()]
    if not missing and not bounded and not nearest("terminals", others):
        raise missing_boundaries(path, names)
    if not bounded:
        missing.append("terminals")
    if missing:
        wanted = listing(f"{field}{nearest(field, others)}" for field in missing)
        join = _joined(others) if "observations" in missing else ""
        raise DatasetError(
            f"{path}: missing {wanted}; the file has {listing(names)}; {remedy}{join}"
        )


def _joined(names: Sequence[str]) -> str:
    """How several arrays become the observations, where no name is nearly that."""
    parts = [name for name in names if PARTS.fullmatch(name)]
    if nearest("observations", names) or not parts:
        return ""
    arrays = ", ".join(f"file[{name!r}]" for name in parts)
    return f"; to join several arrays: `observations = np.concatenate([{arrays}], axis=1)`"


def require_done_is_termination(
    path: Path, keys: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> None:
    """Refuse `dones` where it must mean 'terminated or truncated', which ends values wrongly."""
    if keys.get("terminals") not in ("dones", "done"):
        return
    if "timeouts" not in arrays or arrays["timeouts"].shape != arrays["terminals"].shape:
        return
    both = np.flatnonzero((arrays["terminals"] == 1) & (arrays["timeouts"] == 1))
    if both.size:
        raise DatasetError(
            f"{path}: {keys['terminals']} and {keys['timeouts']} are both set in row "
            f"{both[0]}, so {keys['terminals']} also marks time limits; store true "
            "terminations only, under the name terminals"
        )
