"""A run is a folder: what was asked, what happened, what can go on, what can be deployed.

config.json        the settings and the versions, written once
metrics.jsonl      one line per logging interval; appended, never rewritten
evaluations.jsonl  one line per evaluation
checkpoints/       NUMBER-STAGE.ckpt, the newest two of each stage
policy/            what `saqrl evaluate` and a robot load
result.json        the summary of a finished run
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import jax

from saqrl import arrays

# Checkpoints kept of each stage: the newest, and one in case that is damaged.
KEPT = 2
HISTORIES = ("metrics", "evaluations")


class RunError(ValueError):
    """A run folder that cannot be used as asked; the text says what to do."""


class Run:
    """One run folder, held by one process at a time."""

    def __init__(self, path: Path, lock: IO[str]):
        self.path = path
        self._lock = lock
        self._made: list[Path] = []

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "Run":
        """A new run folder; RunError where `refuse_existing` or the file system says no."""
        refuse_existing(path)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise RunError(f"cannot make the run folder {path}: {error.strerror}") from error
        run = cls(path, _lock(path))
        run._made = made
        arrays.write_atomically(path / "config.json", _json_lines(config, indent=2))
        return run

    @classmethod
    def open(cls, path: Path, say: Callable[[str], None]) -> "Run":
        """An existing run, cut back to its last sound checkpoint, to go on from there.

        RunError if there is none or another process has it; a damaged checkpoint is said.
        """
        read_config(path)
        (path / "checkpoints").mkdir(exist_ok=True)
        run = cls(path, _lock(path))
        run._cut_back(say)
        return run

    def close(self) -> None:
        self._lock.close()

    def discard(self) -> None:
        """Leave nothing behind: for a run that failed before it did anything worth keeping."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._made[1:]:
            with contextlib.suppress(OSError):  # somebody else has put something there
                folder.rmdir()

    def append(self, history: str, record: Mapping[str, Any]) -> None:
        """One line more in metrics.jsonl or evaluations.jsonl."""
        with (self.path / f"{history}.jsonl").open("ab") as file:
            file.write(_json_lines(record))

    def history(self, history: str) -> list[dict[str, Any]]:
        return read_history(self.path, history)

    def save_checkpoint(self, stage: str, step: int, state: Any) -> None:
        """Write the state and how far the histories had got; then forget all but the newest."""
        header = {"stage": stage, "step": step, "sizes": {h: self._size(h) for h in HISTORIES}}
        existing = self._checkpoints()
        number = 1 + (_number(existing[-1]) if existing else 0)
        path = self.path / "checkpoints" / f"{number:06d}-{stage}.ckpt"
        arrays.write_arrays(path, arrays.named_leaves(state), header)
        for old in self._checkpoints(stage)[:-KEPT]:
            old.unlink()

    def load_checkpoint(self, stage: str, skeleton: Callable[[], Any]) -> tuple[int, Any] | None:
        """(step, state) where a stage was left, or None; `skeleton` gives the state's shapes."""
        kept = self._checkpoints(stage)
        if not kept:
            return None
        leaves, header = arrays.read_arrays(kept[-1])
        try:
            return header["step"], arrays.rebuild_tree(jax.eval_shape(skeleton), leaves)
        except ValueError as error:
            raise RunError(f"{kept[-1]} belongs to other settings: {error}") from error

    def _cut_back(self, say: Callable[[str], None]) -> None:
        """Remove what follows the last sound checkpoint, in the histories too."""
        sizes = dict.fromkeys(HISTORIES, 0)
        existing = self._checkpoints()
        newest = {_stage(path): path for path in existing}
        for position, path in enumerate(existing):
            try:
                sizes = arrays.read_arrays(path)[1]["sizes"]
            except arrays.DamagedArrays as error:
                if newest[_stage(path)] != path:
                    continue  # a later one of its stage is there: nobody needs this one
                say(f"{error}; going on from the one before it")
                for later in existing[position:]:
                    later.unlink()
                break
        for history, size in sizes.items():
            if self._size(history) > size:
                os.truncate(self.path / f"{history}.jsonl", size)

    def _checkpoints(self, stage: str = "*") -> list[Path]:
        """In the order in which they were written."""
        return sorted((self.path / "checkpoints").glob(f"[0-9]*-{stage}.ckpt"))

    def _size(self, history: str) -> int:
        path = self.path / f"{history}.jsonl"
        return path.stat().st_size if path.exists() else 0


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _stage(path: Path) -> str:
    return path.stem.partition("-")[2]


def refuse_existing(path: Path) -> None:
    """RunError that names the two ways out where `path` exists already."""
    if path.exists():
        raise RunError(
            f"{path} exists already: add --resume to go on with it, or name another --out"
        )


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run; RunError where the folder holds none."""
    file = path / "config.json"
    if not file.is_file():
        raise RunError(f"{path} is not a run folder (it has no config.json)")
    try:
        return dict(json.loads(file.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{file} is not readable JSON: {error}") from error


def read_result(path: Path) -> dict[str, Any]:
    """result.json of a finished run; RunError where it has not finished."""
    file = path / "result.json"
    if not file.is_file():
        raise RunError(f"{path} has not finished: saqrl train --out {path} --resume")
    return dict(json.loads(file.read_text()))


def read_history(path: Path, history: str) -> list[dict[str, Any]]:
    """The records of metrics.jsonl or evaluations.jsonl, oldest first."""
    file = path / f"{history}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _json_lines(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(record, indent=indent) + "\n").encode()


def _lock(path: Path) -> IO[str]:
    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise RunError(f"{path} is in use by another process; wait for it or stop it") from error
    return lock
