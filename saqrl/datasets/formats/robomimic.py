"""robomimic's low-dimensional HDF5 (Mandlekar et al. 2021, arXiv 2108.03298): data/demo_N/...

An observation is the chosen keys side by side, by default the pose and gripper of every arm and the
object. robomimic marks every step on which the task is solved as done; a demonstration stays whole
here and terminates on its last row if it is solved there.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saqrl.datasets.assembly import assemble
from saqrl.datasets.errors import DatasetError, counted, listing, nearest
from saqrl.datasets.extras import NAME, bounds_of, with_extras
from saqrl.datasets.formats.hdf5 import (
    Record,
    local_dataset,
    local_group,
    names_of,
    numbers,
    open_hdf5,
    read_array,
    values_of,
)
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import existing_file, file_record, parsed_object
from saqrl.datasets.transitions import EnvironmentSpec, RecordedStart, Transitions
from saqrl.environments.robomimic_keys import default_keys, natural_order

if TYPE_CHECKING:
    import h5py

SUMMARY = "robomimic HDF5: data/demo_N with obs/KEY, actions; low-dimensional keys"
SUFFIXES = (".hdf5", ".h5", ".hdf")
OPTIONS = ("keys", "mask")

# env_args["type"], from robomimic.envs.env_base.EnvType.
ROBOSUITE, GYM = 1, 2
# What asks for drawing or images, which nothing here looks at.
DRAWING = re.compile(r"camera|render|use_camera_obs|has_.*renderer|reward_shaping_override")


def recognises(path: Path) -> bool:
    """Whether this is HDF5 with a group data that holds demo_ groups."""
    import h5py

    with h5py.File(path, "r") as file:
        grouped = file.get("data", getclass=True) is h5py.Group
        return grouped and any(name.startswith("demo") for name in file["data"])


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read the demonstrations, of a mask if one is named, in the order of their numbers.

    With the mask `train`, a mask `valid` in the file is the held-out split.
    Raises FileNotFoundError or DatasetError.
    """
    with open_hdf5(path) as file:
        log = _Log(path, file, options)
        transitions = log.read(log.chosen(options.mask))
        if options.mask == "train" and "valid" in log.masks():
            held_out = log.read(log.chosen("valid"))
            return transitions.with_held_out(held_out, "The mask valid is the held-out split.")
        return transitions


class _Log:
    """The demonstrations of one open file."""

    def __init__(self, path: Path, file: "h5py.File", options: ReadOptions) -> None:
        self.path, self.file = path, file
        self.data = local_group(path, "data", file)
        self.demos = sorted(
            (name for name in names_of(path, self.data) if name.startswith("demo")),
            key=natural_order,
        )
        if not self.demos:
            raise DatasetError(
                f"{path}: data has no demo_0, demo_1, ...; name another format, or copy it again"
            )
        self.extras = self._extras()
        stored = self.extras.get("stored_keys")
        own = tuple(map(str, stored)) if isinstance(stored, list) else ()
        self.keys = self._keys(options.keys or own)
        # What our own conversion recorded describes all of its keys, in its order.
        self.whole = not options.keys

    def _extras(self) -> dict[str, object]:
        if NAME not in names_of(self.path, self.file):
            return {}
        (text,) = values_of([Record(self.file, NAME)])
        if text is None:
            raise DatasetError(f"{self.path}: {NAME} cannot be read; copy the file again")
        return parsed_object(self.path, NAME, text)

    def chosen(self, mask: str | None) -> list[str]:
        """The names of the demonstrations of a mask, or all of them."""
        if mask is None:
            return self.demos
        known = self.masks()
        if mask not in known:
            raise DatasetError(
                f"{self.path}: there is no mask {mask}{nearest(mask, known)}; masks: "
                f"{listing(known)}"
            )
        masks = local_group(self.path, "mask", self.file)
        array = read_array(
            self.path, f"mask/{mask}", local_dataset(self.path, f"mask/{mask}", masks)
        )
        if array.dtype.kind != "S" or array.ndim != 1:
            raise DatasetError(
                f"{self.path}: mask/{mask} holds {array.dtype.name}; names of demonstrations of "
                "fixed length are expected"
            )
        wanted = {name.decode(errors="replace") for name in array.tolist()}
        if unknown := sorted(wanted - set(self.demos)):
            raise DatasetError(
                f"{self.path}: mask/{mask} names {listing(unknown, limit=3)}, which is not in data"
            )
        if not wanted:
            raise DatasetError(f"{self.path}: mask/{mask} names no demonstration")
        return [name for name in self.demos if name in wanted]

    def masks(self) -> list[str]:
        if "mask" not in names_of(self.path, self.file):
            return []
        return names_of(self.path, local_group(self.path, "mask", self.file))

    def read(self, demos: Sequence[str]) -> Transitions:
        rows: dict[str, list[np.ndarray]] = {}
        notes: list[str] = []
        held = 0
        fields: set[str] | None = None
        for demo in demos:
            episode = self._episode(demo)
            if fields is None:
                fields = set(episode)
            elif fields != set(episode):
                other = listing(sorted(fields ^ set(episode)))
                raise DatasetError(
                    f"{self.path}: data/{demo} and data/{demos[0]} differ in having {other}; every "
                    "demonstration needs the same fields"
                )
            solved = self._solved(episode)
            held += max(int((episode.get("dones", np.zeros(1)) != 0).sum()) - 1, 0)
            ends = np.zeros(len(episode["actions"]), bool)
            ends[-1] = True
            episode |= {"terminals": ends & solved, "timeouts": ends & ~solved}
            for name in ("dones", "terminated"):
                episode.pop(name, None)
            for name, array in episode.items():
                rows.setdefault(name, []).append(array)
        if held and fields is not None and "terminated" not in fields:
            notes.append(
                f"dones also marks {counted(held, 'earlier row')}, where a task once solved is "
                "held: demonstrations stay whole, and only a solved last row terminates."
            )
        notes.append(f"Observations are {listing((k for k, _ in self.keys), limit=20)}.")
        spec = self._environment(notes)
        arrays = {name: self._joined(name, parts) for name, parts in rows.items()}
        arrays |= bounds_of(self.path, self.extras)
        transitions = assemble(
            arrays,
            source=str(self.path),
            environment=spec,
            provenance={
                "format": "robomimic",
                **file_record(existing_file(self.path)),
                "observation_keys": [key for key, _ in self.keys],
            },
            notes=notes,
            keys={"timeouts": "dones", "terminals": "dones"},
        )
        starts = tuple(start for demo in demos if (start := self._start(demo)) is not None)
        named = replace(
            transitions,
            observation_keys=self.keys,
            starts=starts if len(starts) == len(demos) else None,
        )
        return with_extras(self.path, named, self.extras) if self.whole else named

    def _start(self, demo: str) -> RecordedStart | None:
        """The simulator's state before the first action, where it is recorded."""
        place = f"data/{demo}/states"
        try:
            group = local_group(self.path, f"data/{demo}", self.data)
            states = local_dataset(self.path, place, group)
            first = np.asarray(states[0], np.float64)
        except Exception:  # missing or damaged: this costs replays, not the data
            return None
        return RecordedStart(first, self.path, demo) if first.ndim == 1 else None

    def _joined(self, name: str, parts: list[np.ndarray]) -> np.ndarray:
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = listing(sorted({str(part.shape[1:]) for part in parts}), limit=3)
            raise DatasetError(
                f"{self.path}: {name} changes its width from demonstration to demonstration "
                f"({shapes}); every row needs the same"
            )
        return np.concatenate(parts)

    def _solved(self, episode: dict[str, np.ndarray]) -> bool:
        """Whether the last row ends the task: a positive reward on a row that is done."""
        if "terminated" in episode:
            return bool(episode["terminated"].ravel()[-1])
        done = "dones" not in episode or bool(episode["dones"].ravel()[-1])
        rewarded = "rewards" not in episode or bool(episode["rewards"].ravel()[-1] > 0)
        return done and rewarded and ("dones" in episode or "rewards" in episode)

    def _episode(self, demo: str) -> dict[str, np.ndarray]:
        group = local_group(self.path, f"data/{demo}", self.data)
        names = names_of(self.path, group)
        missing = [name for name in ("actions", "obs") if name not in names]
        if missing:
            raise DatasetError(
                f"{self.path}: data/{demo} has no {listing(missing)}; the file has "
                f"{listing(names)} (robomimic's dataset_states_to_obs.py adds obs)"
            )
        optional = ("rewards", "dones", "terminated")
        episode = {
            name: numbers(self.path, f"data/{demo}/{name}", group)
            for name in ("actions", *optional)
            if name in names
        }
        steps = len(episode["actions"])
        for name, array in episode.items():
            if len(array) != steps:
                raise DatasetError(
                    f"{self.path}: data/{demo}/{name} has {len(array):,} rows and its actions have "
                    f"{steps:,}; every field needs one row a step"
                )
            if name != "actions" and array.size != steps:
                raise DatasetError(
                    f"{self.path}: data/{demo}/{name} has shape {array.shape}; one number a step, "
                    f"({steps},), is needed"
                )
        if steps == 0:
            raise DatasetError(f"{self.path}: data/{demo}/actions has no rows; remove it")
        episode["observations"] = self._observations(f"data/{demo}/obs", group, steps)
        if "next_obs" in names:
            place = f"data/{demo}/next_obs"
            episode["next_observations"] = self._observations(place, group, steps)
        return episode

    def _observations(self, place: str, group: "h5py.Group", steps: int) -> np.ndarray:
        parts = local_group(self.path, place, group)
        columns = []
        for key, width in self.keys:
            array = numbers(self.path, f"{place}/{key}", parts)
            table = array[:, None] if array.ndim == 1 else array
            if table.shape != (steps, width):
                raise DatasetError(
                    f"{self.path}: {place}/{key} has shape {array.shape}; ({steps}, {width}) is "
                    "expected: one row a step, as wide as in the other demonstrations"
                )
            columns.append(table)
        return np.concatenate(columns, axis=1)

    def _keys(self, asked: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
        """Names and widths of the chosen keys, by the first demonstration."""
        demo = local_group(self.path, f"data/{self.demos[0]}", self.data)
        place = f"data/{self.demos[0]}/obs"
        if "obs" not in names_of(self.path, demo):
            return ()
        parts = local_group(self.path, place, demo)
        shapes = {
            name: local_dataset(self.path, f"{place}/{name}", parts).shape
            for name in names_of(self.path, parts)
        }
        vectors = {
            name: shape[1] if len(shape) == 2 else 1
            for name, shape in shapes.items()
            if len(shape) <= 2
        }
        if unknown := [key for key in asked if key not in vectors]:
            image = unknown[0] in shapes
            why = "holds images" if image else f"is missing{nearest(unknown[0], vectors)}"
            raise DatasetError(
                f"{self.path}: observation key {unknown[0]} {why}; keys: {listing(sorted(vectors))}"
            )
        chosen = asked or default_keys(vectors)
        if not chosen:
            raise DatasetError(
                f"{self.path}: {place} has no low-dimensional key; the file has "
                f"{listing(sorted(shapes))}"
            )
        return tuple((key, vectors[key]) for key in chosen)

    def _environment(self, notes: list[str]) -> EnvironmentSpec | None:
        (text,) = values_of([Record(self.data, "env_args", is_attribute=True)])
        if not text:
            notes.append("env_args is missing: name the environment with --env.")
            return None
        recorded = parsed_object(self.path, "env_args", text)
        name, keywords = recorded.get("env_name"), recorded.get("env_kwargs")
        if not isinstance(name, str) or not isinstance(keywords, dict):
            raise DatasetError(
                f"{self.path}: env_args needs env_name and env_kwargs; it has "
                f"{listing(sorted(recorded))}"
            )
        if recorded.get("type") == GYM:
            return EnvironmentSpec(name, keywords) if name != "unknown" else None
        if recorded.get("type") != ROBOSUITE:
            notes.append(f"env_args names {name} of a kind that is not known here: name an --env.")
            return None
        kept = {key: value for key, value in keywords.items() if not DRAWING.search(key)}
        return EnvironmentSpec(
            f"robosuite/{name}", {**kept, "observation_keys": [key for key, _ in self.keys]}
        )


def recorded_model(start: RecordedStart) -> str | None:
    """The scene of a demonstration as MuJoCo's XML; None where the file does not hold it.

    A demonstration without `model_file` of its own has that of another with the same `model_md5`.
    Raises FileNotFoundError or DatasetError.
    """
    with open_hdf5(start.path) as file:
        data = local_group(start.path, "data", file)

        def recorded(episodes: Iterable[str], *attributes: str) -> list[str | float | None]:
            groups = [local_group(start.path, f"data/{name}", data) for name in episodes]
            return values_of([Record(g, a, is_attribute=True) for g in groups for a in attributes])

        model, digest = recorded([start.episode], "model_file", "model_md5")
        if model is None and digest is not None:
            names = names_of(start.path, data)
            digests = zip(names, recorded(names, "model_md5"), strict=True)
            alike = recorded([n for n, other in digests if other == digest], "model_file")
            model = next((found for found in alike if found is not None), None)
    return model if isinstance(model, str) else None
