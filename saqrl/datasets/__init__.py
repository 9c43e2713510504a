"""Files become `Transitions`: the one type that leaves this room, made by `load_dataset`.

A format is one module and one line in `saqrl.registry` (or an entry point of another package, in
the group saqrl.formats); `formats` states what it offers. A reader hands raw arrays to
`assembly.assemble`, where every rule about the data lives. The room imports NumPy, never JAX.
"""

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from saqrl.datasets.budget import one_read
from saqrl.datasets.errors import DatasetError, counted, listing
from saqrl.datasets.formats import Reader, reader_of, resolve_spec
from saqrl.datasets.mixture import mixed, parts_of
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.selection import best_episodes, rewarded, selected
from saqrl.datasets.source import out_of_memory
from saqrl.datasets.transitions import EnvironmentSpec, Transitions
from saqrl.environments.permitted import may_be_named, permitted
from saqrl.environments.rates import control_rate_of
from saqrl.registry import FORMATS

__all__ = [
    "FORMATS",
    "DatasetError",
    "EnvironmentSpec",
    "ReadOptions",
    "Reader",
    "Transitions",
    "arrange",
    "best_episodes",
    "load_dataset",
    "reader_of",
    "resolve_spec",
    "rewarded",
    "selected",
]


def load_dataset(
    spec: str | os.PathLike[str],
    *,
    angles: Iterable[int] = (),
    episodes: int | None = None,
    best: float = 1.0,
    environment: str | None = None,
    options: ReadOptions = DEFAULT,
) -> Transitions:
    """Read `spec`: 'format:path', a path whose format is recognised, or a mixture 'A + 2*B'.

    angles: observation columns in radians, which reach the networks as cosine and sine.
    episodes: keep the first so many. best: of these, keep the share with the highest returns, and
    what is equal to the last of them. environment: a Gymnasium id in place of the file's own; for
    OGBench's files it names the task whose rewards are made. options: see `ReadOptions`.
    Raises FileNotFoundError, or DatasetError (a ValueError) for an unknown format, a damaged or
    unfit file, an angle column that does not exist, more episodes than there are.
    """
    spec = os.fspath(spec)
    parts = parts_of(spec)
    try:
        read = [_read_part(part, environment, options) for _, part in parts]
        plain = len(parts) == 1 and parts[0][0] == 1
        transitions = read[0] if plain else mixed(spec, read, [weight for weight, _ in parts])
        return arrange(transitions, spec, angles=angles, episodes=episodes, best=best)
    except MemoryError as error:
        raise out_of_memory(spec) from error


def arrange(
    log: Transitions,
    spec: str,
    *,
    angles: Iterable[int] = (),
    episodes: int | None = None,
    best: float = 1.0,
    environment: str | None = None,
) -> Transitions:
    """A log with its angles named, cut to its first and best episodes; see above."""
    columns = tuple(angles) or log.angles
    log = replace(log, angles=_angle_columns(spec, columns, log))
    if environment is not None:
        log = replace(log, environment=EnvironmentSpec(environment))
    if log.control_rate is None and log.environment is not None:
        rate = control_rate_of(log.environment.id, log.environment.options)
        log = replace(log, control_rate=rate)
    if episodes is not None:
        log = _first_episodes(spec, log, episodes)
    return best_episodes(spec, log, best)


def _read_part(spec: str, environment: str | None, options: ReadOptions) -> Transitions:
    format_name, path = resolve_spec(spec)
    reader = reader_of(format_name)
    options.require_honoured(spec, format_name, reader.OPTIONS)
    with one_read(options.max_gib):
        transitions = reader.read(path, options, environment)
    transitions = selected(spec, rewarded(transitions, options.rewards), options)
    own = transitions.environment
    if own is not None:
        transitions = _with_permitted(transitions, own, asked=environment)
        own = transitions.environment
    answered = own is not None and (own.id == environment or "environment" in reader.OPTIONS)
    if environment is not None and not answered:
        transitions = replace(transitions, environment=EnvironmentSpec(environment))
    return transitions


def _with_permitted(log: Transitions, named: EnvironmentSpec, asked: str | None) -> Transitions:
    """The log in the environment that its file names, as far as a file may have a say in it."""
    if named.id != asked and not may_be_named(named.id):
        return replace(log, environment=None).noted(
            f"The file names the environment {named.id}. A data file may not import a "
            f"module, so it is ignored; pass --env {named.id} to use it."
        )
    options, left = permitted(named.id, named.options)
    log = replace(log, environment=EnvironmentSpec(named.id, options))
    if not left:
        return log
    return log.noted(
        f"Ignored options of {named.id}, which a data file may not set, or not to this "
        f"value: {listing(left)}; set them with --env-kwargs."
    )


def _angle_columns(spec: str, angles: Iterable[int], transitions: Transitions) -> tuple[int, ...]:
    columns, width = tuple(angles), transitions.observations.shape[1]
    for column in columns:
        if not 0 <= column < width:
            raise DatasetError(
                f"{spec}: angle column {column} does not exist: observations have {width} "
                f"columns, 0 to {width - 1}"
            )
        if columns.count(column) > 1:
            raise DatasetError(f"{spec}: angle column {column} is given twice; give it once")
    return columns


def _first_episodes(spec: str, transitions: Transitions, episodes: int) -> Transitions:
    held = transitions.num_episodes
    if not 1 <= episodes <= held:
        raise DatasetError(
            f"{spec}: {episodes:,} episodes requested and the file has "
            f"{counted(held, 'episode')}; request 1 to {held}"
        )
    chosen = transitions.select_episodes(np.arange(episodes))
    return replace(chosen, provenance={**transitions.provenance, "episodes": episodes})
