"""OGBench's npz (Park et al. 2025, arXiv 2410.20092): trajectories without reward, many tasks.

Compact files hold one observation more than actions count: the last row of a trajectory (terminals
1) has no successor and its action was never taken. Regular ones hold next_observations and masks.
A trajectory's end is a time limit; only a task ends anything. With a single-task environment asked
for, rewards and terminations are made by ogbench's own `relabel_utils`.
"""

import importlib.metadata
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.datasets.assembly import FIELDS, assemble
from saqrl.datasets.errors import DatasetError, counted, listing
from saqrl.datasets.formats.boundaries import KEYS
from saqrl.datasets.formats.field_names import ALIASES
from saqrl.datasets.formats.npz import Members, array_names, opened
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import existing_file, file_record
from saqrl.datasets.transitions import EnvironmentSpec, RecordedStart, Transitions

SUMMARY = "OGBench npz: trajectories with qpos; rewards are computed for the task given with --env"
SUFFIXES = (".npz",)
OPTIONS = ("environment",)

KINDS = "play|noisy|navigate|stitch|explore"
FILE_NAME = re.compile(rf"(?P<base>.+)-({KINDS})-(?P<version>v\d+)(-val)?\.npz")
DATASET_NAME = re.compile(rf"(?P<base>.+?)-({KINDS})(-singletask(-task\d+)?)?-v\d+")
# Names that the benchmark does not use: the file is somebody's own.
OTHERS = {"environment_id", "saqrl", "control_rate", *KEYS, *ALIASES["timeouts"], "timeouts"}
OTHERS |= {"terminated", "terminations", "dones", "done", "action_low", "action_high"}
STATE = ("qpos", "qvel", "button_states")
FOLDER = Path("~/.ogbench/data")


def recognises(path: Path) -> bool:
    """By the benchmark's file name or by qpos, where nothing in the file contradicts it.

    The benchmark's files have no ends but terminals, and rewards only beside masks.
    """
    with zipfile.ZipFile(path) as archive:
        names = set(array_names(archive))
    if not {"observations", "actions", "terminals"} <= names or OTHERS & names:
        return False
    if "rewards" in names and "masks" not in names:
        return False
    return bool(FILE_NAME.fullmatch(path.name)) or "qpos" in names


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read `path`, or the benchmark's data set of that name, with the `-val` file beside it.

    `environment` is `<env>-singletask-taskN-v0` (or with the data set's kind in it, as in
    `cube-single-play-singletask-task2-v0`). Raises FileNotFoundError, ImportError where ogbench is
    needed and missing, or DatasetError.
    """
    if not path.suffix and DATASET_NAME.fullmatch(path.name) and not path.exists():
        environment = environment or (path.name if "-singletask" in path.name else None)
        path = _downloaded(path.name)
    file = existing_file(path)
    task = _task(environment)
    training = _read_file(path, file, task)
    held_out = file.with_name(f"{file.stem}-val.npz")
    if file.stem.endswith("-val") or not held_out.is_file():
        return training
    validation = _read_file(path.with_name(held_out.name), held_out, task)
    if validation.observations.shape[1:] != training.observations.shape[1:]:
        raise DatasetError(
            f"{held_out}: observations have {validation.observations.shape[1]} columns and those "
            f"of {path.name} {training.observations.shape[1]}; the two files do not belong together"
        )
    return training.with_held_out(
        validation, (f"{held_out.name} in the same folder is the held-out split.")
    )


def _task(environment: str | None) -> str | None:
    """The single-task id that ogbench registers; None where no task is asked for."""
    if environment is None or "singletask" not in environment:
        return None
    return re.sub(rf"-({KINDS})-singletask", "-singletask", environment)


def _read_file(path: Path, file: Path, task: str | None) -> Transitions:
    with opened(path, file) as archive:
        members = Members(path, archive)
        missing = [
            key for key in ("observations", "actions", "terminals") if key not in members.names
        ]
        if missing:
            raise DatasetError(
                f"{path}: missing {listing(missing)}; the file has {listing(members.names)}; "
                "copy it again, or give another format as FORMAT:PATH"
            )
        optional = ("next_observations", "rewards", "masks", *STATE)
        wanted = ("observations", "actions", "terminals", *optional)
        arrays = {key: members.array(key) for key in wanted if key in members.names}
    steps = len(np.atleast_1d(arrays["actions"]))
    for key, array in arrays.items():
        if array.ndim == 0 or len(array) != steps:
            raise DatasetError(
                f"{path}: {key} has shape {array.shape} and actions has {steps:,} rows; every "
                "field needs one row per step"
            )
        if array.dtype.kind not in "fiub":
            raise DatasetError(
                f"{path}: {key} holds {array.dtype.name}; expected numbers: copy it again"
            )
    if steps == 0:
        raise DatasetError(f"{path}: actions has no rows: the file holds no steps")
    ends = _ends(path, arrays.pop("terminals"))
    if "next_observations" not in arrays:
        arrays, ends = _regular(path, arrays, ends)
    record: dict[str, object] = {"format": "ogbench", **file_record(file)}
    notes: list[str] = []
    if not FILE_NAME.fullmatch(path.name) or "qpos" not in arrays:
        notes.append(
            "Read as an OGBench file: the last row of each trajectory has no action and is "
            f"dropped. For a file of your own, pass npz:{path.name}."
        )
    if task is not None:
        record |= _relabel(path, task, arrays, notes)
    elif "rewards" not in arrays:
        notes.append(_no_task(path))
    fields: dict[str, np.ndarray] = {key: arrays[key] for key in FIELDS if key in arrays}
    if "masks" in arrays:
        fields["terminals"] = 1 - arrays["masks"]
    transitions = assemble(
        {**fields, "timeouts": ends},
        source=str(path),
        environment=None if task is None else EnvironmentSpec(task),
        provenance=record,
        notes=notes,
        keys={"timeouts": "terminals", "terminals": "masks"},
    )
    return replace(transitions, starts=_starts(path, arrays, transitions))


def _starts(
    path: Path, arrays: dict[str, np.ndarray], transitions: Transitions
) -> tuple[RecordedStart, ...] | None:
    """Positions and velocities at the first row of every episode, where the file has both."""
    if not {"qpos", "qvel"} <= arrays.keys():
        return None
    rows = transitions.episode_starts  # every row of the arrays is a row of the transitions
    states = np.hstack([arrays[name][rows].reshape(len(rows), -1) for name in ("qpos", "qvel")])
    return tuple(RecordedStart(state, path) for state in states.astype(np.float64))


def _ends(path: Path, terminals: np.ndarray) -> np.ndarray:
    wrong = (terminals != 0) & (terminals != 1)
    if terminals.ndim != 1 or wrong.any():
        raise DatasetError(
            f"{path}: terminals has shape {terminals.shape}; expected 0 or 1 per row, 1 on "
            "the last row of each trajectory; copy the file again"
        )
    return terminals.astype(bool)


def _regular(
    path: Path, arrays: dict[str, np.ndarray], ends: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Drop the last row of each trajectory, whose observation is the successor of the one before.

    A trajectory that the file's end cuts off ends there in the same way.
    """
    ends = ends.copy()
    ends[-1] = True
    kept = ~ends
    if not kept.any():
        raise DatasetError(
            f"{path}: each of the {counted(len(ends), 'trajectory row')} ends a trajectory, "
            "so no step is left; terminals must be 1 only on the last row of each trajectory"
        )
    following = np.flatnonzero(kept) + 1
    regular = {key: array[kept] for key, array in arrays.items()}
    regular["next_observations"] = arrays["observations"][following]
    return regular, ends[following]


def _no_task(path: Path) -> str:
    match = FILE_NAME.fullmatch(path.name)
    example = (
        f"{match['base']}-singletask-task1-{match['version']}"
        if match
        else "cube-single-singletask-task1-v0"
    )
    return f"The file has no rewards. To compute them for a task, pass for example --env {example}."


def _relabel(
    path: Path, task: str, arrays: dict[str, np.ndarray], notes: list[str]
) -> dict[str, object]:
    """Add `rewards` and `masks` for the task; returns the record of how."""
    from saqrl.environments.packages import quiet
    from saqrl.environments.simulators import import_simulator

    import_simulator(f"computing rewards for {task}", ("mujoco", "ogbench"), extra="ogbench")
    import gymnasium
    from ogbench.relabel_utils import relabel_dataset

    needed = ["qpos"] + (["button_states"] if re.match("scene|puzzle", task) else [])
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise DatasetError(
            f"{path}: rewards for {task} are computed from {listing(needed)}, and "
            f"{listing(missing)} is not in the file; download the original file of the "
            "benchmark"
        )
    if task not in gymnasium.registry:
        raise DatasetError(
            f"{path}: ogbench has no task {task}; names are like "
            "cube-single-singletask-task1-v0, with tasks 1 to 5"
        )
    spec = gymnasium.spec(task)
    relabelled: dict[str, Any] = dict(arrays)
    with quiet():
        environment = gymnasium.make(task, disable_env_checker=True)
        try:
            relabel_dataset(task, environment, relabelled)
        except (IndexError, ValueError, AttributeError) as error:
            raise DatasetError(
                f"{path}: ogbench cannot compute rewards for {task} from this file "
                f"({error}); check that the file was recorded in that environment"
            ) from error
        finally:
            environment.close()
    arrays["rewards"], arrays["masks"] = relabelled["rewards"], relabelled["masks"]
    solved, rows = int((arrays["masks"] == 0).sum()), len(arrays["masks"])
    notes.append(
        f"Rewards are computed for {task} by ogbench: {counted(solved, 'row')} of {rows:,} "
        "solve it, and each of them ends an episode."
    )
    return {
        "task": task,
        "success_timing": str(spec.kwargs.get("success_timing", "unknown")),
        "ogbench": importlib.metadata.version("ogbench"),
    }


def _downloaded(name: str) -> Path:
    """The benchmark's file of a data set by name, downloaded by ogbench where it is missing."""
    plain = re.sub(r"-singletask(-task\d+)?", "", name)
    path = FOLDER.expanduser() / f"{plain}.npz"
    if path.is_file():
        return path
    from saqrl.environments.simulators import import_simulator

    import_simulator(f"downloading {plain}", ("ogbench",), extra="ogbench")
    from ogbench.utils import download_datasets

    try:
        download_datasets([plain], str(FOLDER))
    except OSError as error:
        raise DatasetError(
            f"{name}: no such file here, and downloading {plain} failed ({error}); copy "
            f"{plain}.npz to {FOLDER} or give its path"
        ) from error
    return path
