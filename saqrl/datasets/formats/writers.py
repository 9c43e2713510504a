"""`Transitions` -> the files of other tools, so that reading them gives the same log bit for bit.

Everything is written aside and renamed when it is whole; nothing is ever overwritten.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saqrl.datasets.errors import DatasetError, counted
from saqrl.datasets.extras import NAME, extras_of
from saqrl.datasets.formats.mapped import write as _write_mapped
from saqrl.datasets.formats.mapped import write_each
from saqrl.datasets.statistics import blocks
from saqrl.datasets.transitions import Transitions
from saqrl.registry import closest

if TYPE_CHECKING:
    import h5py

# Frames a second where the log does not say: LeRobot's format wants one.
FRAMES_PER_SECOND = 20
# The only key of an observation whose parts have no names.
WHOLE = "state"


def convert(transitions: Transitions, out: Path, format_name: str) -> None:
    """Write `transitions` to the new file or folder `out`.

    Raises DatasetError: the format is unknown or cannot hold this log, or `out` exists.
    """
    if format_name not in TARGETS:
        raise DatasetError(f"cannot write {format_name!r}; {closest(format_name, TARGETS)}")
    with _written_aside(out.expanduser()) as aside:
        TARGETS[format_name](aside, transitions)


def convert_each(logs: Iterable[Transitions], out: Path) -> None:
    """Write logs one after another as mapped columns in the new folder `out`.

    Each of them is asked for when the one before it is written.
    Raises DatasetError: they do not fit together, or `out` exists.
    """
    with _written_aside(out.expanduser()) as aside:
        write_each(aside, logs)


def check_destination(path: Path) -> None:
    """Refuse an npz that cannot or must not be written, before any work is done for it."""
    if path.suffix != ".npz":
        raise ValueError(f"{path}: this is written as npz; choose a name that ends in .npz")
    if path.exists():
        raise FileExistsError(f"{path} exists and is never overwritten: remove it or rename --out")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; create it first")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as a compressed npz: the whole file or none."""
    check_destination(path)
    with _written_aside(path) as aside, aside.open("xb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes `path` if nothing is raised."""
    _refuse_existing(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
        _refuse_existing(path)
        aside.rename(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def format_of(out: Path) -> str | None:
    """The format that a name asks for; None where several or none could be meant."""
    return {".npz": "npz", ".h5": "d4rl"}.get(out.suffix.lower())


def first_difference(one: Transitions, other: Transitions) -> str | None:
    """The first field in which two logs differ in any bit; None where they are the same."""
    arrays = ("observations", "actions", "rewards", "next_observations", "terminated")
    for name in (*arrays, "episode_starts"):
        first, second = getattr(one, name), getattr(other, name)
        if first.shape != second.shape or not _same_bits(first, second):
            return name
    if one.action_range.low.tobytes() != other.action_range.low.tobytes():
        return "action_low"
    if one.action_range.high.tobytes() != other.action_range.high.tobytes():
        return "action_high"
    for name in ("has_rewards", "observation_keys", "environment"):
        if getattr(one, name) != getattr(other, name):
            return name
    return None


def first_difference_of_parts(logs: Iterable[Transitions], whole: Transitions) -> str | None:
    """As `first_difference`, of logs that were written one after another and what was read."""
    seen = 0
    for log in logs:
        episodes = np.arange(seen, seen + log.num_episodes)
        if len(episodes) > whole.num_episodes - seen:
            return "episode_starts"
        part = replace(
            whole.select_episodes(episodes),
            action_range=log.action_range,
            environment=log.environment,
            observation_keys=log.observation_keys,
        )
        if (difference := first_difference(log, part)) is not None:
            return difference
        seen += log.num_episodes
    return None if seen == whole.num_episodes else "episode_starts"


def _same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    pairs = zip(blocks(first), blocks(second), strict=True)
    return all(ours.tobytes() == theirs.tobytes() for ours, theirs in pairs)


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise DatasetError(f"{path} exists and is not overwritten; name another, or remove it")


def _flat(transitions: Transitions) -> dict[str, np.ndarray]:
    """One array a field, one row a step, as npz and D4RL hold them."""
    last = np.zeros(len(transitions), bool)
    last[transitions.episode_ends - 1] = True
    arrays = {
        "observations": transitions.observations,
        "actions": transitions.actions,
        "rewards": transitions.rewards,
        "next_observations": transitions.next_observations,
        "terminals": transitions.terminated,
        "timeouts": last & ~transitions.terminated,
        "action_low": transitions.action_range.low,
        "action_high": transitions.action_range.high,
    }
    if not transitions.has_rewards:
        del arrays["rewards"]
    return arrays


def _provenance(transitions: Transitions) -> str:
    return json.dumps({"converted_from": transitions.provenance}, default=str)


def _write_npz(path: Path, transitions: Transitions) -> None:
    members: dict[str, Any] = {
        **_flat(transitions),
        NAME: np.array(json.dumps(extras_of(transitions))),
        "provenance": np.array(_provenance(transitions)),
    }
    if transitions.environment is not None:
        members["environment_id"] = np.array(transitions.environment.id)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **members)


def _write_d4rl(path: Path, transitions: Transitions) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for key, array in _flat(transitions).items():
            _store(file, key, array)
        if transitions.environment is not None:
            file["metadata/env_id"] = np.bytes_(transitions.environment.id.encode())
        file[f"metadata/{NAME}"] = np.bytes_(json.dumps(extras_of(transitions)).encode())
        file["metadata/provenance"] = np.bytes_(_provenance(transitions).encode())


def _write_robomimic(path: Path, transitions: Transitions) -> None:
    import h5py

    keys = transitions.observation_keys
    if not keys or any("/" in key for key, _ in keys):
        keys = ((WHOLE, transitions.observations.shape[1]),)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = len(transitions)
        data.attrs["env_args"] = np.bytes_(json.dumps(_env_args(transitions)).encode())
        for episode, rows in enumerate(_episode_rows(transitions)):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = rows.stop - rows.start
            _store(demo, "actions", transitions.actions[rows])
            if transitions.has_rewards:
                _store(demo, "rewards", transitions.rewards[rows])
            _store(demo, "dones", transitions.terminated[rows].astype(np.int64))
            _store(demo, "terminated", transitions.terminated[rows])
            place = 0
            for key, width in keys:
                columns = slice(place, place + width)
                _store(demo, f"obs/{key}", transitions.observations[rows, columns])
                _store(demo, f"next_obs/{key}", transitions.next_observations[rows, columns])
                place += width
        record = extras_of(transitions) | {"stored_keys": [key for key, _ in keys]}
        file[NAME] = np.bytes_(json.dumps(record).encode())


def _env_args(transitions: Transitions) -> dict[str, object]:
    environment = transitions.environment
    if environment is None:
        return {"env_name": "unknown", "type": 2, "env_kwargs": {}}
    robosuite = environment.id.startswith("robosuite/")
    keywords = {k: v for k, v in environment.options.items() if k != "observation_keys"}
    return {
        "env_name": environment.id.removeprefix("robosuite/"),
        "type": 1 if robosuite else 2,
        "env_kwargs": keywords,
    }


def _write_minari(path: Path, transitions: Transitions) -> None:
    import h5py

    from saqrl.datasets.formats.minari import MAIN_FILE, METADATA

    _require_continuity(transitions)
    folder = path / "data"
    folder.mkdir(parents=True)
    with h5py.File(folder / MAIN_FILE, "w") as file:
        for episode, rows in enumerate(_episode_rows(transitions)):
            group = file.create_group(f"episode_{episode}")
            group.attrs["id"] = episode
            group.attrs["total_steps"] = rows.stop - rows.start
            final = transitions.next_observations[rows.stop - 1 : rows.stop]
            _store(group, "observations", np.concatenate([transitions.observations[rows], final]))
            _store(group, "actions", transitions.actions[rows])
            _store(group, "rewards", transitions.rewards[rows])
            terminations = transitions.terminated[rows]
            truncations = np.zeros_like(terminations)
            truncations[-1] = not terminations[-1]
            _store(group, "terminations", terminations)
            _store(group, "truncations", truncations)
    width = transitions.observations.shape[1]
    metadata = {
        "total_episodes": transitions.num_episodes,
        "total_steps": len(transitions),
        "data_format": "hdf5",
        "observation_space": _box(
            np.full(width, -np.inf), np.full(width, np.inf), transitions.observations.dtype
        ),
        "action_space": _box(
            transitions.action_range.low, transitions.action_range.high, transitions.actions.dtype
        ),
        "env_spec": _env_spec(transitions),
        "dataset_id": f"saqrl/converted/{path.name.strip('.').split('.')[0]}-v0",
        "algorithm_name": "unknown",
        "author": [],
        "author_email": [],
        "code_permalink": "",
        "description": f"Converted by saqrl from {transitions.provenance.get('path', 'a log')}",
        "minari_version": "0.5.0",
        "dataset_size": round(sum(f.stat().st_size for f in folder.iterdir()) / 1e6, 1),
        NAME: extras_of(transitions),
    }
    if metadata["env_spec"] is None:
        del metadata["env_spec"]
    (folder / METADATA).write_text(json.dumps(metadata))


def _require_continuity(transitions: Transitions) -> None:
    """Minari stores a successor once, as the next observation."""
    inside = np.ones(len(transitions) - 1, bool)
    inside[transitions.episode_ends[:-1] - 1] = False
    differs = np.zeros(len(transitions) - 1, bool)
    block = 65_536
    for start in range(0, len(differs), block):
        rows = slice(start, start + block)
        following = transitions.observations[1:][rows]
        own = transitions.next_observations[:-1][rows]
        differs[rows] = (own.view(np.uint32) != following.view(np.uint32)).any(1)
    rows_lost = int((differs & inside).sum())
    if rows_lost:
        raise DatasetError(
            f"Minari stores a next observation only as the one that follows, and in "
            f"{counted(rows_lost, 'row')} here it is another; convert to npz, d4rl, robomimic or "
            "lerobot, which store both"
        )


def _box(low: np.ndarray, high: np.ndarray, dtype: np.dtype[Any]) -> str:
    """A Gymnasium Box as Minari serialises it."""
    return json.dumps(
        {
            "type": "Box",
            "dtype": str(dtype),
            "shape": [len(low)],
            "low": [float(value) for value in low],
            "high": [float(value) for value in high],
        }
    )


def _env_spec(transitions: Transitions) -> str | None:
    if transitions.environment is None:
        return None
    options = dict(transitions.environment.options)
    return json.dumps(
        {
            "id": transitions.environment.id,
            "entry_point": None,
            "reward_threshold": None,
            "nondeterministic": False,
            "max_episode_steps": options.pop("max_episode_steps", None),
            "order_enforce": True,
            "disable_env_checker": True,
            "kwargs": options,
            "additional_wrappers": [],
            "vector_entry_point": None,
        }
    )


def _write_lerobot(path: Path, transitions: Transitions) -> None:
    from saqrl.datasets.formats.lerobot import EXTRAS, NEXT, TERMINATED, require_pyarrow

    require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lengths = transitions.episode_lengths
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    frames = np.arange(len(transitions)) - np.repeat(transitions.episode_starts, lengths)
    given = transitions.provenance.get("fps")
    fps = given if isinstance(given, int) and given > 0 else FRAMES_PER_SECOND
    ends = np.zeros(len(transitions), bool)
    ends[transitions.episode_ends - 1] = True
    columns: dict[str, np.ndarray] = {
        "observation.state": transitions.observations,
        "action": transitions.actions,
        **({"next.reward": transitions.rewards} if transitions.has_rewards else {}),
        "next.done": ends,
        TERMINATED: transitions.terminated,
        NEXT: transitions.next_observations,
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": episodes,
        "index": np.arange(len(transitions)),
        "task_index": np.zeros(len(transitions), np.int64),
    }
    tasks = transitions.provenance.get("tasks")
    task = str(tasks[0]) if isinstance(tasks, list) and tasks else _task_words(transitions)
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (path / folder).mkdir(parents=True)

    def array(values: np.ndarray) -> Any:
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    table = pa.table({name: array(values) for name, values in columns.items()})
    parquet.write_table(table, path / "data/chunk-000/file-000.parquet")
    starts, count = transitions.episode_starts, len(lengths)
    zeros = np.zeros(count, np.int64)
    listed = pa.table(
        {
            "episode_index": np.arange(count),
            "tasks": pa.array([[task]] * count),
            "length": lengths,
            "dataset_from_index": starts,
            "dataset_to_index": transitions.episode_ends,
            "data/chunk_index": zeros,
            "data/file_index": zeros,
            "meta/episodes/chunk_index": zeros,
            "meta/episodes/file_index": zeros,
        }
    )
    parquet.write_table(listed, path / "meta/episodes/chunk-000/file-000.parquet")
    parquet.write_table(_task_table(task), path / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "robot_type": transitions.provenance.get("robot_type"),
        "total_episodes": count,
        "total_frames": len(transitions),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": fps,
        "splits": {"train": f"0:{count}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": {name: _feature(values) for name, values in columns.items()},
    }
    _write_json(path / "meta/info.json", info)
    _write_json(path / "meta/stats.json", {n: _statistics(v) for n, v in columns.items()})
    _write_json(path / "meta" / EXTRAS, extras_of(transitions))


def _task_words(transitions: Transitions) -> str:
    return transitions.environment.id if transitions.environment else "unknown"


def _task_table(task: str) -> Any:
    """Tasks as pandas writes them: the words are the index, which LeRobot looks up."""
    import pyarrow as pa

    index = "__index_level_0__"
    described = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64"}
            | {"numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": index, "pandas_type": "unicode"}
            | {"numpy_type": "object", "metadata": None},
        ],
    }
    table = pa.table({"task_index": np.zeros(1, np.int64), index: pa.array([task])})
    return table.replace_schema_metadata({b"pandas": json.dumps(described).encode()})


def _feature(values: np.ndarray) -> dict[str, object]:
    width = [values.shape[1]] if values.ndim == 2 else [1]
    return {"dtype": str(values.dtype), "shape": width, "names": None}


def _statistics(values: np.ndarray) -> dict[str, object]:
    table = values.reshape(len(values), -1).astype(np.float64)
    found = {name: getattr(table, name)(0).tolist() for name in ("min", "max", "mean", "std")}
    return {**found, "count": [len(table)]}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2))


def _episode_rows(transitions: Transitions) -> list[slice]:
    bounds = zip(transitions.episode_starts, transitions.episode_ends, strict=True)
    return [slice(int(start), int(end)) for start, end in bounds]


def _store(group: "h5py.Group", key: str, array: np.ndarray) -> None:
    """Compressed where it pays; small arrays as they are."""
    if array.nbytes > 1 << 16:
        group.create_dataset(key, data=array, compression="gzip", compression_opts=1)
    else:
        group.create_dataset(key, data=array)


TARGETS: Mapping[str, Callable[[Path, Transitions], None]] = {
    "npz": _write_npz,
    "d4rl": _write_d4rl,
    "minari": _write_minari,
    "robomimic": _write_robomimic,
    "lerobot": _write_lerobot,
    "mapped": _write_mapped,
}
