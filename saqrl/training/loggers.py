"""The histories in the forms that other tools read, beside the JSON lines of a run.

The JSON lines are the record. A logger tells it again, live; where a run is resumed it starts from
nothing and is told what is on record, so that it holds neither gaps nor doubles either.
"""

import csv
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from saqrl.installation import install
from saqrl.registry import closest
from saqrl.training.run_folder import Logger, read_config

# What of a record says where it belongs; the rest is what was measured.
_PLACE = ("stage", "step")
Histories = Mapping[str, Sequence[Mapping[str, Any]]]


def open_loggers(names: Sequence[str], path: Path) -> list[Logger]:
    """The loggers named, and those that the run folder `path` shows to have been used before.

    Nothing is written yet. ValueError for a name that is not known, ImportError with what to
    install.
    """
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"unknown logger {name!r}; {closest(name, LOGGERS)}")
    used = [name for name in LOGGERS if name in names or (path / name).is_dir()]
    return [LOGGERS[name](path) for name in used]


class TensorBoard:
    """Event files in PATH/tensorboard: a scalar for every number, by the step of its stage."""

    def __init__(self, path: Path):
        self._folder = path / "tensorboard"
        self._package = _import("tensorboardX", "tensorboard")

    def begin(self, histories: Histories) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = self._package.SummaryWriter(str(self._folder), flush_secs=10)
        _tell(self, histories)

    def record(self, history: str, record: Mapping[str, Any]) -> None:
        for name, value in _scalars(history, record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run kept in PATH/wandb, to be sent with `wandb sync`; WANDB_MODE=online sends it live.

    Each stage has its own horizontal axis, STAGE/step. WANDB_PROJECT and WANDB_ENTITY count.
    """

    def __init__(self, path: Path):
        self._path = path
        self._package = _import("wandb", "wandb")

    def begin(self, histories: Histories) -> None:
        folder = self._path / "wandb"
        folder.mkdir(exist_ok=True)
        name = folder / "id"
        if not name.is_file():
            name.write_text(uuid.uuid4().hex[:12])
        for earlier in folder.glob("offline-run-*"):
            shutil.rmtree(earlier)
        self._run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", "saqrl"),
            id=name.read_text().strip(),
            name=self._path.name,
            dir=str(self._path),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            config=read_config(self._path),
            settings=self._package.Settings(console="off", silent=True, x_disable_stats=True),
        )
        # What a killed run has sent already W&B drops by itself: these steps are behind it.
        self._told = 0
        self._axes: set[str] = set()
        _tell(self, histories)

    def record(self, history: str, record: Mapping[str, Any]) -> None:
        stage = record["stage"]
        if stage not in self._axes:
            self._axes.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        values = dict(_scalars(history, record)) | {f"{stage}/step": record["step"]}
        self._run.log(values, step=self._told)
        self._told += 1

    def close(self) -> None:
        self._run.finish()


class CSV:
    """PATH/csv/STAGE.csv and STAGE-evaluations.csv: a line for every record."""

    def __init__(self, path: Path):
        self._folder = path / "csv"

    def begin(self, histories: Histories) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._columns: dict[str, list[str]] = {}
        _tell(self, histories)

    def record(self, history: str, record: Mapping[str, Any]) -> None:
        ending = "" if history == "metrics" else f"-{history}"
        file = f"{record['stage']}{ending}.csv"
        row = {name: _cell(value) for name, value in record.items() if name != "stage"}
        rows, columns = self._rows.setdefault(file, []), self._columns.setdefault(file, [])
        rows.append(row)
        unseen = [name for name in row if name not in columns]
        columns += unseen
        with (self._folder / file).open("w" if unseen else "a", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            if unseen:  # another set of columns: the table is written anew under its new head
                writer.writeheader()
            writer.writerows(rows if unseen else [row])

    def close(self) -> None:
        pass


LOGGERS: Mapping[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "csv": CSV}


def _tell(logger: Logger, histories: Histories) -> None:
    for history, records in histories.items():
        for record in records:
            logger.record(history, record)


def _scalars(history: str, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(STAGE/NAME, value) of the numbers; those of evaluations are STAGE/evaluation/NAME."""
    middle = "" if history == "metrics" else "evaluation/"
    for name, value in record.items():
        if name not in _PLACE and isinstance(value, (int, float)):
            yield f"{record['stage']}/{middle}{name}", float(value)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _import(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"--loggers {extra} needs {package}: {install(extra)}") from error
