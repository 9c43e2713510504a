"""`Transitions` -> the files of other tools, so that reading them gives the same log bit for bit.

Everything is written aside and renamed when it is whole; nothing is ever overwritten.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from saqrl.datasets.errors import DatasetError
from saqrl.datasets.formats import Writer, reader_of
from saqrl.datasets.formats.mapped import write_each
from saqrl.datasets.statistics import blocks
from saqrl.datasets.transitions import ROW_FIELDS, Transitions
from saqrl.registry import FORMATS, closest


def convert(transitions: Transitions, out: Path, format_name: str) -> None:
    """Write `transitions` to the new file or folder `out`.

    Raises DatasetError: the format is unknown or cannot hold this log, or `out` exists.
    """
    writer = reader_of(format_name) if format_name in FORMATS else None
    if not isinstance(writer, Writer):
        others = [name for name in FORMATS if name != format_name]
        raise DatasetError(f"cannot write {format_name!r}; {closest(format_name, others)}")
    with _written_aside(out.expanduser()) as aside:
        writer.write(aside, transitions)


def convert_each(logs: Iterable[Transitions], out: Path) -> None:
    """Write logs one after another as mapped columns in the new folder `out`.

    Each of them is asked for when the one before it is written.
    Raises DatasetError: they do not fit together, or `out` exists.
    """
    with _written_aside(out.expanduser()) as aside:
        write_each(aside, logs)


def check_destination(path: Path, flag: str = "--out") -> None:
    """Refuse an npz that cannot or must not be written, before any work is done for it.

    `flag` is what named it.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the output is an npz file; choose a name that ends in .npz")
    if path.exists():
        raise FileExistsError(
            f"{path} exists and is not overwritten: remove it, or choose another {flag}"
        )
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
    for name in (*ROW_FIELDS, "episode_starts"):
        first, second = getattr(one, name), getattr(other, name)
        if first.shape != second.shape or not _same_bits(first, second):
            return name
    for end in ("low", "high"):
        if not _same_bits(getattr(one.action_range, end), getattr(other.action_range, end)):
            return f"action_{end}"
    words = ("action_names", "observation_names", "tasks")
    for name in ("has_rewards", "observation_keys", "environment", "control_rate", *words):
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
            control_rate=log.control_rate,
            action_names=log.action_names,
            observation_names=log.observation_names,
            tasks=log.tasks,
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
        raise DatasetError(
            f"{path} exists and is not overwritten; choose another name, or remove it"
        )
