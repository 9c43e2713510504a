"""Files become `Transitions`: the one type that leaves this room.

A format is one module in `formats` and one line in `saqrl.registry` (or an entry point of another
package, in the group saqrl.formats). Its module states what it reads (SUMMARY),
which file names it claims (SUFFIXES), `recognises(path)` by content, and `read(path)`, which hands
raw arrays to `assembly.assemble`, where every rule about the data lives. A reader imports its
library inside its functions; the room as a whole imports NumPy, never JAX.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from saqrl.datasets.errors import DatasetError, counted, listing, nearest
from saqrl.datasets.mixture import mixed, parts_of
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.selection import rewarded, selected
from saqrl.datasets.source import existing_file
from saqrl.datasets.transitions import EnvironmentSpec, Transitions
from saqrl.registry import FORMATS

__all__ = [
    "FORMATS",
    "DatasetError",
    "EnvironmentSpec",
    "ReadOptions",
    "Reader",
    "Transitions",
    "arrange",
    "load_dataset",
]


class Reader(Protocol):
    """What the module of a format offers."""

    SUMMARY: str
    SUFFIXES: tuple[str, ...]
    OPTIONS: tuple[str, ...]
    """Fields of ReadOptions that `read` looks at; `environment` where it changes the rewards."""

    def recognises(self, path: Path) -> bool: ...

    def read(
        self, path: Path, options: ReadOptions = ..., environment: str | None = ...
    ) -> Transitions: ...


def load_dataset(
    spec: str,
    *,
    angles: Iterable[int] = (),
    episodes: int | None = None,
    environment: str | None = None,
    options: ReadOptions = DEFAULT,
) -> Transitions:
    """Read `spec`: 'format:path', a path whose format is recognised, or a mixture 'A + 2*B'.

    angles: observation columns in radians, which reach the networks as cosine and sine.
    episodes: keep the first so many. environment: a Gymnasium id in place of the file's own; for
    OGBench's files it names the task whose rewards are made. options: see `ReadOptions`.
    Raises FileNotFoundError, or DatasetError (a ValueError) for an unknown format, a damaged or
    unfit file, an angle column that does not exist, more episodes than there are.
    """
    parts = parts_of(spec)
    read = [_read_part(part, environment, options) for _, part in parts]
    plain = len(parts) == 1 and parts[0][0] == 1
    transitions = read[0] if plain else mixed(spec, read, [weight for weight, _ in parts])
    return arrange(transitions, spec, angles=angles, episodes=episodes)


def arrange(
    log: Transitions,
    spec: str,
    *,
    angles: Iterable[int] = (),
    episodes: int | None = None,
    environment: str | None = None,
) -> Transitions:
    """A log with its angles named, cut to its first episodes, of this environment; see above."""
    columns = tuple(angles) or log.angles
    log = replace(log, angles=_angle_columns(spec, columns, log))
    if environment is not None:
        log = replace(log, environment=EnvironmentSpec(environment))
    return log if episodes is None else _first_episodes(spec, log, episodes)


def _read_part(spec: str, environment: str | None, options: ReadOptions) -> Transitions:
    format_name, path = resolve_spec(spec)
    reader = reader_of(format_name)
    options.require_honoured(spec, format_name, reader.OPTIONS)
    transitions = reader.read(path, options, environment)
    transitions = selected(spec, rewarded(transitions, options.rewards), options)
    own = transitions.environment
    answered = own is not None and (own.id == environment or "environment" in reader.OPTIONS)
    if environment is not None and not answered:
        transitions = replace(transitions, environment=EnvironmentSpec(environment))
    return transitions


def reader_of(format_name: str) -> Reader:
    """The module of a format, imported now; DatasetError with the nearest names if unknown."""
    if format_name not in FORMATS:
        raise DatasetError(
            f"unknown dataset format {format_name}{nearest(format_name, FORMATS)}; "
            f"formats: {listing(FORMATS)}"
        )
    return cast(Reader, FORMATS.load(format_name))


def resolve_spec(spec: str) -> tuple[str, Path]:
    """(format, path) of a SPEC; a file whose own name holds a colon is found as it is."""
    prefix, colon, rest = spec.partition(":")
    # One letter before a colon is a drive, and a separator before it makes it part of a path.
    named = colon and len(prefix) > 1 and not {"/", "\\"} & set(prefix)
    if named and (prefix in FORMATS or not Path(spec).exists()):
        reader_of(prefix)
        if not rest:
            raise DatasetError(f"{spec}: no path after the format; write {prefix}:PATH")
        return prefix, Path(rest)
    if not spec:
        raise DatasetError("no dataset named; write format:PATH or a path")
    path = Path(spec)
    found = path.expanduser()
    return _recognised(path, found if found.is_dir() else existing_file(path)), path


def _recognised(path: Path, file: Path) -> str:
    """By suffix where one format claims it, else by content."""
    readers, broken = {}, ""
    for name in FORMATS:
        try:
            readers[name] = reader_of(name)
        except (ImportError, ValueError) as error:  # of another package: the others still work
            broken += f"; {error}"
    claimed = [name for name, reader in readers.items() if file.suffix.lower() in reader.SUFFIXES]
    for name in readers if file.is_dir() else claimed or readers:
        if readers[name].recognises(file):
            return name
    existing_file(path)
    if claimed:  # the most general format of the family says what is missing
        return claimed[-1]
    offered = "; ".join(f"{name}: {reader.SUMMARY}" for name, reader in readers.items())
    raise DatasetError(f"{path}: format not recognised; say FORMAT:{path} ({offered}){broken}")


def _angle_columns(spec: str, angles: Iterable[int], transitions: Transitions) -> tuple[int, ...]:
    columns, width = tuple(angles), transitions.observations.shape[1]
    for column in columns:
        if not 0 <= column < width:
            raise DatasetError(
                f"{spec}: there is no angle column {column}: observations have {width} columns, "
                f"0 to {width - 1}"
            )
        if columns.count(column) > 1:
            raise DatasetError(f"{spec}: angle column {column} is named twice; name it once")
    return columns


def _first_episodes(spec: str, transitions: Transitions, episodes: int) -> Transitions:
    held = transitions.num_episodes
    if not 1 <= episodes <= held:
        raise DatasetError(
            f"{spec}: {episodes:,} episodes asked for and the file has {counted(held, 'episode')}; "
            f"choose 1 to {held}"
        )
    chosen = transitions.select_episodes(np.arange(episodes))
    return replace(chosen, provenance={**transitions.provenance, "episodes": episodes})
