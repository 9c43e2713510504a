"""`saqrl sweep`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import Word, parse
from saqrl.training.interrupts import resumed_by
from saqrl.training.progress import Reporter

if TYPE_CHECKING:
    from saqrl.studies.trials import Job, Outcome


@dataclass
class Sweep:
    """Train with many settings: a grid, random search and seeds, from a TOML file."""

    file: Word
    """TOML file with sections [train], [grid], [random], and seeds = [...]"""
    out: str | None = None
    """folder of the runs; default: from the file, or sweeps/FILE"""
    workers: int = 1
    """number of parallel trials on this machine"""
    cores: int | None = None
    """cores per trial; default: all cores divided by the workers"""
    engine: Literal["local", "ray"] = "local"
    """where trials run; ray: the cluster at RAY_ADDRESS, or one started here"""
    dry_run: bool = False
    """list the trials and stop"""
    json: bool = False
    """last line of stdout: the table and every trial, as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Sweep, arguments)
    from saqrl.arrays import write_atomically
    from saqrl.studies import trials
    from saqrl.studies.sweep import read_plan
    from saqrl.training.data import require_unchanged
    from saqrl.training.run_folder import hold

    for name in ("workers", "cores"):
        if (given := getattr(asked, name)) is not None and given < 1:
            raise ValueError(f"{name} is {given}; it must be at least 1")
    file = Path(asked.file)
    plan = read_plan(file)
    out = Path(asked.out) if asked.out else plan.out
    jobs = trials.jobs_of(plan, out)
    if asked.dry_run:
        for job in jobs:
            print(job.trial.name)
        return 0
    (out / "logs").mkdir(parents=True, exist_ok=True)
    lock = hold(out)
    try:
        require_unchanged((job.folder, job.settings) for job in jobs)
        write_atomically(out / "sweep.toml", file.read_bytes())
        with resumed_by("the same command"):
            outcomes = _run(jobs, asked)
        rows = trials.summarize(outcomes, plan)
        record = trials.table_json(outcomes, rows)
        text = trials.table_text(rows)
        write_atomically(out / "table.txt", f"{text}\n".encode())
        write_atomically(out / "table.csv", trials.table_csv(outcomes, plan).encode())
        write_atomically(out / "table.json", json.dumps(record, indent=2).encode())
    finally:
        lock.release()
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    say()
    say(text)
    for outcome in failed:
        say(f"failed: {outcome.trial.name}: {outcome.error}")
    say(f"tables: {out}/table.txt, table.csv, table.json")
    if failed:
        say(f"{len(failed)} of {len(outcomes)} trials failed; the same command tries them again")
    if asked.json:
        print_json(record)
    return 1 if failed else 0


def _run(jobs: "Sequence[Job]", asked: Sweep) -> "list[Outcome]":
    """The outcomes in the plan's order; what has finished before is not run again."""
    from saqrl.studies import trials

    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        if (found := trials.outcome_on_disk(job.trial, job.folder)) is not None:
            outcomes[job.trial.name] = found
    waiting = [job for job in jobs if job.trial.name not in outcomes]
    cores = asked.cores or max(1, _cores_here() // asked.workers)
    reporter = Reporter()
    with reporter.stage("sweep", len(jobs), unit="trials", done=len(outcomes)) as update:

        def finished(outcome: "Outcome") -> None:
            outcomes[outcome.trial.name] = outcome
            reporter.say(f"{outcome.trial.name}: {trials.words_of(outcome)}")
            update(len(outcomes), "")

        if asked.engine == "ray":
            trials.run_on_ray(waiting, cores=cores, finished=finished)
        else:
            trials.run_here(waiting, workers=asked.workers, cores=cores, finished=finished)
    return [outcomes[job.trial.name] for job in jobs]


def _cores_here() -> int:
    if hasattr(os, "sched_getaffinity"):  # what `taskset` or a container leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
