"""LeRobot v2.1 and v3.0: meta/info.json and parquet below data/; videos are not needed.

A frame is one row: its state, the action taken in it, the episode that it belongs to. Frames have
no successor beside the next frame. What ended an episode is recorded at best as next.success; a
file without rewards gets them with --dataset.rewards success-at-end, or has none.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.datasets.assembly import assemble
from saqrl.datasets.errors import DatasetError, listing, nearest
from saqrl.datasets.extras import extras_of
from saqrl.datasets.formats.lerobot_frames import INFO, Frames, require_stored
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import damage_named, existing_file, parsed_object, text_of
from saqrl.datasets.transitions import Transitions
from saqrl.environments.packages import import_packages
from saqrl.environments.rates import as_rate

SUMMARY = "LeRobot data set v2.1 or v3.0: a folder with meta/info.json and data/*.parquet"
SUFFIXES = ()
OPTIONS = ("keys", "action")

VERSIONS = ("v2.0", "v2.1", "v3.0")
STATES = ("observation.state", "observation.environment_state")
# Of our own conversions, which keep the whole transition.
NEXT = "next.observation"
TERMINATED = "next.terminated"
TASK = "task_index"
EXTRAS = "meta/saqrl.json"
# Frames a second where the log does not say: the format wants a number.
FRAMES_PER_SECOND = 20


def recognises(path: Path) -> bool:
    """Whether this is a folder with meta/info.json."""
    return (path / INFO).is_file()


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read the folder `path`. Raises FileNotFoundError, ImportError (pyarrow) or DatasetError."""
    import_packages(f"{path}: a LeRobot data set", ("pyarrow.parquet",), extra="lerobot")
    folder = path.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path}: no such folder; LeRobot data sets are folders with meta/info.json: download "
            f"one with `hf download --repo-type dataset {path} --local-dir FOLDER`"
        )
    info = _info(path, folder)
    columns = _chosen_columns(path, info["features"], options)
    frames = Frames(path, folder, info, [*columns["wanted"], "episode_index", "frame_index"])
    episode_index = frames.numbers("episode_index")
    ends = _episode_ends(path, episode_index, frames.numbers("frame_index"), info)
    observed = {key: frames.vectors(key) for key in columns["observations"]}
    arrays = {
        "observations": np.concatenate(list(observed.values()), axis=1),
        "actions": np.concatenate([frames.vectors(key) for key in columns["action"]], axis=1),
    }
    if "next.reward" in columns["wanted"]:
        arrays["rewards"] = frames.numbers("next.reward")
    if NEXT in columns["wanted"]:
        arrays["next_observations"] = frames.vectors(NEXT)
    layout = tuple((key, table.shape[1]) for key, table in observed.items())
    notes = [f"Observations are {listing(observed)}."]
    if len(columns["action"]) > 1:
        notes.append(f"Actions are {listing(columns['action'])}, concatenated.")
    tasks = _tasks(path, folder)
    terminals = _terminals(frames, columns, ends, options, notes)
    ours = (folder / EXTRAS).is_file()
    extras = parsed_object(path, EXTRAS, text_of(path, folder, EXTRAS)) if ours else {}
    features = info["features"]
    transitions = assemble(
        arrays | {"terminals": terminals, "timeouts": ends & ~terminals},
        source=str(path),
        provenance={
            "format": "lerobot",
            "path": str(path),
            "version": info["codebase_version"],
            "robot_type": info.get("robot_type"),
            "fps": info.get("fps"),
            "tasks": tasks,
            "observation_keys": list(observed),
        },
        notes=notes,
        warnings=_task_warnings(frames, columns, tasks),
        keys={"actions": listing(columns["action"]), "rewards": "next.reward"},
        observation_keys=() if list(observed) == [STATES[0]] else layout,
        control_rate=as_rate(info.get("fps")),
        extras=extras,
    )
    return transitions.named(
        actions=_names(features, columns["action"]),
        observations=_names(features, observed),
        cameras=[
            name.removeprefix("observation.images.").removeprefix("observation.")
            for name, feature in features.items()
            if feature.get("dtype") in ("video", "image")
        ],
        # Our conversions write one where there is none: the format wants a task.
        tasks=() if "tasks" in extras else tasks,
        successes=_solved(frames, columns, ends, options),
    )


def _names(features: dict[str, dict[str, Any]], chosen: Iterable[str]) -> list[object]:
    """What meta/info.json calls the numbers of these features; none where one of them has none.

    Files hold a list, a list in a list, or an object of lists.
    """
    found: list[object] = []
    for key in chosen:
        names = features[key].get("names")
        parts = list(names.values()) if isinstance(names, dict) else names
        if not isinstance(parts, list) or not parts:
            return []
        found += chain.from_iterable(p if isinstance(p, list) else [p] for p in parts)
    return found


def _solved(
    frames: Frames, columns: dict[str, list[str]], ends: np.ndarray, options: ReadOptions
) -> np.ndarray | None:
    """Whether next.success is set anywhere in an episode, where the file has it."""
    if "next.success" not in columns["wanted"] or options.rewards != "file":
        return None
    starts = np.append(0, np.flatnonzero(ends)[:-1] + 1)
    return np.logical_or.reduceat(frames.numbers("next.success") != 0, starts)


def _info(path: Path, folder: Path) -> dict[str, Any]:
    """What meta/info.json says; of a version that is read, with features."""
    info = parsed_object(path, INFO, text_of(path, folder, INFO))
    version, features = info.get("codebase_version"), info.get("features")
    if version not in VERSIONS:
        raise DatasetError(
            f"{path}: {INFO} has codebase_version {version}; supported are "
            f"{listing(VERSIONS)}: convert the data set with lerobot"
        )
    named = isinstance(features, dict) and all(isinstance(f, dict) for f in features.values())
    if not features or not named:
        raise DatasetError(
            f"{path}: {INFO} describes no features (observation.state, action, ...); copy the "
            "data set again"
        )
    return info


def _chosen_columns(
    path: Path, features: dict[str, dict[str, Any]], options: ReadOptions
) -> dict[str, list[str]]:
    """Which features become what: observations, action, and all that are wanted."""
    numeric = [
        name
        for name, feature in features.items()
        if str(feature.get("dtype")) not in ("video", "image", "string")
    ]
    states = list(options.keys) or [name for name in STATES if name in numeric]
    actions = [name.strip() for name in (options.action or "action").split(",")]
    candidates = [name for name in numeric if name.startswith(("observation", "action"))]
    for name in (*states, *actions):
        if name in numeric:
            continue
        image = name in features
        why = "holds images or text" if image else f"is missing{nearest(name, features)}"
        parts = [name for name in numeric if name.startswith("action.")]
        join = f"; to join them: --dataset.action {','.join(parts)}" if name == "action" else ""
        raise DatasetError(
            f"{path}: feature {name} {why}; numeric features: "
            f"{listing(candidates)}{join if parts else ''}"
        )
    if not states:
        raise DatasetError(
            f"{path}: there is no observation.state; choose observation features with "
            f"--dataset.keys, out of {listing(candidates)}"
        )
    extra = [n for n in ("next.reward", "next.success", "next.done", TERMINATED) if n in numeric]
    if NEXT in numeric and states == ["observation.state"]:
        extra.append(NEXT)
    extra += [TASK] if TASK in numeric else []
    return {"observations": states, "action": actions, "wanted": [*states, *actions, *extra]}


def _task_warnings(
    frames: Frames, columns: dict[str, list[str]], tasks: list[str]
) -> Iterator[str]:
    """Several tasks that nothing in an observation tells apart."""
    if TASK not in columns["wanted"] or TASK in columns["observations"]:
        return
    seen = np.unique(frames.numbers(TASK))
    if len(seen) > 1:
        named = [tasks[int(n)] if 0 <= n < len(tasks) else f"{n:g}" for n in seen[:4]]
        yield (
            f"{len(seen)} tasks ({listing(named)}) and nothing in the observations tells "
            f"them apart: add {TASK} to --dataset.keys, or keep one task."
        )


def _episode_ends(
    path: Path, episodes: np.ndarray, frames: np.ndarray, info: dict[str, object]
) -> np.ndarray:
    """True on the last frame of each episode; frames count 0, 1, 2, ... within one."""
    changes = np.append(episodes[1:] != episodes[:-1], True)
    starts = np.append(0, np.flatnonzero(changes)[:-1] + 1)
    if len(np.unique(episodes)) != len(starts):
        raise DatasetError(
            f"{path}: the frames of an episode are not consecutive (episode_index): parquet "
            "files of different data sets may be mixed; copy the data set again"
        )
    lengths = np.diff(np.append(starts, len(frames)))
    expected = np.arange(len(frames)) - np.repeat(starts, lengths)
    wrong = np.flatnonzero(frames != expected)
    if wrong.size:
        row = int(wrong[0])
        raise DatasetError(
            f"{path}: frame {row} is number {frames[row]} of episode {episodes[row]} and "
            f"{expected[row]} was expected; frames are missing; copy the data set again"
        )
    for name, count in (("total_episodes", len(starts)), ("total_frames", len(frames))):
        promised = info.get(name)
        if isinstance(promised, int) and promised != count:
            raise DatasetError(
                f"{path}: {INFO} promises {name} {promised:,} and the parquet files hold "
                f"{count:,}; if you deleted episodes, correct {INFO}; if not, copy the data "
                "set again"
            )
    return changes


def _terminals(
    frames: Frames,
    columns: dict[str, list[str]],
    ends: np.ndarray,
    options: ReadOptions,
    notes: list[str],
) -> np.ndarray:
    wanted = columns["wanted"]
    if options.rewards == "success-at-end":
        return ends
    if TERMINATED in wanted:
        return (frames.numbers(TERMINATED) != 0) & ends
    if "next.success" in wanted:
        notes.append("An episode terminates where next.success is set on its last frame.")
        return (frames.numbers("next.success") != 0) & ends
    notes.append(
        "The file does not say whether the task ended with the episode: ends are read as "
        "time limits. If every episode succeeds, pass --dataset.rewards success-at-end."
    )
    return np.zeros_like(ends)


def _tasks(path: Path, folder: Path) -> list[str]:
    """What the episodes are about, in words; from tasks.jsonl or tasks.parquet."""
    lines, table = "meta/tasks.jsonl", "meta/tasks.parquet"
    if (folder / lines).is_file():
        rows = [line for line in text_of(path, folder, lines).splitlines() if line.strip()]
        return [str(parsed_object(path, lines, row).get("task", "")) for row in rows]
    if not (folder / table).is_file():
        return []
    import pyarrow.parquet as parquet

    with damage_named(path, table):
        opened = parquet.ParquetFile(existing_file(folder / table))
        require_stored(path, table, folder / table, opened)
        read = opened.read(use_threads=False)
        # pandas writes the task as the index, without a name of its own.
        named = [n for n in ("task", "__index_level_0__") if n in read.column_names]
        return [str(value) for value in read.column(named[0]).to_pylist()] if named else []


def write(path: Path, transitions: Transitions) -> None:
    """Write v3.0 with one file of frames; videos and their features are not part of a log."""
    import_packages(f"{path}: a LeRobot data set", ("pyarrow.parquet",), extra="lerobot")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lengths = transitions.episode_lengths
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    frames = np.arange(len(transitions)) - np.repeat(transitions.episode_starts, lengths)
    # The format wants a whole number.
    rate = transitions.control_rate
    fps = int(rate) if rate and rate == int(rate) else FRAMES_PER_SECOND
    columns: dict[str, np.ndarray] = {
        "observation.state": transitions.observations,
        "action": transitions.actions,
        **({"next.reward": transitions.rewards} if transitions.has_rewards else {}),
        "next.done": transitions.last_rows,
        TERMINATED: transitions.terminated,
        NEXT: transitions.next_observations,
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": episodes,
        "index": np.arange(len(transitions)),
        "task_index": np.zeros(len(transitions), np.int64),
    }
    unnamed = transitions.environment.id if transitions.environment else "unknown"
    task = transitions.tasks[0] if transitions.tasks else unnamed
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
    states = transitions.observation_names
    words = {"action": transitions.action_names, STATES[0]: states, NEXT: states}
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
        "features": {
            name: _feature(values) | {"names": list(words.get(name, ())) or None}
            for name, values in columns.items()
        },
    }
    statistics = {name: _statistics(values) for name, values in columns.items()}
    documents = {INFO: info, "meta/stats.json": statistics, EXTRAS: extras_of(transitions)}
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document, indent=2))


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
    return {"dtype": str(values.dtype), "shape": width}


def _statistics(values: np.ndarray) -> dict[str, object]:
    table = values.reshape(len(values), -1).astype(np.float64)
    found = {name: getattr(table, name)(0).tolist() for name in ("min", "max", "mean", "std")}
    return {**found, "count": [len(table)]}
