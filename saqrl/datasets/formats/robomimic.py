"""robomimic's low-dimensional HDF5 (Mandlekar et al. 2021, arXiv 2108.03298): data/demo_N/...

An observation is the chosen keys side by side, by default the pose and gripper of every arm and the
object. robomimic marks every step on which the task is solved as done; a demonstration stays whole
here and terminates on its last row if it is solved there.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from saqrl.datasets.assembly import BOUNDS, assemble
from saqrl.datasets.errors import DatasetError, counted, listing, nearest
from saqrl.datasets.extras import NAME, extras_of
from saqrl.datasets.formats.episodes import (
    Fields,
    fields_of,
    joined,
    parts_of,
    require_members,
)
from saqrl.datasets.formats.hdf5 import (
    Record,
    is_group,
    local_dataset,
    local_group,
    names_of,
    numbers,
    open_hdf5,
    read_array,
    store,
    values_of,
)
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import existing_file, file_record, parsed_object
from saqrl.datasets.transitions import EnvironmentSpec, RecordedStart, Transitions
from saqrl.environments.rates import as_rate
from saqrl.environments.robomimic_keys import default_keys, natural_order

if TYPE_CHECKING:
    import h5py

SUMMARY = "robomimic HDF5: data/demo_N with obs/KEY, actions; low-dimensional keys"
SUFFIXES = (".hdf5", ".h5", ".hdf")
OPTIONS = ("keys", "mask")

# env_args["type"], from robomimic.envs.env_base.EnvType.
ROBOSUITE, GYM = 1, 2
# Of a hand's pose: places, a rotation vector, the gripper.
OSC_POSE = ("x", "y", "z", "rx", "ry", "rz", "gripper")
# The only key of an observation whose parts have no names.
WHOLE = "state"
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
                f"{path}: data has no demo_0, demo_1, ...; give another format as "
                "FORMAT:PATH, or copy the file again"
            )
        extras = self._extras()
        stored = extras.get("stored_keys")
        own = tuple(map(str, stored)) if isinstance(stored, list) else ()
        self.cameras: list[str] = []
        self.keys = self._keys(options.keys or own)
        # What our own conversion recorded of observations describes all keys, in its order.
        names = (*BOUNDS, "control_rate") if options.keys else extras
        self.extras = {name: extras[name] for name in names if name in extras}

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
                f"{self.path}: mask/{mask} holds {array.dtype.name}; expected names of "
                "demonstrations, as strings of fixed length"
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
        episodes = {f"data/{demo}": self._episode(f"data/{demo}") for demo in demos}
        arrays, last = joined(self.path, episodes)
        notes = [] if "terminated" in arrays else _notes_of_held(arrays, last)
        notes.append(f"Observations are {listing((k for k, _ in self.keys), limit=20)}.")
        recorded = self._recorded_args()
        solved = self._solved(arrays, last, demos, recorded, notes)
        starts = tuple(start for demo in demos if (start := self._start(demo)) is not None)
        transitions = assemble(
            arrays | {"terminals": last & solved, "timeouts": last & ~solved},
            source=str(self.path),
            environment=self._environment(recorded, notes),
            provenance={
                "format": "robomimic",
                **file_record(existing_file(self.path)),
                "observation_keys": [key for key, _ in self.keys],
            },
            notes=notes,
            keys={"timeouts": "dones", "terminals": "dones"},
            observation_keys=self.keys,
            control_rate=_control_rate(recorded),
            extras=self.extras,
        )
        transitions = transitions.named(
            actions=_action_names(recorded, transitions.actions.shape[1]),
            cameras=self.cameras,
            tasks=self._tasks(demos),
            successes=self._successes(arrays, last, demos, recorded),
        )
        return replace(transitions, starts=starts if len(starts) == len(demos) else None)

    def _tasks(self, demos: Sequence[str]) -> list[str]:
        """What demonstrations are told to do, in words, as robosuite and RoboCasa record it."""
        groups = [local_group(self.path, f"data/{demo}", self.data) for demo in demos]
        found = []
        for text in values_of([Record(group, "ep_meta", is_attribute=True) for group in groups]):
            with contextlib.suppress(DatasetError):
                spoken = parsed_object(self.path, "ep_meta", text).get("lang") if text else None
                found += [spoken] if isinstance(spoken, str) else []
        return found

    def _successes(
        self,
        arrays: Fields,
        last: Bool[np.ndarray, " n"],
        demos: Sequence[str],
        recorded: dict[str, object],
    ) -> Bool[np.ndarray, " episodes"] | None:
        """Of each demonstration, by a reward that pays for success alone or by its attribute."""
        if _pays_for_success(arrays, recorded):
            starts = np.append(0, np.flatnonzero(last)[:-1] + 1)
            return np.logical_or.reduceat(arrays["rewards"].reshape(len(last)) > 0, starts)
        attributes = self._attributes(demos)
        if all(isinstance(value, float) for value in attributes):
            return np.asarray([value != 0 for value in attributes])
        return None

    def _attributes(self, demos: Sequence[str]) -> list[str | float | None]:
        """The attribute success of each demonstration, as Isaac Lab records it."""
        groups = [local_group(self.path, f"data/{demo}", self.data) for demo in demos]
        return values_of([Record(group, "success", is_attribute=True) for group in groups])

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

    def _episode(self, place: str) -> Fields:
        group = local_group(self.path, place, self.data)
        hint = "to add obs, run robomimic's dataset_states_to_obs.py"
        require_members(self.path, place, group, "actions", "obs", hint=hint)
        names = names_of(self.path, group)
        fields = ("actions", "rewards", "dones", "terminated")
        keys = {name: name for name in fields if name in names}
        episode = fields_of(self.path, place, group, keys)
        steps = len(episode["actions"])
        episode["observations"] = self._observations(f"{place}/obs", group, steps)
        if "next_obs" in names:
            following = self._observations(f"{place}/next_obs", group, steps)
            episode["next_observations"] = following
        return episode

    def _observations(self, place: str, group: "h5py.Group", steps: int) -> np.ndarray:
        columns = []
        for key, width in self.keys:
            *above, name = key.split("/")
            inside, parent = place, local_group(self.path, place, group)
            for step in above:
                inside = f"{inside}/{step}"
                parent = local_group(self.path, inside, parent)
            array = numbers(self.path, f"{inside}/{name}", parent)
            table = array[:, None] if array.ndim == 1 else array
            if table.shape != (steps, width):
                raise DatasetError(
                    f"{self.path}: {place}/{key} has shape {array.shape}; expected ({steps}, "
                    f"{width}): one row per step, the same width in all demonstrations"
                )
            columns.append(table)
        return np.concatenate(columns, axis=1)

    def _keys(self, asked: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
        """Names and widths of the chosen keys, by the first demonstration."""
        demo = local_group(self.path, f"data/{self.demos[0]}", self.data)
        place = f"data/{self.demos[0]}/obs"
        if "obs" not in names_of(self.path, demo):
            return ()
        if not is_group(self.path, place, demo):
            raise DatasetError(
                f"{self.path}: {place} is not a group of named arrays; give another format as "
                "FORMAT:PATH"
            )
        parts = parts_of(self.path, place, demo)
        found = {
            name: local_dataset(self.path, f"{place}/{name}", group)
            for name, group in parts.items()
            if not asked or name in asked
        }
        vectors = {
            name: dataset.shape[1] if dataset.ndim == 2 else 1
            for name, dataset in found.items()
            if dataset.ndim <= 2 and dataset.dtype.kind in "fiub"
        }
        self.cameras = [
            name.rpartition("/")[2].removesuffix("_image").removesuffix("_rgb")
            for name, dataset in found.items()
            if dataset.ndim == 4
        ]
        if unknown := [key for key in asked if key not in vectors]:
            other = unknown[0] in found
            why = "holds images or text" if other else f"is missing{nearest(unknown[0], parts)}"
            raise DatasetError(
                f"{self.path}: observation key {unknown[0]} {why}; keys: {listing(sorted(parts))}"
            )
        # What is recorded in groups below is beside the observation unless it is named.
        plain = [name for name in vectors if "/" not in name]
        chosen = asked or default_keys(plain or vectors)
        if not chosen:
            raise DatasetError(
                f"{self.path}: {place} has no low-dimensional key; the file has "
                f"{listing(sorted(found))}"
            )
        return tuple((key, vectors[key]) for key in chosen)

    def _recorded_args(self) -> dict[str, object]:
        (text,) = values_of([Record(self.data, "env_args", is_attribute=True)])
        return parsed_object(self.path, "env_args", text) if text else {}

    def _solved(
        self,
        arrays: Fields,
        last: Bool[np.ndarray, " n"],
        demos: Sequence[str],
        recorded: dict[str, object],
        notes: list[str],
    ) -> Bool[np.ndarray, " n"]:
        """Whether a row, if it is the last, ends the task, as far as the file says so.

        By our own `terminated`; by the attribute success of each demonstration (Isaac Lab); by a
        reward of robosuite, which pays for success alone; else by dones, where it tells some last
        rows from others.
        """
        steps = len(arrays["actions"])
        if "terminated" in arrays:
            return arrays["terminated"].reshape(steps) != 0
        done = arrays.get("dones", np.ones(1)).reshape(-1) != 0
        done = done if len(done) == steps else np.ones(steps, bool)
        if _pays_for_success(arrays, recorded):
            return done & (arrays["rewards"].reshape(steps) > 0)
        attributes = self._attributes(demos)
        if all(isinstance(value, float) for value in attributes):
            count = sum(value != 0 for value in attributes)
            notes.append(f"By the attribute success, {counted(count, 'episode')} end solved.")
            lengths = np.diff(np.append(-1, np.flatnonzero(last)))
            return np.repeat([value != 0 for value in attributes], lengths)
        if "dones" in arrays and not done[last].all():
            return done
        why = "dones ends every demonstration" if "dones" in arrays else "There are no dones"
        notes.append(
            f"{why}, so the file does not say which demonstrations solve the task: ends are "
            "read as time limits. If all do, pass --dataset.rewards success-at-end."
        )
        return np.zeros(steps, bool)

    def _environment(self, recorded: dict[str, object], notes: list[str]) -> EnvironmentSpec | None:
        if not recorded:
            notes.append("env_args is missing: to evaluate, give the environment with --env.")
            return None
        name, keywords = recorded.get("env_name"), recorded.get("env_kwargs")
        keywords = {} if keywords is None else keywords  # Isaac Lab's recorder leaves them out
        if not isinstance(name, str) or not isinstance(keywords, dict):
            raise DatasetError(
                f"{self.path}: env_args needs env_name, and env_kwargs as an object; it has "
                f"{listing(sorted(recorded))}"
            )
        if recorded.get("type") == GYM:
            return EnvironmentSpec(name, keywords) if name != "unknown" else None
        if recorded.get("type") != ROBOSUITE:
            notes.append(
                f"env_args names {name}, whose type is not supported: to evaluate, give another "
                "environment with --env."
            )
            return None
        kept = {key: value for key, value in keywords.items() if not DRAWING.search(key)}
        return EnvironmentSpec(
            f"robosuite/{name}", {**kept, "observation_keys": [key for key, _ in self.keys]}
        )


def _pays_for_success(arrays: Fields, recorded: dict[str, object]) -> bool:
    """Whether rewards are robosuite's own, which pay for nothing else."""
    keywords = recorded.get("env_kwargs")
    shaped = isinstance(keywords, dict) and keywords.get("reward_shaping") is True
    return recorded.get("type") == ROBOSUITE and "rewards" in arrays and not shaped


def _action_names(recorded: dict[str, object], width: int) -> tuple[str, ...]:
    """Of one arm that is moved by its hand's pose, robosuite's usual controller."""
    keywords = recorded.get("env_kwargs")
    controller = keywords.get("controller_configs") if isinstance(keywords, dict) else None
    parts = controller.get("body_parts") if isinstance(controller, dict) else None
    arms = list(parts.values()) if isinstance(parts, dict) else [controller]
    posed = len(arms) == 1 and isinstance(arms[0], dict) and arms[0].get("type") == "OSC_POSE"
    return OSC_POSE if posed and width == len(OSC_POSE) else ()


def _control_rate(recorded: dict[str, object]) -> float | None:
    """As robosuite's arguments or Isaac Lab's record of its simulation say it."""
    keywords, simulation = recorded.get("env_kwargs"), recorded.get("sim_args")
    if isinstance(keywords, dict) and (rate := as_rate(keywords.get("control_freq"))):
        return rate
    match simulation:
        case {"dt": float(step), "decimation": int(steps)} if step * steps > 0:
            return as_rate(1 / (step * steps))
    return None


def _notes_of_held(arrays: Fields, last: Bool[np.ndarray, " n"]) -> list[str]:
    """Rows before the end that are marked as done: all of an episode but one."""
    done = arrays.get("dones", np.zeros(1)).ravel() != 0
    if not done.any():
        return []
    starts = np.append(0, np.flatnonzero(last)[:-1] + 1)
    held = int(np.maximum(np.add.reduceat(done.astype(np.int64), starts) - 1, 0).sum())
    if not held:
        return []
    return [
        (
            f"dones is also set on {counted(held, 'earlier row')} after the task was solved: "
            "demonstrations are not split, and only a solved last row terminates."
        )
    ]


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


def write(path: Path, transitions: Transitions) -> None:
    """Write every observation key, or all of them as one where they have no names of their own."""
    import h5py

    keys = transitions.observation_keys
    if not keys or any("/" in key for key, _ in keys):
        keys = ((WHOLE, transitions.observations.shape[1]),)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = len(transitions)
        data.attrs["env_args"] = np.bytes_(json.dumps(_env_args(transitions)).encode())
        for episode, rows in enumerate(transitions.episode_rows):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = rows.stop - rows.start
            store(demo, "actions", transitions.actions[rows])
            if transitions.has_rewards:
                store(demo, "rewards", transitions.rewards[rows])
            store(demo, "dones", transitions.terminated[rows].astype(np.int64))
            store(demo, "terminated", transitions.terminated[rows])
            place = 0
            for key, width in keys:
                columns = slice(place, place + width)
                store(demo, f"obs/{key}", transitions.observations[rows, columns])
                store(demo, f"next_obs/{key}", transitions.next_observations[rows, columns])
                place += width
        record = extras_of(transitions) | {"stored_keys": [key for key, _ in keys]}
        file[NAME] = np.bytes_(json.dumps(record).encode())


def _env_args(transitions: Transitions) -> dict[str, object]:
    environment = transitions.environment
    if environment is None:
        return {"env_name": "unknown", "type": GYM, "env_kwargs": {}}
    robosuite = environment.id.startswith("robosuite/")
    keywords = {k: v for k, v in environment.options.items() if k != "observation_keys"}
    return {
        "env_name": environment.id.removeprefix("robosuite/"),
        "type": ROBOSUITE if robosuite else GYM,
        "env_kwargs": keywords,
    }
