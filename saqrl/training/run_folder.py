"""A run is a folder: its settings, its histories, its checkpoints and its policy.

config.json        the settings and the versions, written once
metrics.jsonl      one line per logging interval; appended, never rewritten
evaluations.jsonl  one line per evaluation
checkpoints/       NUMBER-STAGE.ckpt, the newest two of each stage
policy/            what `saqrl evaluate` and a robot load
policies/STEP/     policies of earlier steps of the agent (--keep-every)
baseline/          the policy of plain BC, if it was trained too
result.json        the summary of a finished run
rollouts.mp4       a few episodes, next to the baseline's, if rendering works
index.html         its page (`saqrl view`)
"""

import contextlib
import errno
import glob
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from filelock import FileLock, Timeout

from saqrl import arrays
from saqrl.records import (
    NULL,
    NUMBER,
    OBJECT,
    TEXT,
    Rule,
    among,
    listed,
    mapped,
    parsed,
    read_record,
    read_regular,
    require,
    require_regular,
    shown,
    whole,
)
from saqrl.training.settings import differing_field

# Checkpoints kept of each stage: the newest, and one in case that is damaged.
KEPT = 2
HISTORIES = ("metrics", "evaluations")
# Bytes of a history, and of one line of it.
LARGEST_HISTORY, LONGEST_LINE = 1 << 30, 1 << 20
# Bytes of anything else in the folder, such as demonstrations: what is read is bounded there.
LARGEST_ENTRY = 1 << 50

# What the records must say for others to read them; what else stands in them may be anything.
CONFIG = {
    "settings": OBJECT,
    "versions": mapped(TEXT),
    "seeds": listed(whole()) | NULL,
    "data": OBJECT | NULL,
    "finetune": OBJECT | NULL,
}
RESULT = {
    "run": TEXT,
    "agent": TEXT,
    "actions": among("quantized", "continuous"),
    "dataset": TEXT | NULL,
    "env": TEXT | NULL,
    "act": TEXT,
    "act_temperature": NUMBER | NULL,
    "episodes": whole(),
    "seed": whole(),
    "members": whole(1) | NULL,
    "gradient_steps": whole(),
    "wall_seconds": NUMBER,
    "seconds": mapped(NUMBER),
    "success_rate": NUMBER | NULL,
    "normalized_score": NUMBER | NULL,
    "return_mean": NUMBER | NULL,
    "return_std": NUMBER | NULL,
    "max_reward_mean": NUMBER | NULL,
    "held_out_action_error": NUMBER | NULL,
    "held_out_skill": NUMBER | NULL,
    "baseline": OBJECT | NULL,
    "collected": TEXT | NULL,
    "quantizer": OBJECT | NULL,
}
HEADER = {
    "stage": TEXT,
    "step": whole(),
    "sizes": mapped(whole()),
    "settings": OBJECT,
    "spent": OBJECT | NULL,
}
SIZES = dict.fromkeys(HISTORIES, whole())
SPENT = {"wall_seconds": NUMBER | NULL, "seconds": mapped(NUMBER) | NULL}
PLACE = {"stage": TEXT | NULL, "step": whole() | NULL}


class RunError(ValueError):
    """A run folder cannot be used as requested; the message says what to do."""


class Logger(Protocol):
    """Writes the histories in another form during training; the JSON lines are authoritative."""

    def begin(self, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Start again from the recorded lines, which replace the output of a killed run."""
        ...

    def record(self, history: str, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class RunFolder:
    """One run folder, held by one process at a time."""

    def __init__(self, path: Path, lock: FileLock):
        self.path = path
        self._lock = lock
        self._made: list[Path] = []
        self._loggers: list[Logger] = []
        self._settings: Any = None
        self.spent: Mapping[str, Any] = {}
        """The times that `save_checkpoint` recorded up to the checkpoint that is resumed."""

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "RunFolder":
        """A new run folder; RunError where `refuse_existing` or the file system says no.

        It is made aside and renamed: a folder of this name always has its config.json.
        """
        refuse_existing(path)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        lock = None
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_unborn(path)
            (aside / "checkpoints").mkdir(parents=True)
            lock = hold(aside)
            arrays.write_atomically(aside / "config.json", _json_lines(config, indent=2))
            lock.release()  # Windows renames no folder with an open file in it
            os.rename(aside, path)
            lock = hold(path)
        except OSError as error:
            if lock is not None:
                lock.release()
            shutil.rmtree(aside, ignore_errors=True)
            _remove_empty(made[1:])
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                refuse_existing(path)
            raise RunError(f"cannot make the run folder {path}: {error.strerror}") from error
        run = cls(path, lock)
        run._made = made
        run._settings = config.get("settings")
        return run

    @classmethod
    def open(cls, path: Path, say: Callable[[str], None]) -> "RunFolder":
        """Open an existing run, cut back to its last undamaged checkpoint, to resume it.

        RunError if there is none, another process has it, it holds links, or a checkpoint belongs
        to other settings or to another program; a damaged checkpoint is said.
        """
        config = read_config(path)
        _refuse_links(path)
        try:
            (path / "checkpoints").mkdir(exist_ok=True)
            run = cls(path, hold(path))
        except OSError as error:
            raise RunError(f"cannot write in the run folder {path}: {error.strerror}") from error
        run._settings = config.get("settings")
        try:
            own = [path / name for name in ("checkpoints", "policy", "baseline")]
            for folder in (path, *own, *path.glob("policies/*")):
                arrays.remove_leftovers(folder)
            run._cut_back(say)
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()
        self._loggers = []
        self._lock.release()

    def discard(self) -> None:
        """Leave nothing behind, unless the run has done something worth keeping."""
        if self._checkpoints() or any(map(self._size, HISTORIES)):
            return
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        _remove_empty(self._made[1:])

    def tell(self, loggers: Iterable[Logger]) -> None:
        """Have loggers follow the histories from their beginning on."""
        for logger in loggers:
            self._loggers.append(logger)
            logger.begin({history: self.history(history) for history in HISTORIES})

    def append(self, history: str, record: Mapping[str, Any]) -> None:
        """One line more in metrics.jsonl or evaluations.jsonl."""
        arrays.append(self.path / f"{history}.jsonl", _json_lines(record))
        for logger in self._loggers:
            logger.record(history, record)

    def history(self, history: str) -> list[dict[str, Any]]:
        return read_history(self.path, history)

    def save_checkpoint(
        self, stage: str, step: int, state: Any, *, spent: Mapping[str, Any] | None = None
    ) -> None:
        """Write the state and how far the histories had got; then forget all but the newest."""
        self._save(stage, step, arrays.named_leaves(state), spent or {})

    def _save(
        self, stage: str, step: int, leaves: Mapping[str, np.ndarray], spent: Mapping[str, Any]
    ) -> None:
        for history in HISTORIES:
            if self._size(history):  # a checkpoint must not outlive the lines that it counts
                arrays.make_lasting(self.path / f"{history}.jsonl")
        header = {
            "stage": stage,
            "step": step,
            "sizes": {history: self._size(history) for history in HISTORIES},
            "settings": self._settings,
            "spent": dict(spent),
        }
        existing = self._checkpoints()
        number = 1 + (_number(existing[-1]) if existing else 0)
        path = self.path / "checkpoints" / f"{number:06d}-{stage}.ckpt"
        arrays.write_arrays(path, leaves, header)
        for old in self._checkpoints(stage)[:-KEPT]:
            old.unlink()

    def load_checkpoint(self, stage: str, skeleton: Callable[[], Any]) -> tuple[int, Any] | None:
        """(step, state) where a stage was left, or None; `skeleton` gives the state's shapes."""
        kept = self._checkpoints(stage)
        if not kept:
            return None
        leaves, header = _arrays_of(kept[-1])
        try:
            return header["step"], arrays.rebuild_tree(jax.eval_shape(skeleton), leaves)
        except ValueError as error:
            raise RunError(
                f"{kept[-1]} does not fit this run: {error}: delete it to resume from the "
                "previous checkpoint, or start a new run with another --out"
            ) from error

    def adopt(
        self, parent: Path, stage: str, *, own: str, prefix: str = "", first: bool = False
    ) -> None:
        """Begin the stage `own` where another run has left `stage`; RunError: it has kept none.

        prefix: of the leaves that count. first: of an ensemble's leaves the first member's. Nothing
        is done where the stage has begun.
        """
        if self._checkpoints(own):
            return
        kept = sorted((parent / "checkpoints").glob(f"{6 * '[0-9]'}-{stage}.ckpt"))
        if not kept:
            raise RunError(f"{parent} has no checkpoint of its {stage}: train it again")
        leaves, header = _arrays_of(kept[-1])
        found = {n.removeprefix(prefix): a for n, a in leaves.items() if n.startswith(prefix)}
        if first:
            found = {name: leaf[0] for name, leaf in found.items()}
        self._save(own, header["step"], found, {})

    def _cut_back(self, say: Callable[[str], None]) -> None:
        """Remove what follows the last sound checkpoint, in the histories too."""
        sizes: Mapping[str, int] = dict.fromkeys(HISTORIES, 0)
        existing = self._checkpoints()
        found = {path: self._header(path) for path in existing}
        for position, path in enumerate(existing):
            header = found[path]
            if not isinstance(header, str):
                sizes, self.spent = header["sizes"], header.get("spent") or {}
                continue
            later = existing[position + 1 :]
            if any(_stage(o) == _stage(path) and not isinstance(found[o], str) for o in later):
                path.unlink()  # not needed any more
                continue
            say(f"{header}; resuming from the previous checkpoint")
            for lost in (path, *later):
                lost.unlink()
            break
        for history in HISTORIES:
            if self._size(history) > sizes[history]:
                os.truncate(self.path / f"{history}.jsonl", sizes[history])

    def _header(self, checkpoint: Path) -> Mapping[str, Any] | str:
        """A checkpoint's header, or why it cannot be resumed; RunError if it is not this run's.

        A checksum proves no more than that nothing was damaged: anybody can write one.
        """
        try:
            header = require(arrays.read_header(checkpoint), HEADER, where=checkpoint)
            require(header["sizes"], SIZES, where=f"{checkpoint}, sizes")
            require(header.get("spent") or {}, SPENT, where=f"{checkpoint}, spent")
            if unknown := sorted(header["sizes"].keys() - set(HISTORIES)):
                raise ValueError(
                    f"{checkpoint}: sizes names {unknown[0]!r}, which is not a history"
                )
        except arrays.DamagedArrays as error:
            return str(error)
        except ValueError as error:
            raise RunError(
                f"{error}; delete it, then --resume uses the previous checkpoint"
            ) from error
        if found := differing_field(header["settings"], self._settings):
            name, theirs, ours = found
            raise RunError(
                f"{checkpoint} belongs to other settings: {name} is {shown(theirs)} in it "
                f"and {shown(ours)} in config.json: restore the original file, or start a "
                "new run with another --out"
            )
        for history, size in header["sizes"].items():
            if self._size(history) < size:
                return (
                    f"{self.path / history}.jsonl: lines that {checkpoint.name} refers to are "
                    "missing; restore the file, or start a new run with another --out"
                )
        return header

    def _checkpoints(self, stage: str = "*") -> list[Path]:
        """In the order in which they were written."""
        return sorted((self.path / "checkpoints").glob(f"{6 * '[0-9]'}-{stage}.ckpt"))

    def _size(self, history: str) -> int:
        path = self.path / f"{history}.jsonl"
        return path.stat().st_size if path.exists() else 0


def _arrays_of(checkpoint: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Its leaves and its header; RunError where it is damaged."""
    try:
        return arrays.read_arrays(checkpoint)
    except ValueError as error:
        raise RunError(str(error)) from error


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _stage(path: Path) -> str:
    return path.stem.partition("-")[2]


def refuse_existing(path: Path) -> None:
    """RunError with both remedies if `path` exists already."""
    if path.exists():
        raise RunError(f"{path} exists already: add --resume to resume it, or choose another --out")


def refuse_fine_tuned(path: Path) -> None:
    """RunError with the right command if `path` is a fine-tuning that has not finished."""
    if (path / "result.json").is_file() or not (path / "config.json").is_file():
        return
    if found := read_config(path).get("finetune"):
        raise RunError(
            f"{path} has not finished; resume it: saqrl finetune {found['parent']} --out "
            f"{path} --resume"
        )


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run; RunError where the folder holds none."""
    file = path / "config.json"
    if not file.is_file():
        if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
            raise RunError(
                f"{path} has no config.json any more: restore it, or delete the folder and "
                "train again"
            )
        raise RunError(f"{path} is not a run folder (it has no config.json)")
    return _read(file, CONFIG)


def read_result(path: Path) -> dict[str, Any]:
    """result.json of a finished run; RunError where it has not finished."""
    file = path / "result.json"
    if not file.is_file():
        read_config(path)
        refuse_fine_tuned(path)
        raise RunError(f"{path} has not finished; resume it: saqrl train --out {path} --resume")
    return _read(file, RESULT)


def _read(file: Path, rules: Mapping[str, Rule]) -> dict[str, Any]:
    try:
        return read_record(file, rules)
    except ValueError as error:
        raise RunError(str(error)) from error


def policy_folder(path: Path, step: int | None = None) -> Path:
    """The folder of the run's policy, or of the one that it kept at a step of its agent.

    RunError if no policy was kept at that step (with the steps that exist), or for a link.
    """
    folder = path / "policy"
    if step is not None:
        if step not in (kept := kept_steps(path)):
            there = f"it kept {', '.join(map(str, kept))}" if kept else "train with --keep-every"
            raise RunError(f"{path} kept no policy at step {step}: {there}")
        folder = path / "policies" / str(step)
    for place in (folder, folder.parent) if step is not None else (folder,):
        if place.is_symlink():
            raise _linked(place)
    return folder


def kept_steps(path: Path) -> list[int]:
    """The steps of the agent whose policies a run kept in addition to the last, in order."""
    folders = (file.parent.name for file in path.glob("policies/*/policy.json"))
    return sorted(int(name) for name in folders if name.isdecimal() and len(name) < 16)


def read_history(path: Path, history: str) -> list[dict[str, Any]]:
    """The records of metrics.jsonl or evaluations.jsonl, oldest first.

    An incomplete last line (still being written, or cut by a kill) is left out.
    """
    file = path / f"{history}.jsonl"
    try:
        content = read_regular(file, at_most=LARGEST_HISTORY)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise RunError(str(error)) from error
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        where = f"{file}, line {number}"
        if len(line) > LONGEST_LINE:
            raise RunError(f"{where}: {len(line):,} bytes; at most {LONGEST_LINE:,} are allowed")
        try:
            records.append(require(parsed(line, where), PLACE, where=where))
        except ValueError as error:
            raise RunError(str(error)) from error
    return records


def _json_lines(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(record, indent=indent) + "\n").encode()


def hold(path: Path) -> FileLock:
    """Hold a folder until the lock is released, at the latest when this process ends."""
    file = path / ".lock"
    if file.is_symlink():
        raise _linked(file)
    _refuse_second_name(file)
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        holder = file.read_text().strip()
        by = f" ({holder})" if holder else ""
        raise RunError(
            f"{path} is in use by another process{by}; wait for it or stop it"
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the name is a courtesy, the lock holds
        file.write_text(f"process {os.getpid()} on {platform.node()}\n")
    return lock


def is_held(path: Path) -> bool:
    """Whether a process has the folder now, as far as this machine can tell."""
    file = path / ".lock"
    if file.is_symlink() or not file.is_file():
        return False
    try:
        with FileLock(file, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _remove_unborn(path: Path) -> None:
    """Remove leftovers of processes that were killed while they made this run folder."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(RunError, OSError):  # another process is making it
            if (aside / ".lock").is_file():
                hold(aside).release()
            shutil.rmtree(aside)


def _linked(path: Path) -> RunError:
    return RunError(
        f"{path} is a symbolic link, which is not allowed in a run folder: copy the file there"
    )


def _refuse_links(path: Path) -> None:
    """RunError if writing in an untrusted run folder could change files outside of it.

    That is the case for any link, pipe or device, and for a history that is a hard link. W&B's
    folder is not checked, because it has links of its own.
    """
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            place = Path(folder, name)
            if place.is_symlink():
                raise _linked(place)
            if name in files:
                try:
                    require_regular(place, at_most=LARGEST_ENTRY)
                except ValueError as error:
                    raise RunError(str(error)) from error
        folders[:] = [name for name in folders if name != "wandb"]
    for history in HISTORIES:
        _refuse_second_name(path / f"{history}.jsonl")


def _refuse_second_name(file: Path) -> None:
    """RunError for a hard link: writing it here would change the other file."""
    if file.exists() and file.stat().st_nlink > 1:
        raise RunError(
            f"{file} is a hard link to another file, which is not allowed in a run folder: copy "
            "the file there"
        )


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # another process has put something there
            folder.rmdir()
