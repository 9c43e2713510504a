"""Our own folder of columns, read in place: for logs larger than memory.

One .npy file per column, one row per step, and a JSON record. A next observation is stored only
where it is not the observation of the following row: at the ends of episodes, and wherever a log
says otherwise.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Float32, Int64

from saqrl.datasets.assembly import LARGEST
from saqrl.datasets.errors import DatasetError, counted
from saqrl.datasets.extras import NAME, extras_of, with_extras
from saqrl.datasets.mixture import require_alike
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.source import existing_file, file_record, parsed_object, plain, text_of
from saqrl.datasets.statistics import BLOCK_ROWS, blocks, release
from saqrl.datasets.transitions import Transitions, other_successors

SUMMARY = "memory-mapped columns, a folder written by saqrl convert --format mapped"
SUFFIXES: tuple[str, ...] = ()
OPTIONS: tuple[str, ...] = ()

RECORD = "meta.json"
FORMAT = "saqrl-mapped"
VERSION = 1
# Type and number of dimensions of each column; the last three have no row a step.
COLUMNS: Mapping[str, tuple[str, int]] = {
    "observations": ("<f4", 2),
    "actions": ("<f4", 2),
    "rewards": ("<f4", 1),
    "terminated": ("|b1", 1),
    "episode_starts": ("<i8", 1),
    "successor_rows": ("<i8", 1),
    "successors": ("<f4", 2),
}


class Successors:
    """The next observation of each row, as an array that is made only where it is indexed.

    That of the following row, but for `rows` (ascending), which have theirs in `values`.
    """

    def __init__(
        self,
        observations: Float32[np.ndarray, "n obs"],
        rows: Int64[np.ndarray, " listed"],
        values: Float32[np.ndarray, "listed obs"],
    ) -> None:
        self.observations, self.rows, self.values = observations, rows, values
        self.shape, self.dtype, self.ndim = observations.shape, observations.dtype, 2
        self.nbytes = observations.nbytes
        self.base = observations.base  # what `release` lets go of

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        rows, *rest = chosen if isinstance(chosen, tuple) else (chosen,)
        if isinstance(rows, slice):
            index = np.arange(*rows.indices(len(self)))
        else:
            index = np.asarray(rows)
            index = np.flatnonzero(index) if index.dtype == bool else self._counted(index)
        table = self._table(np.atleast_1d(index)).reshape(*index.shape, self.shape[1])
        return table[(..., *rest)] if rest else table

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "next observations of a mapped log are computed on access: copy=False is not "
                "possible"
            )
        return self[:].astype(dtype or self.dtype, copy=False)

    def _counted(self, index: Int64[np.ndarray, "*chosen"]) -> Int64[np.ndarray, "*chosen"]:
        """From the beginning, where the end was counted from; IndexError beyond either.

        Iterating over an array ends with that error.
        """
        if ((index < -len(self)) | (index >= len(self))).any():
            raise IndexError(f"row {index} of {len(self)} next observations")
        return index % len(self)

    def _table(self, index: Int64[np.ndarray, " chosen"]) -> Float32[np.ndarray, "chosen obs"]:
        table = np.asarray(self.observations[np.minimum(index + 1, len(self) - 1)])
        place = np.minimum(np.searchsorted(self.rows, index), len(self.rows) - 1)
        listed = self.rows[place] == index
        table[listed] = self.values[place[listed]]
        return table


def recognises(path: Path) -> bool:
    """Whether this is a folder with our record in it."""
    return parsed_object(path, RECORD, text_of(path, path, RECORD)).get("format") == FORMAT


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Map `path`; every number is looked at once, a block at a time, and none stays in memory.

    Raises FileNotFoundError, or DatasetError for whatever does not fit together.
    """
    folder = path.expanduser()
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(
            f"{path}: not a folder written by saqrl convert --format mapped (no {RECORD} in it)"
        )
    record = _record(path, folder)
    columns = {name: _mapped(path, folder, name) for name in COLUMNS}
    _require_shapes(path, columns)
    _require_rows(path, columns)
    extras = cast(Mapping[str, object], record[NAME])
    action_range = _range(path, extras, columns["actions"].shape[1])
    for name in ("observations", "actions", "rewards", "successors"):
        _require_finite(path, name, columns[name])
    _require_inside(path, columns["actions"], action_range)
    observations = columns["observations"]
    successors = Successors(observations, columns["successor_rows"], columns["successors"])
    sizes = {name: (folder / f"{name}.npy").stat().st_size for name in COLUMNS}
    recorded = record.get("provenance")
    said = {
        name: [str(line) for line in found] if isinstance(found, list) else []
        for name in ("notes", "warnings")
        for found in [recorded.get(name) if isinstance(recorded, dict) else None]
    }
    transitions = Transitions(
        observations=observations,
        actions=columns["actions"],
        rewards=columns["rewards"],
        next_observations=cast(np.ndarray, successors),
        terminated=columns["terminated"],
        episode_starts=np.array(columns["episode_starts"]),
        action_range=action_range,
        has_rewards=extras.get("has_rewards") is not False,
        provenance={
            "format": "mapped",
            **file_record(folder / RECORD),
            "path": str(path),
            "bytes": sum(sizes.values()),
            "recorded": recorded,
            "action_range": "declared",
            **said,
        },
    )
    return with_extras(str(path), transitions, extras)


def write(path: Path, transitions: Transitions) -> None:
    """Store one log in a new folder."""
    write_each(path, [transitions])


def write_each(folder: Path, logs: Iterable[Transitions]) -> None:
    """Store logs one after another in a new folder, each in memory only while it is written.

    The range of the actions is the union of theirs, the environment the first that is named.
    DatasetError where they do not fit together, or there is none.
    """
    folder.mkdir()
    first: Transitions | None = None
    rows, sources = 0, []
    with ExitStack() as opened:
        files = {
            name: opened.enter_context((folder / f"{name}.npy").open("w+b")) for name in COLUMNS
        }
        for number, log in enumerate(logs, 1):
            if first is None:
                first = log
                widths = {"observations": log.observations.shape[1:]}
                widths |= {"actions": log.actions.shape[1:], "successors": widths["observations"]}
                lengths = dict.fromkeys(COLUMNS, 0)
                heads = {name: _head(files[name], name, 0, widths) for name in COLUMNS}
            require_alike("the logs to write", first, log, number)
            first = replace(
                first,
                action_range=first.action_range.union(log.action_range),
                environment=first.environment or log.environment,
                control_rate=first.control_rate if first.control_rate == log.control_rate else None,
            )
            for name, table in _columns_of(log, rows):
                lengths[name] += len(table)
                files[name].write(np.ascontiguousarray(table, COLUMNS[name][0]).data)
            rows += len(log)
            sources.append(log.provenance)
        if first is None:
            raise DatasetError("there is no log to write")
        for name, file in files.items():
            file.seek(0)
            if _head(file, name, lengths[name], widths) != heads[name]:
                raise RuntimeError("the header of a .npy file has grown")  # NumPy leaves it room
    record = {
        "format": FORMAT,
        "version": VERSION,
        NAME: extras_of(first),
        "provenance": sources[0] if len(sources) == 1 else {"parts": sources},
    }
    (folder / RECORD).write_text(json.dumps(record, default=str))


def _columns_of(log: Transitions, offset: int) -> Iterable[tuple[str, np.ndarray]]:
    """(column, rows to append), block by block; `offset` rows of other logs come before."""
    last = log.last_rows
    yield "episode_starts", log.episode_starts + offset
    for rows, differs in other_successors(log):
        for name in ("observations", "actions", "rewards", "terminated"):
            yield name, getattr(log, name)[rows]
        listed = np.flatnonzero(differs | last[rows]) + rows.start
        yield "successor_rows", listed + offset
        yield "successors", log.next_observations[listed]
        for name in ("observations", "actions", "rewards", "terminated"):
            release(getattr(log, name))


def _head(file: IO[bytes], name: str, rows: int, widths: Mapping[str, tuple[int, ...]]) -> int:
    """Write the header of a .npy file; where it ends."""
    described = {"descr": COLUMNS[name][0], "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, described | {"shape": (rows, *widths.get(name, ()))})
    return file.tell()


def _broken(path: Path, text: str) -> DatasetError:
    return DatasetError(f"{path}: {text}; convert the original file again")


def _record(path: Path, folder: Path) -> dict[str, object]:
    record = parsed_object(path, RECORD, text_of(path, folder, RECORD))
    if record.get("format") != FORMAT:
        raise _broken(path, f"{RECORD} does not say format {FORMAT}")
    if record.get("version") != VERSION:
        raise _broken(
            path,
            (
                f"its format has version {record.get('version')}, and this saqrl reads version "
                f"{VERSION}"
            ),
        )
    if not isinstance(record.get(NAME), dict):
        raise _broken(path, f"{RECORD} has no object {NAME}")
    return record


def _mapped(path: Path, folder: Path, name: str) -> np.ndarray:
    file = folder / f"{name}.npy"
    if not file.is_file():
        raise _broken(path, f"the column {file.name} is missing")
    try:
        column = np.lib.format.open_memmap(existing_file(file), mode="r")
    except Exception as error:  # a damaged header raises whatever its bytes happen to mean
        raise _broken(path, f"{file.name} cannot be mapped ({plain(error)})") from error
    kind, dimensions = COLUMNS[name]
    if column.dtype != np.dtype(kind):
        raise _broken(path, f"{file.name} holds {column.dtype}, not {np.dtype(kind)}")
    if column.ndim != dimensions or not column.flags.c_contiguous:
        raise _broken(
            path,
            f"{file.name} has shape {column.shape}; expected {dimensions} dimensions in C order",
        )
    stored = file.stat().st_size - column.offset
    if stored != column.nbytes:
        raise _broken(
            path, f"{file.name} holds {stored:,} bytes and its header says {column.nbytes:,}"
        )
    return column


def _require_shapes(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    rows = len(columns["observations"])
    if not rows:
        raise _broken(path, "observations.npy has no rows")
    pairs = [("observations", name) for name in ("actions", "rewards", "terminated")]
    for one, other in (*pairs, ("successor_rows", "successors")):
        ours, theirs = len(columns[one]), len(columns[other])
        if ours != theirs:
            raise _broken(
                path, f"{other}.npy has {counted(theirs, 'row')} and {one}.npy has {ours:,}"
            )
    observed, following = columns["observations"].shape[1], columns["successors"].shape[1]
    if observed != following:
        raise _broken(
            path, f"successors.npy has {following} columns and observations.npy has {observed}"
        )
    for name in ("observations", "actions"):
        if not columns[name].shape[1]:
            raise _broken(path, f"{name}.npy has no columns")


def _require_rows(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Row numbers ascend within the log; episodes begin at 0; their last rows have successors."""
    rows, starts = len(columns["observations"]), np.asarray(columns["episode_starts"])
    if not len(starts) or starts[0] != 0:
        raise _broken(path, "episode_starts.npy does not begin with row 0")
    for name in ("episode_starts", "successor_rows"):
        listed = np.asarray(columns[name])
        ascending = (listed[1:] > listed[:-1]).all()
        if not len(listed) or listed[0] < 0 or listed[-1] >= rows or not ascending:
            raise _broken(path, f"{name}.npy must hold ascending rows from 0 to {rows - 1}")
    ends = np.append(starts[1:], rows) - 1
    listed = columns["successor_rows"]
    place = np.minimum(np.searchsorted(listed, ends), len(listed) - 1)
    if (listed[place] != ends).any():
        row = int(ends[listed[place] != ends][0])
        raise _broken(
            path, f"successors.npy has no next observation of row {row}, where an episode ends"
        )
    for block in blocks(columns["terminated"]):
        if (block.view(np.uint8) > 1).any():
            raise _broken(path, "terminated.npy holds bytes that are not 0 or 1")


def _range(path: Path, extras: Mapping[str, object], width: int) -> ActionRange:
    bounds = []
    for name in ("action_low", "action_high"):
        try:
            bound = np.asarray(extras.get(name), np.float32)
        except (TypeError, ValueError, OverflowError):
            bound = np.zeros(0, np.float32)
        if bound.shape != (width,) or not np.isfinite(bound).all():
            raise _broken(path, f"{name} in {RECORD} is not {counted(width, 'finite number')}")
        bounds.append(bound)
    return ActionRange(*bounds)


def _require_finite(path: Path, name: str, column: np.ndarray) -> None:
    for row, block in _numbered_blocks(column):
        if not (np.abs(block) <= LARGEST).all():
            place = tuple(int(i) for i in np.argwhere(~(np.abs(block) <= LARGEST))[0])
            where = f"row {row + place[0]}" + "".join(f", column {i}" for i in place[1:])
            raise DatasetError(
                f"{path}: {name}.npy {where} is {block[place]}; remove the episode that holds it, "
                "or repair the value"
            )


def _require_inside(path: Path, actions: np.ndarray, action_range: ActionRange) -> None:
    for row, block in _numbered_blocks(actions):
        outside = (block < action_range.low) | (block > action_range.high)
        if outside.any():
            first, column = (int(i) for i in np.argwhere(outside)[0])
            raise _broken(
                path,
                f"actions.npy row {row + first}, column {column} is {block[first, column]:g}, "
                f"outside the recorded range [{action_range.low[column]:g}, "
                f"{action_range.high[column]:g}]",
            )


def _numbered_blocks(column: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    return zip(itertools.count(0, BLOCK_ROWS), blocks(column))
