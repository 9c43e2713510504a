"""Plain npz: one array per field, one row per step, episodes one after another."""

import json
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from saqrl.datasets.assembly import BOUNDS, assemble
from saqrl.datasets.budget import budget
from saqrl.datasets.errors import DatasetError
from saqrl.datasets.extras import NAME, extras_of, provenance_text
from saqrl.datasets.formats.boundaries import KEYS, require_flat, require_rows, with_boundaries
from saqrl.datasets.formats.field_names import (
    ALIASES,
    field_keys,
    require_done_is_termination,
    require_fields,
)
from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.source import (
    MOST_DEFLATED,
    damage_named,
    existing_file,
    file_record,
    parsed_object,
    plain,
)
from saqrl.datasets.transitions import EnvironmentSpec, Transitions
from saqrl.environments.rates import as_rate

SUMMARY = "npz with observations, actions, terminals and/or timeouts, optionally rewards"
SUFFIXES = (".npz",)
OPTIONS = ()


def recognises(path: Path) -> bool:
    """Whether this is a zip archive with actions in it."""
    with zipfile.ZipFile(path) as archive:
        names = array_names(archive)
    return bool({"actions", *ALIASES["actions"]} & set(names))


def read(path: Path, options: ReadOptions = DEFAULT, environment: str | None = None) -> Transitions:
    """Read `path`; see `assembly` for the rules and docs/reference/formats.md for the keys.

    Pickled members are never opened. Raises FileNotFoundError, or DatasetError for a damaged
    archive, missing keys and whatever `assemble` refuses.
    """
    file = existing_file(path)
    notes: list[str] = []
    with opened(path, file) as archive:
        members = Members(path, archive)
        require_flat(path, members.names)
        keys = members.field_keys(notes)
        arrays = {field: members.array(key) for field, key in keys.items()}
        require_rows(path, {field: array.shape for field, array in arrays.items()})
        bounds = {key: members.array(key) for key in KEYS if key in members.names}
        arrays |= {bound: members.array(bound) for bound in BOUNDS if bound in members.names}
        named, recorded = members.text("environment_id"), members.text("provenance")
        text, rate = members.text(NAME), members.rate("control_rate")
    added = {} if text is None else parsed_object(path, NAME, text)
    if rate is not None:
        added = {**added, "control_rate": rate}
    require_done_is_termination(path, keys, arrays)
    arrays = with_boundaries(path, arrays, bounds, notes)
    record: dict[str, object] = {"format": "npz", **file_record(file)}
    if recorded is not None:
        record["recorded"] = _parsed(recorded)
    return assemble(
        arrays,
        source=str(path),
        environment=EnvironmentSpec(named) if named else None,
        provenance=record,
        notes=notes,
        keys=keys,
        extras=added or None,
    )


def write(path: Path, transitions: Transitions) -> None:
    """Write a compressed archive."""
    members: dict[str, Any] = {
        **flat_fields(transitions),
        NAME: np.array(json.dumps(extras_of(transitions))),
        "provenance": np.array(provenance_text(transitions)),
    }
    if transitions.environment is not None:
        members["environment_id"] = np.array(transitions.environment.id)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **members)


def flat_fields(transitions: Transitions) -> dict[str, np.ndarray]:
    """One array per field, one row per step, and the actions' bounds, as `assemble` takes them."""
    arrays = {
        "observations": transitions.observations,
        "actions": transitions.actions,
        "rewards": transitions.rewards,
        "next_observations": transitions.next_observations,
        "terminals": transitions.terminated,
        "timeouts": transitions.last_rows & ~transitions.terminated,
        "action_low": transitions.action_range.low,
        "action_high": transitions.action_range.high,
    }
    if not transitions.has_rewards:
        del arrays["rewards"]
    return arrays


def opened(path: Path, file: Path) -> zipfile.ZipFile:
    budget().admit(file)
    if not zipfile.is_zipfile(file):
        raise DatasetError(
            f"{path}: not an npz archive, or truncated; write it with "
            "numpy.savez_compressed, or copy it again"
        )
    try:
        return zipfile.ZipFile(file)
    except Exception as error:  # a damaged directory raises whatever its bytes happen to mean
        raise DatasetError(
            f"{path}: damaged npz archive ({plain(error)}); copy it again"
        ) from error


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """The members that are arrays, without their suffix."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


class Members:
    """The named arrays of an archive; every failure names the file and the member."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive, self.names = path, archive, array_names(archive)

    def field_keys(self, notes: list[str]) -> dict[str, str]:
        """Field -> the file's key; a note for each alias, one error for all that is missing."""
        keys = field_keys(self.path, self.names, notes)
        for key in keys.values():
            with damage_named(self.path, key), self.archive.open(f"{key}.npy") as stream:
                self._header(key, stream)  # before anything else is said of the file
        require_fields(self.path, keys, self.names, "rename or add these keys")
        return keys

    def array(self, key: str) -> np.ndarray:
        with damage_named(self.path, key):
            with self.archive.open(f"{key}.npy") as stream:
                self._require_stored(key, stream)
            with self.archive.open(f"{key}.npy") as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)

    def _header(self, key: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type, as the header promises them; DatasetError where they are no numbers."""
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise DatasetError(
                f"{self.path}: {key} has named columns; save one plain array of numbers"
            )
        if dtype.hasobject:
            raise DatasetError(
                f"{self.path}: {key} holds Python objects, and pickled arrays are never "
                "opened; save plain numbers, one row per step. To join one array per "
                f"episode: {key}=numpy.concatenate({key}), and "
                "timeouts=numpy.concatenate([numpy.arange(len(a)) == len(a) - 1 for a in "
                "actions])"
            )
        return shape, dtype

    def _require_stored(self, key: str, stream: IO[bytes]) -> None:
        """Refuse a header that promises more than is stored, before memory is set aside for it."""
        shape, dtype = self._header(key, stream)
        member = self.archive.getinfo(f"{key}.npy")
        promised = math.prod(shape) * dtype.itemsize
        held = min(member.file_size, member.compress_size * MOST_DEFLATED)
        if promised > held:
            raise DatasetError(
                f"{self.path}: the header of {key} promises shape {shape}, and its {held:,} "
                "bytes cannot hold that; the file is damaged, copy it again"
            )
        budget().take(self.path, key, promised)

    def text(self, key: str) -> str | None:
        """A 0-d string member, or None where there is none."""
        if key not in self.names:
            return None
        array = self.array(key)
        if array.shape != () or array.dtype.kind not in "US":
            raise DatasetError(
                f"{self.path}: {key} has shape {array.shape} and type {array.dtype.name}; "
                "a single string is expected"
            )
        value = array.item()
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def rate(self, key: str) -> float | None:
        """A single number of steps per second, or None where there is none."""
        if key not in self.names:
            return None
        array = self.array(key)
        number = array.item() if array.size == 1 and array.dtype.kind in "fiu" else None
        found = as_rate(number)
        if found is None:
            given = array.shape if number is None else number
            raise DatasetError(
                f"{self.path}: {key} is {given}; a single number of steps per second (Hz), from "
                "0.01 to 100,000, is expected"
            )
        return found


def _parsed(recorded: str) -> object:
    """The writer's own record as JSON where it is JSON, else its text."""
    try:
        return json.loads(recorded)
    except ValueError:
        return recorded
