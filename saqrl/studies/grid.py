"""A grid of methods, data sets and seeds: each cell an ordinary run folder, one table for all.

OUT/table.jsonl          a line per finished or failed cell; the last line of a cell counts
OUT/cells/TASK/METHOD-seedN/   the run folders

A stopped grid goes on where it was, and a larger one reuses what is there. Cells that quantize
the same data in the same way with the same seed share their quantizer (and prior).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from saqrl.agents.bc import BC
from saqrl.registry import AGENTS, BASELINES, closest
from saqrl.studies.methods import Method
from saqrl.studies.shared_codes import share_codes
from saqrl.studies.table import TABLE, append_row, identity, key_of, read_table, row_of
from saqrl.training.data import load_data, require_unchanged
from saqrl.training.flags import changed
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import hold
from saqrl.training.settings import Settings, first_difference
from saqrl.training.train import saved_settings, train


@dataclass(frozen=True)
class Task:
    """A data set, with the preset whose settings it is learned with."""

    name: str
    dataset: str
    preset: str = "default"


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    task: str
    method: Method
    settings: Settings
    idea: str = ""
    """What a trial changes of the method (`tuning`)."""

    @property
    def name(self) -> str:
        return f"{self.method.name}, {self.idea}" if self.idea else self.method.name

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.name, self.seed

    def folder(self, out: Path) -> Path:
        name = self.name.replace(", ", "-").replace(" ", "-")
        return out / "cells" / self.task / f"{name}-seed{self.seed}"


def plan(
    tasks: Sequence[Task],
    compared: Sequence[Method],
    seeds: Sequence[int],
    *,
    changes: Mapping[str, Any],
    evaluations: int = 5,
    assignments: Sequence[str] = (),
    chosen: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
) -> list[Cell]:
    """The cells, task after task and seed after seed; `changes` are flags of `saqrl train`.

    `chosen` are further flags of a task and method, the last word. Of everything that acts each
    run of a task has equally many gradient steps (see `_shares`); a quantizer's are its own.
    """
    names = [task.name for task in tasks]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two datasets have the name {repeated[0]!r}: give one as PRESET=SPEC")
    if evaluations < 1:
        raise ValueError(f"evaluations is {evaluations}; it must be at least 1")
    cells = {}
    own = {name: value for name, value in changes.items() if name != "steps"}
    for task, seed, method in itertools.product(tasks, seeds, compared):
        settings = build_settings(
            task.preset, agent=method.agent, quantizer="vqvae", actions=method.actions
        )
        total = changes.get("steps") or _default_steps(task)
        said = {"dataset": task.dataset, "seed": seed, **_shares(settings, total)}
        settings = assign(changed(settings, said | {"baseline": False, **own}), assignments)
        every = math.ceil(settings.agent.steps / evaluations)
        settings = changed(settings, {"eval_every": every})
        if method.act == settings.evaluation.act:  # its own way here: no other method
            method = replace(method, act=None)
        if method.act:
            settings = changed(settings, {"act": method.act})
        settings = changed(settings, (chosen or {}).get((task.name, method.name), {}))
        cell = Cell(task.name, method, settings)
        cells[cell.key] = cell
    return list(cells.values())


def _default_steps(task: Task) -> int:
    """The most that an agent and its prior have by default in the task's preset.

    It does not depend on what is compared, so that a grid can grow.
    """
    found = [build_settings(task.preset, agent=name) for name in ("bc", "cql", "iql", "brac")]
    return max(s.agent.steps + (s.prior.steps if _learns_prior(s) else 0) for s in found)


def _learns_prior(settings: Settings) -> bool:
    """Whether the prior is a stage of its own: SAQ-BC is that prior itself."""
    return settings.quantized and not isinstance(settings.agent, BC)


def _shares(settings: Settings, total: int) -> dict[str, int]:
    """How a run spends its steps: a prior, which acts too, has its own of them, at most a third."""
    if not _learns_prior(settings):
        return {"steps": total}
    prior = max(1, min(settings.prior.steps, total // 3))
    return {"steps": max(1, total - prior), "prior.steps": prior}


def assign(settings: Settings, assignments: Sequence[str]) -> Settings:
    """The settings with `OWNER.FIELD=VALUE` applied, each where its owner is in play.

    OWNER is quantizer, prior, or a method: saq-iql on codes, iql without.
    ValueError names what is malformed or unknown, and the choices of a field that has a few.
    """
    method = ("saq-" if settings.quantized else "") + settings.agent_name
    owners = {"quantizer": "quantizer", "prior": "prior", method: "agent"}
    known = {"quantizer", "prior", *BASELINES, *(f"saq-{name}" for name in AGENTS)}
    for assignment in assignments:
        left, equals, text = assignment.partition("=")
        owner, dot, name = left.partition(".")
        if not (equals and dot):
            raise ValueError(
                f"--set {assignment}: expected OWNER.FIELD=VALUE, for example iql.beta=2"
            )
        if owner not in known:
            raise ValueError(f"--set {assignment}: unknown {owner!r}; {closest(owner, known)}")
        if owner in owners:
            try:
                settings = changed(settings, {f"{owners[owner]}.{name}": text})
            except ValueError as error:
                raise ValueError(f"--set {assignment}: {error}") from error
    return settings


def run_grid(
    cells: Sequence[Cell],
    out: Path,
    reporter: Reporter,
    *,
    sharing: Sequence[Cell] = (),
) -> list[dict[str, Any]]:
    """Train what has not finished, and return the last row of every cell.

    Codes are taken from equal cells, of these and of `sharing`, where those have finished.
    A cell that fails is reported, recorded and skipped; the next call tries it again. Before
    anything is trained: ValueError where a folder holds a run with other settings or of other data,
    a policy could be scored in no environment, or another process trains this grid; what
    `load_dataset` raises where the data cannot be read.
    """
    for cell in cells:
        _refuse_other_settings(cell, out)
    rows = {key_of(row): row for row in read_table(out / TABLE)}
    _refuse_unscored([cell for cell in cells if "error" in rows.get(cell.key, {"error": None})])
    require_unchanged((cell.folder(out), cell.settings) for cell in cells)
    out.mkdir(parents=True, exist_ok=True)
    lock = hold(out)
    try:
        return _train_all(cells, out, reporter, sharing)
    finally:
        lock.release()


def _train_all(
    cells: Sequence[Cell], out: Path, reporter: Reporter, sharing: Sequence[Cell]
) -> list[dict[str, Any]]:
    rows = {key_of(row): row for row in read_table(out / TABLE)}
    for number, cell in enumerate(cells, start=1):
        known = rows.get(cell.key)
        if known is not None and "error" not in known:
            continue
        reporter.say(f"[{number}/{len(cells)}] {cell.task}: {cell.name}, seed {cell.seed}")
        row = identity(cell.task, cell.name, cell.settings)
        try:
            row |= _finished(cell, sharing or cells, out, quiet=reporter.console.quiet)
        except Exception as error:  # whatever one cell fails with, the others are worth having
            words = " ".join(str(error).split()) or type(error).__name__
            row["error"] = f"{type(error).__name__}: {words}"
            reporter.say(f"  failed: {words}")
        else:
            reporter.say(f"  {row['measure']} {row['score']:.1f} ({row['wall_seconds']:.0f} s)")
        append_row(out / TABLE, row)
        rows[cell.key] = row
        # Every cell has its own programs; those of a hundred exhaust the process's mappings.
        jax.clear_caches()  # type: ignore[no-untyped-call]
    return [rows[cell.key] for cell in cells]


def _finished(cell: Cell, cells: Sequence[Cell], out: Path, *, quiet: bool) -> dict[str, Any]:
    """What the cell's run scored, trained first where it has not finished."""
    folder = cell.folder(out)
    if not (folder / "result.json").exists():
        if not folder.exists():
            share_codes(cell.settings, folder, [(c.settings, c.folder(out)) for c in cells])
        train(cell.settings, folder, resume=folder.exists(), reporter=Reporter(quiet=quiet))
    return row_of(folder) | {"run": str(folder.relative_to(out))}


def _refuse_other_settings(cell: Cell, out: Path) -> None:
    folder = cell.folder(out)
    if (folder / "config.json").exists():
        difference = first_difference(saved_settings(folder), cell.settings)
        if difference:
            raise ValueError(f"{folder}: {difference}: choose another --out, or remove that folder")


def _refuse_unscored(cells: Sequence[Cell]) -> None:
    """Of all cells with the same data one is looked at: reading is what tells the environment."""
    unnamed = [cell.settings for cell in cells if cell.settings.data.env is None]
    for settings in {s.data: s for s in unnamed}.values():
        data = load_data(settings)
        if data.environment is None:
            raise ValueError(
                f"{settings.data.dataset} names no environment, and methods are compared by "
                "their scores in one: pass --env ID, or a preset with an environment as "
                "PRESET=SPEC (saqrl presets). Without a simulator, train each method once "
                "and compare the skills that saqrl ls shows"
            )
