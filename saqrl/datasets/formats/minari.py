"""Minari (Younis et al. 2024): a folder with data/main_data.hdf5 and data/metadata.json.

Both are read directly, so that the `minari` package is needed only to download. An episode holds
one observation more than actions: the last is the true successor of the last action. Dictionaries
become one vector, keys in alphabetical order at every level, as Gymnasium flattens them.
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saqrl.datasets.assembly import assemble
from saqrl.datasets.errors import DatasetError, counted, listing, nearest, printable
from saqrl.datasets.extras import NAME, bounds_of, extras_of
from saqrl.datasets.formats.episodes import (
    Fields,
    Layout,
    fields_of,
    flattened,
    joined,
    parts_of,
    require_members,
)
from saqrl.datasets.formats.hdf5 import local_group, names_of, open_hdf5, store
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import file_record, parsed_object, text_of
from saqrl.datasets.transitions import EnvironmentSpec, Transitions, other_successors
from saqrl.installation import install

if TYPE_CHECKING:
    import h5py

SUMMARY = "Minari data set: an id such as D4RL/door/human-v2, or its folder"
SUFFIXES = (".hdf5",)
OPTIONS = ("keys",)

DATASET_ID = re.compile(r"[\w.-]+(/[\w.-]+)*-v\d+")
MAIN_FILE, METADATA = "main_data.hdf5", "metadata.json"


def recognises(path: Path) -> bool:
    """Whether this is a data set's folder, its data folder, or its main file."""
    return _data_folder(path) is not None


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read a folder, or the id of a data set below MINARI_DATASETS_PATH; else download it.

    Raises FileNotFoundError, ImportError where a download needs the package, or DatasetError.
    """
    folder = _data_folder(path.expanduser()) or _data_folder(datasets_folder() / path)
    if folder is None:
        folder = _downloaded(path)
    metadata = parsed_object(path, METADATA, text_of(path, folder, METADATA))
    main = folder / MAIN_FILE
    if not main.is_file():
        raise DatasetError(
            f"{path}: {main} is missing (data format {metadata.get('data_format')}); only "
            "Minari's hdf5 format is read: convert it with minari, or download it again"
        )
    bounds = _bounds(path, metadata)
    episodes: dict[str, Fields] = {}
    layouts: list[Layout] = []
    with open_hdf5(main) as file:
        names = [name for name in names_of(main, file) if re.fullmatch(r"episode_\d{1,9}", name)]
        _check_episodes(path, names, metadata)
        for name in sorted(names, key=lambda name: int(name[8:])):
            episodes[name], layout = _episode(main, name, file, options.keys)
            if layouts and layout != layouts[0]:
                raise DatasetError(
                    f"{main}: {name} has observations {_described(layout)} and the first "
                    f"episode has {_described(layouts[0])}; every episode needs the same"
                )
            layouts.append(layout)
    arrays, last = joined(main, episodes)
    # An episode that was cut by its recorder ends as at a time limit.
    cut = last & (arrays["terminals"] == 0) & (arrays["timeouts"] == 0)
    arrays["timeouts"] = np.where(cut, 1, arrays["timeouts"])
    named = layouts[0] if layouts[0][0][0] else ()
    extras = metadata.get(NAME)
    extras = extras if isinstance(extras, dict) else {}
    if extras.get("has_rewards") is False:
        arrays.pop("rewards", None)
    return assemble(
        arrays | (bounds_of(str(path), extras) or bounds),
        source=str(path),
        environment=_environment(path, metadata, [key for key, _ in named], options),
        provenance=_record(path, main, metadata),
        notes=[f"Observations are {listing((k for k, _ in named), limit=20)}."] if named else [],
        keys={"terminals": "terminations", "timeouts": "truncations"},
        observation_keys=named,
        extras=extras,
    )


def datasets_folder() -> Path:
    """Where Minari keeps its data sets."""
    named = os.environ.get("MINARI_DATASETS_PATH")
    return Path(named) if named else Path("~/.minari/datasets").expanduser()


def _data_folder(path: Path) -> Path | None:
    if path.name == MAIN_FILE and path.is_file():
        path = path.parent
    for folder in (path / "data", path):
        if (folder / METADATA).is_file() or (folder / MAIN_FILE).is_file():
            return folder
    return None


def _downloaded(path: Path) -> Path:
    name, folder = path.as_posix(), datasets_folder()
    if path.exists():
        raise DatasetError(
            f"{path}: no data/{MAIN_FILE} and data/{METADATA} in it; give the folder of one "
            "data set, or its id"
        )
    local = [
        found.parent.parent.relative_to(folder).as_posix()
        for found in folder.glob(f"**/data/{METADATA}")
    ]
    if path.is_absolute() or not DATASET_ID.fullmatch(name):
        raise FileNotFoundError(printable(f"{path}: no such Minari data set{nearest(name, local)}"))
    absent = f"{name}: not found in {folder} (MINARI_DATASETS_PATH){nearest(name, local)}"
    try:
        import minari
    except ImportError as error:
        raise ImportError(
            f"{absent}, and downloading it needs the package minari, which is not installed: "
            f"{install('minari')}"
        ) from error
    try:
        minari.download_dataset(name)
    except Exception as error:  # its storage back ends each have their own
        raise DatasetError(
            f"{absent}, and downloading it failed ({error}); give the path of its folder"
        ) from error
    found = _data_folder(folder / path)
    if found is None:
        raise DatasetError(f"{absent}, and its download holds no {METADATA}")
    return found


def _check_episodes(path: Path, names: list[str], metadata: dict[str, object]) -> None:
    if not names:
        raise DatasetError(
            f"{path}: {MAIN_FILE} holds no episode_0, episode_1, ...; copy the data set again"
        )
    promised = metadata.get("total_episodes")
    if isinstance(promised, int) and promised != len(names):
        absent = [e for e in range(min(promised, 100_000)) if f"episode_{e}" not in names]
        which = f" (episode_{absent[0]} is missing)" if absent else ""
        raise DatasetError(
            f"{path}: {METADATA} promises {promised:,} episodes and {MAIN_FILE} holds "
            f"{len(names):,}{which}; if you deleted episodes, correct total_episodes there; "
            "if not, copy the data set again"
        )


def _episode(
    main: Path, name: str, file: "h5py.File", asked: tuple[str, ...]
) -> tuple[Fields, Layout]:
    """Fields of one episode, one row per step, and the layout of its observations."""
    group = local_group(main, name, file)
    keys = {"actions": "actions", "terminals": "terminations", "timeouts": "truncations"}
    require_members(main, name, group, "observations", *keys.values(), hint="copy it again")
    if "rewards" in names_of(main, group):
        keys["rewards"] = "rewards"
    episode = fields_of(main, name, group, keys)
    place = f"{name}/observations"
    table, layout = flattened(main, place, parts_of(main, place, group), asked)
    steps = len(episode["actions"])
    if len(table) != steps + 1:
        raise DatasetError(
            f"{main}: {name}/observations has {len(table):,} rows and its actions {steps:,}; "
            "expected one row more, the observation after the last action; copy the data "
            "set again"
        )
    flags = {field: episode[field].ravel() for field in ("terminals", "timeouts")}
    return {**episode, **flags, "observations": table[:-1], "next_observations": table[1:]}, layout


def _described(layout: Layout) -> str:
    return listing(f"{key or 'a vector'} ({width})" for key, width in layout)


def _bounds(path: Path, metadata: dict[str, object]) -> dict[str, np.ndarray]:
    """The action range that the metadata declare, where they declare a Box.

    DatasetError where they declare another space.
    """
    try:
        space = json.loads(str(metadata.get("action_space")))
        kind = space.get("type", "Box") if isinstance(space, dict) else "Box"
        if kind != "Box":
            shown = f"{kind}({space['n']})" if isinstance(space.get("n"), int) else kind
            raise DatasetError(
                f"{path}: action_space is {shown}; only continuous actions (a Box) are "
                "supported: use a library for discrete actions"
            )
        low, high = (np.asarray(space[end], np.float64).ravel() for end in ("low", "high"))
    except DatasetError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return {"action_low": low, "action_high": high}


def _environment(
    path: Path, metadata: dict[str, object], keys: list[str], options: ReadOptions
) -> EnvironmentSpec | None:
    """For evaluation the metadata may name another environment than the one that made the data."""
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if not text:
        return None
    spec = parsed_object(path, f"env_spec in {METADATA}", text)
    if not isinstance(spec.get("id"), str):
        raise DatasetError(f"{path}: env_spec in {METADATA} has no id; copy it again")
    keywords = spec.get("kwargs")
    chosen = {"observation_keys": keys} if options.keys else {}
    limit = spec.get("max_episode_steps")
    horizon = {"max_episode_steps": limit} if isinstance(limit, int) else {}
    return EnvironmentSpec(
        str(spec["id"]), {**(keywords if isinstance(keywords, dict) else {}), **horizon, **chosen}
    )


def _record(path: Path, main: Path, metadata: dict[str, object]) -> dict[str, object]:
    kept = ("dataset_id", "minari_version", "algorithm_name", "author", "code_permalink")
    recorded = {key: metadata[key] for key in kept if key in metadata}
    return {"format": "minari", **file_record(main), "path": str(path), "recorded": recorded}


def write(path: Path, transitions: Transitions) -> None:
    """Write the folder of a data set; DatasetError where a successor is no next observation."""
    import h5py

    _require_continuity(transitions)
    folder = path / "data"
    folder.mkdir(parents=True)
    with h5py.File(folder / MAIN_FILE, "w") as file:
        for episode, rows in enumerate(transitions.episode_rows):
            group = file.create_group(f"episode_{episode}")
            group.attrs["id"] = episode
            group.attrs["total_steps"] = rows.stop - rows.start
            final = transitions.next_observations[rows.stop - 1 : rows.stop]
            store(group, "observations", np.concatenate([transitions.observations[rows], final]))
            store(group, "actions", transitions.actions[rows])
            store(group, "rewards", transitions.rewards[rows])
            terminations = transitions.terminated[rows]
            truncations = np.zeros_like(terminations)
            truncations[-1] = not terminations[-1]
            store(group, "terminations", terminations)
            store(group, "truncations", truncations)
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
    last = transitions.last_rows
    rows_lost = sum(
        int((differs & ~last[rows]).sum()) for rows, differs in other_successors(transitions)
    )
    if rows_lost:
        raise DatasetError(
            "Minari stores no separate next observations, and in "
            f"{counted(rows_lost, 'row')} here the next observation is not that of the next "
            "row; convert to npz, d4rl, robomimic or lerobot, which store both"
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
