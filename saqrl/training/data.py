"""The data of a run: read for its training, or later in the same way."""

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.datasets import (
    DatasetError,
    EnvironmentSpec,
    ReadOptions,
    Transitions,
    arrange,
    load_dataset,
    rewarded,
    selected,
)
from saqrl.datasets.naming import absolute_spec, exists
from saqrl.datasets.transitions import ROW_FIELDS
from saqrl.policy import Policy
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import read_config
from saqrl.training.settings import Data, Settings, parsed_keywords

# Folder next to the run folders, for data collected by runs without a data set.
DEMONSTRATIONS = "demonstrations"
# The SPEC of data that a run was given as arrays.
IN_MEMORY = "arrays in memory"
# The value of --env for a run that is not evaluated.
NO_ENVIRONMENT = "none"
# Maximum number of rows in a fingerprint: all rows, unless the data are larger than memory.
HASHED_ROWS = 1_000_000


def load_data(
    settings: Settings, *, dataset: str | None = None, options: ReadOptions | None = None
) -> Transitions:
    """Read the data that the settings name; `dataset` and `options`: if they have moved.

    Raises the errors of `load_dataset`.
    """
    data = settings.data
    spec = dataset or data.dataset
    if spec in (None, IN_MEMORY):
        raise ValueError("this run was trained on arrays in memory: pass its data with --dataset")
    log = load_dataset(
        spec,
        angles=data.angles,
        episodes=data.episodes,
        best=data.best,
        environment=None if data.env == NO_ENVIRONMENT else data.env,
        options=options or data.reading,
    )
    return _placed(log, settings)


def arranged(log: Transitions, settings: Settings, known: str | None = None) -> Transitions:
    """A log in memory, changed as if the settings had read it.

    `known`: the fingerprint of data that they chose before; of a log that has it they choose no
    more.
    """
    data = settings.data
    own = None if data.env == NO_ENVIRONMENT else data.env
    if known is None or fingerprint(log) != known:
        log = selected(IN_MEMORY, rewarded(log, data.reading.rewards), data.reading)
        log = arrange(log, IN_MEMORY, episodes=data.episodes, best=data.best)
    return _placed(arrange(log, IN_MEMORY, angles=data.angles, environment=own), settings)


def _placed(log: Transitions, settings: Settings) -> Transitions:
    """The log without an environment for --env none, else with its keyword arguments set."""
    if settings.data.env == NO_ENVIRONMENT or log.environment is None:
        return replace(log, environment=None)
    keywords = parsed_keywords(settings.data.env_kwargs)
    options = {**log.environment.options, **keywords}
    return replace(log, environment=EnvironmentSpec(log.environment.id, options))


def with_demonstrations(settings: Settings, folder: Path, reporter: Reporter) -> Settings:
    """The settings; without a data set, with demonstrations that the oracle of `env` makes.

    They are in `folder`, an ordinary data set that every run with the same settings reads.
    """
    from saqrl.datasets.formats.writers import save_arrays
    from saqrl.environments.oracles.collect import collect

    asked = settings.data
    if asked.dataset is not None:
        return settings
    if asked.env is None:
        raise ValueError(
            "no data given: pass --dataset, or --env to collect data in an environment"
        )
    path = folder / DEMONSTRATIONS / _demonstrations_name(settings)
    if not path.exists():
        with reporter.stage("collect", asked.demonstrations, unit="demonstrations") as update:
            arrays = collect(
                asked.env,
                style=asked.style,
                episodes=asked.demonstrations,
                seed=settings.seed,
                progress=lambda done, total: update(done, ""),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, arrays)
    return replace(settings, data=replace(asked, dataset=f"npz:{path}"))


def _demonstrations_name(settings: Settings) -> str:
    asked = settings.data
    name = f"{asked.env}-{asked.style}-{asked.demonstrations}-seed{settings.seed}.npz"
    return name.replace("/", "-")


def collected_style(settings: Settings) -> str | None:
    """The style of the demonstrations, if `with_demonstrations` collected them."""
    path = Path(str(settings.data.dataset).removeprefix("npz:"))
    own = path.parent.name == DEMONSTRATIONS and path.name == _demonstrations_name(settings)
    return settings.data.style if own else None


def data_record(log: Transitions, settings: Settings) -> dict[str, Any]:
    """The record of a run's data: path, size and SHA-256."""
    spec = settings.data.dataset
    path = None if spec in (None, IN_MEMORY) else absolute_spec(str(spec))
    return {
        "path": path,
        "steps": len(log),
        "episodes": log.num_episodes,
        "sha256": fingerprint(log),
    }


def fingerprint(log: Transitions) -> str:
    """SHA-256 of the data: of every row, or of evenly spaced rows beyond HASHED_ROWS."""
    digest = hashlib.sha256(f"{len(log)} {log.num_episodes}".encode())
    rows = np.linspace(0, len(log) - 1, min(len(log), HASHED_ROWS)).astype(np.int64)
    columns = [getattr(log, name)[rows] for name in ROW_FIELDS]
    for column in (*columns, log.episode_starts, log.action_range.low, log.action_range.high):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def require_same_data(run: Path, log: Transitions, spec: str) -> None:
    """ValueError if a run began with other data."""
    then = read_config(run).get("data")
    if then is None or then["sha256"] == fingerprint(log):
        return
    held = f"{then['steps']:,} steps of {then['episodes']:,} episodes"
    now = f"{len(log):,} steps of {log.num_episodes:,} episodes"
    raise ValueError(
        f"{spec} is not the data that {run} was started with (then {held}, now {now}; their "
        "SHA-256 differs): pass the original data with --dataset, or start a new run with "
        "another --out"
    )


def require_unchanged(runs: Iterable[tuple[Path, Settings]]) -> None:
    """ValueError if a study has unfinished runs and their data have changed since others began.

    Data are not read if all of their runs have finished, or none has begun.
    """
    studied: dict[Data, list[tuple[Path, Settings]]] = {}
    for path, settings in runs:
        studied.setdefault(settings.data, []).append((path, settings))
    for data, members in studied.items():
        if data.dataset is None or all((path / "result.json").is_file() for path, _ in members):
            continue
        begun = [path for path, _ in members if (path / "config.json").is_file()]
        records = {str(held): path for path in begun if (held := read_config(path).get("data"))}
        if not records:
            continue
        log = load_data(members[0][1])
        for path in records.values():
            require_same_data(path, log, data.dataset)


def training_spec(run: Path, settings: Settings) -> str:
    """SPEC of a run's data, from any folder."""
    return str((read_config(run).get("data") or {}).get("path") or settings.data.dataset)


def load_training_data(
    run: Path,
    settings: Settings,
    policy: Policy,
    *,
    dataset: str | None = None,
    options: ReadOptions | None = None,
    same: bool = True,
) -> Transitions:
    """The run's data; `dataset`: their new path if moved; `options`: another selection of them.

    ValueError if they are not the `same` as those of the training, or if observations or actions
    have other sizes than the run's policy.
    """
    spec = dataset or training_spec(run, settings)
    named = settings.data.dataset
    if dataset is None and named not in (None, IN_MEMORY, spec):
        with contextlib.suppress(FileNotFoundError, DatasetError):  # it was moved
            if exists(str(named)) and absolute_spec(str(named)) != spec:
                raise ValueError(
                    f"{named} also exists in this folder, but the run was trained on {spec}: "
                    "choose one with --dataset"
                )
    try:
        data = load_data(settings, dataset=spec, options=options)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error}: if the run's data were moved, pass their new path with --dataset"
        ) from error
    ours = policy.observation_size, len(policy.action_range.low)
    theirs = data.observations.shape[1], data.actions.shape[1]
    if ours != theirs:
        raise ValueError(
            f"the run's data have {ours[0]} observation columns and {ours[1]} action "
            f"columns, and {spec} has {theirs[0]} and {theirs[1]}: pass the data that the "
            "run was trained on"
        )
    if same and options is None:
        require_same_data(run, data, spec)
    return data
