"""LeRobot v2.1 and v3.0: meta/info.json and parquet below data/; videos are not needed.

A frame is one row: its state, the action taken in it, the episode that it belongs to. Frames have
no successor beside the next frame. What ended an episode is recorded at best as next.success; a
file without rewards gets them with --dataset.rewards success-at-end, or has none.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saqrl.datasets.assembly import assemble
from saqrl.datasets.errors import DatasetError, counted, listing, nearest
from saqrl.datasets.extras import bounds_of, with_extras
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import parsed_object
from saqrl.datasets.transitions import Transitions

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet as parquet

SUMMARY = "LeRobot data set v2.1 or v3.0: a folder with meta/info.json and data/*.parquet"
SUFFIXES = ()
OPTIONS = ("keys", "action")

VERSIONS = ("v2.0", "v2.1", "v3.0")
STATES = ("observation.state", "observation.environment_state")
# Of our own conversions, which keep the whole transition.
NEXT = "next.observation"
TERMINATED = "next.terminated"
EXTRAS = "saqrl.json"
TEXT_LIMIT = 1 << 26
# Numbers that one byte of parquet may stand for: a robot with a thousand joints that stands still.
MOST_VALUES = 256


def recognises(path: Path) -> bool:
    """Whether this is a folder with meta/info.json."""
    return (path / "meta" / "info.json").is_file()


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read the folder `path`. Raises FileNotFoundError, ImportError (pyarrow) or DatasetError."""
    require_pyarrow(path)
    folder = path.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path}: no such folder; LeRobot data sets are folders with meta/info.json: download "
            f"one with `hf download --repo-type dataset {path} --local-dir FOLDER`"
        )
    info = _info(path, folder)
    features = _features(path, info)
    columns = _chosen_columns(path, features, options)
    frames = _Frames(path, folder, info, [*columns["wanted"], "episode_index", "frame_index"])
    episode_index = frames.numbers("episode_index")
    ends = _episode_ends(path, episode_index, frames.numbers("frame_index"), info)
    keys = tuple((key, frames.vectors(key).shape[1]) for key in columns["observations"])
    arrays = {
        "observations": np.concatenate(
            [frames.vectors(key) for key in columns["observations"]], axis=1
        ),
        "actions": frames.vectors(columns["action"][0]),
    }
    if "next.reward" in columns["wanted"]:
        arrays["rewards"] = frames.numbers("next.reward")
    if NEXT in columns["wanted"]:
        arrays["next_observations"] = frames.vectors(NEXT)
    notes = [f"Observations are {listing(columns['observations'])}."]
    terminals = _terminals(frames, columns, ends, options, notes)
    extras = _extras(path, folder)
    arrays |= {"terminals": terminals, "timeouts": ends & ~terminals}
    tasks = _tasks(path, folder)
    transitions = assemble(
        arrays | bounds_of(path, extras),
        source=str(path),
        provenance={
            "format": "lerobot",
            "path": str(path),
            "version": info["codebase_version"],
            "robot_type": info.get("robot_type"),
            "fps": info.get("fps"),
            "tasks": tasks,
            "observation_keys": list(columns["observations"]),
        },
        notes=notes,
        keys={"actions": columns["action"][0], "rewards": "next.reward"},
    )
    named = () if keys == ((STATES[0], keys[0][1]),) else keys
    return with_extras(path, replace(transitions, observation_keys=named), extras)


def require_pyarrow(path: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{path}: LeRobot data sets need the package pyarrow, which is not installed: "
            'pip install "saqrl[lerobot]"'
        ) from error


def _text(path: Path, file: Path) -> str:
    try:
        if file.stat().st_size > TEXT_LIMIT:
            raise DatasetError(f"{path}: {file.name} is no description; copy it again")
        return file.read_text(errors="replace")
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: {file.relative_to(path.expanduser())} is missing; copy the whole folder again"
        ) from error


def _info(path: Path, folder: Path) -> dict[str, object]:
    info = parsed_object(path, "meta/info.json", _text(path, folder / "meta" / "info.json"))
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(
            f"{path}: meta/info.json says codebase_version {version}; {listing(VERSIONS)} are "
            "read: convert older ones with lerobot"
        )
    return info


def _features(path: Path, info: dict[str, object]) -> dict[str, dict[str, Any]]:
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise DatasetError(f"{path}: meta/info.json names no features; copy it again")
    return features


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
    action = options.action or "action"
    candidates = [name for name in numeric if name.startswith(("observation", "action"))]
    for name in (*states, action):
        if name in numeric:
            continue
        image = name in features
        why = "is images or text" if image else f"is missing{nearest(name, features)}"
        raise DatasetError(f"{path}: feature {name} {why}; numbers are in {listing(candidates)}")
    if not states:
        raise DatasetError(
            f"{path}: there is no observation.state; choose features with --dataset.keys: "
            f"{listing(candidates)}"
        )
    extra = [n for n in ("next.reward", "next.success", "next.done", TERMINATED) if n in numeric]
    if NEXT in numeric and states == ["observation.state"]:
        extra.append(NEXT)
    return {"observations": states, "action": [action], "wanted": [*states, action, *extra]}


class _Frames:
    """The chosen columns of all parquet files, one row a frame."""

    def __init__(
        self, path: Path, folder: Path, info: dict[str, object], columns: list[str]
    ) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        self.path = path
        files = sorted(
            (folder / "data").glob("**/*.parquet"),
            key=lambda file: [int(n) for n in re.findall(r"\d{1,18}", file.as_posix())],
        )
        if not files:
            raise DatasetError(f"{path}: no parquet file below data; copy the whole folder again")
        total = info.get("total_episodes")
        if info["codebase_version"] != "v3.0" and isinstance(total, int) and len(files) != total:
            raise DatasetError(
                f"{path}: meta/info.json promises {total:,} episodes and data holds "
                f"{counted(len(files), 'file')}; the copy is incomplete, copy it again"
            )
        tables = []
        wanted = list(dict.fromkeys(columns))
        for file in files:
            name = file.relative_to(folder)
            try:
                opened = parquet.ParquetFile(file)
                _require_stored(path, str(name), file, opened)
                held = opened.schema_arrow.names
                if missing := [column for column in wanted if column not in held]:
                    raise DatasetError(
                        f"{path}: {name} lacks the column {listing(missing)}, which "
                        f"meta/info.json promises; it has {listing(held)}; copy it again"
                    )
                tables.append(opened.read(columns=wanted, use_threads=False))
            except DatasetError:
                raise
            except Exception as error:  # pyarrow has its own, and OSError, for damaged bytes
                raise DatasetError(
                    f"{path}: {name} cannot be read ({error}); the file is damaged, copy it again"
                ) from error
        self.columns: dict[str, list[pyarrow.Array]] = {
            column: [chunk for table in tables for chunk in table.column(column).chunks]
            for column in wanted
        }
        self.rows = sum(table.num_rows for table in tables)
        if self.rows == 0:
            raise DatasetError(f"{path}: the parquet files hold no frames; copy it again")

    def numbers(self, column: str) -> np.ndarray:
        """One number a frame."""
        vectors = self.vectors(column)
        if vectors.shape[1] != 1:
            raise DatasetError(
                f"{self.path}: {column} has {vectors.shape[1]} numbers a frame; one is expected"
            )
        return vectors[:, 0]

    def vectors(self, column: str) -> np.ndarray:
        """One vector a frame, all of one width."""
        return np.concatenate([self._vectors(column, chunk) for chunk in self._nonempty(column)])

    def _nonempty(self, column: str) -> "list[pyarrow.Array]":
        chunks = [chunk for chunk in self.columns[column] if len(chunk)]
        types = {str(chunk.type) for chunk in chunks}
        widths = {self._vectors(column, chunk).shape[1] for chunk in chunks}
        if len(types) > 1 or len(widths) > 1:
            raise DatasetError(
                f"{self.path}: {column} is {listing(sorted(types))} of width "
                f"{listing(sorted(widths))} from file to file; every file needs the same"
            )
        return chunks

    def _vectors(self, column: str, chunk: "pyarrow.Array") -> np.ndarray:
        import pyarrow.types as types

        values, lengths = chunk, np.ones(len(chunk), np.int64)
        if types.is_list(chunk.type) or types.is_large_list(chunk.type):
            lengths, values = np.diff(np.asarray(chunk.offsets)), chunk.flatten()
        elif types.is_fixed_size_list(chunk.type):
            lengths, values = np.full(len(chunk), chunk.type.list_size), chunk.flatten()
        numeric = types.is_integer(values.type) or types.is_floating(values.type)
        if not (numeric or types.is_boolean(values.type)):
            raise DatasetError(
                f"{self.path}: {column} holds {chunk.type}; numbers or flat lists of them are "
                "expected: choose other features with --dataset.keys"
            )
        if chunk.null_count or values.null_count:
            raise DatasetError(
                f"{self.path}: {column} has empty entries; every frame needs a value: remove the "
                "episodes that lack it"
            )
        if len(set(lengths.tolist())) > 1:
            raise DatasetError(
                f"{self.path}: {column} is {lengths.min()} to {lengths.max()} numbers wide; every "
                "frame needs as many"
            )
        array = values.to_numpy(zero_copy_only=False)
        return array.reshape(len(chunk), -1) if len(chunk) else array.reshape(0, 1)


def _require_stored(path: Path, name: str, file: Path, opened: "parquet.ParquetFile") -> None:
    """Refuse a footer that promises more than the file can mean, before memory is set aside.

    Equal values in a row take no room in parquet, so that a few bytes may stand for any number of
    them. Real frames differ at least in their index.
    """
    size, described = file.stat().st_size, opened.metadata
    values = sum(
        described.row_group(group).column(column).num_values
        for group in range(described.num_row_groups)
        for column in range(described.num_columns)
    )
    if described.num_rows > size or values > MOST_VALUES * size:
        raise DatasetError(
            f"{path}: {name} promises {described.num_rows:,} rows of {values:,} numbers, which its "
            f"{size:,} bytes cannot hold; the file is damaged, copy it again"
        )


def _episode_ends(
    path: Path, episodes: np.ndarray, frames: np.ndarray, info: dict[str, object]
) -> np.ndarray:
    """True on the last frame of each episode; frames count 0, 1, 2, ... within one."""
    changes = np.append(episodes[1:] != episodes[:-1], True)
    starts = np.append(0, np.flatnonzero(changes)[:-1] + 1)
    if len(np.unique(episodes)) != len(starts):
        raise DatasetError(
            f"{path}: the frames of an episode do not follow each other (episode_index); the "
            "parquet files do not belong together, copy it again"
        )
    counted_frames = np.arange(len(frames)) - np.repeat(
        starts, np.diff(np.append(starts, len(frames)))
    )
    wrong = np.flatnonzero(frames != counted_frames)
    if wrong.size:
        row = int(wrong[0])
        raise DatasetError(
            f"{path}: frame {row} is number {frames[row]} of episode {episodes[row]} and "
            f"{counted_frames[row]} was expected; frames are missing, copy it again"
        )
    for name, count in (("total_episodes", len(starts)), ("total_frames", len(frames))):
        promised = info.get(name)
        if isinstance(promised, int) and promised != count:
            raise DatasetError(
                f"{path}: meta/info.json promises {name} {promised:,} and the parquet files hold "
                f"{count:,}; the copy is incomplete, copy it again"
            )
    return changes


def _terminals(
    frames: _Frames,
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
        "Whether an episode's end is the task's end is not recorded: ends are read as time limits "
        "(--dataset.rewards success-at-end: each ends in success)."
    )
    return np.zeros_like(ends)


def _tasks(path: Path, folder: Path) -> list[str]:
    """What the episodes are about, in words; from tasks.jsonl or tasks.parquet."""
    lines, table = folder / "meta" / "tasks.jsonl", folder / "meta" / "tasks.parquet"
    if lines.is_file():
        rows = [line for line in _text(path, lines).splitlines() if line.strip()]
        return [str(parsed_object(path, "meta/tasks.jsonl", row).get("task", "")) for row in rows]
    if table.is_file():
        import pyarrow.parquet as parquet

        try:
            opened = parquet.ParquetFile(table)
            _require_stored(path, "meta/tasks.parquet", table, opened)
            read = opened.read(use_threads=False)
            # pandas writes the task as the index, without a name of its own.
            named = [n for n in ("task", "__index_level_0__") if n in read.column_names]
            return [str(value) for value in read.column(named[0]).to_pylist()] if named else []
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(
                f"{path}: meta/tasks.parquet cannot be read ({error}); copy it again"
            ) from error
    return []


def _extras(path: Path, folder: Path) -> dict[str, object]:
    """What the format has no place for, where our own conversion wrote it."""
    file = folder / "meta" / EXTRAS
    if not file.is_file():
        return {}
    return parsed_object(path, f"meta/{EXTRAS}", _text(path, file))
