"""`saqrl sweep`."""

import contextlib
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from saqrl.arrays import write_atomically
from saqrl.commands.output import print_json, say
from saqrl.commands.train import read_flags
from saqrl.registry import closest
from saqrl.studies import sweep
from saqrl.studies.sweep import Job, Outcome, Plan, Trial
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import hold
from saqrl.training.settings import Settings, first_difference
from saqrl.training.train import saved_settings

# Flags of train that decide which others there are, and those that the sweep gives itself.
CHOICES = ("preset", "agent", "quantizer", "actions", "dataset", "env")
OURS = ("out", "resume", "json")


@dataclass
class Sweep:
    """Train with many settings: a grid, random search and seeds, from a TOML file."""

    file: Annotated[str, tyro.conf.Positional]
    """what to train: sections [train], [grid], [random], and seeds = [...]"""
    out: str | None = None
    """folder of the runs; default: as the file says, or sweeps/FILE"""
    workers: int = 1
    """trials at once on this machine"""
    cores: int | None = None
    """cores a trial; default: this machine's, shared by the workers"""
    engine: Literal["local", "ray"] = "local"
    """where trials run; ray: the cluster at RAY_ADDRESS, or one started here"""
    dry_run: bool = False
    """say what would be trained, and stop"""
    json: bool = False
    """last line of stdout: the table and every trial, as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = tyro.cli(
        Sweep, args=list(arguments), prog="saqrl sweep", config=(tyro.conf.FlagCreatePairsOff,)
    )
    for name in ("workers", "cores"):
        if (given := getattr(asked, name)) is not None and given < 1:
            raise ValueError(f"{name} is {given}; at least 1")
    file = Path(asked.file)
    plan = sweep.read_plan(file)
    out = Path(asked.out) if asked.out else plan.out
    jobs = _check(plan, out)
    if asked.dry_run:
        for job in jobs:
            print(job.trial.name)
        return 0
    (out / "logs").mkdir(parents=True, exist_ok=True)
    with hold(out):
        write_atomically(out / "sweep.toml", file.read_bytes())
        outcomes = _run(jobs, asked)
        rows = sweep.summarize(outcomes, plan)
        record = sweep.table_json(outcomes, rows)
        text = sweep.table_text(rows)
        write_atomically(out / "table.txt", f"{text}\n".encode())
        write_atomically(out / "table.csv", sweep.table_csv(outcomes, plan).encode())
        write_atomically(out / "table.json", json.dumps(record, indent=2).encode())
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


def _run(jobs: Sequence[Job], asked: Sweep) -> list[Outcome]:
    """The outcomes in the plan's order; what has finished before is not run again."""
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        if (found := sweep.outcome_on_disk(job.trial, job.folder)) is not None:
            outcomes[job.trial.name] = found
    waiting = [job for job in jobs if job.trial.name not in outcomes]
    cores = asked.cores or max(1, _cores_here() // asked.workers)
    reporter = Reporter()
    with reporter.stage("sweep", len(jobs), unit="trials", done=len(outcomes)) as update:

        def finished(outcome: Outcome) -> None:
            outcomes[outcome.trial.name] = outcome
            note = f"failed: {outcome.error}" if outcome.error else _score(outcome)
            reporter.say(f"{outcome.trial.name}: {note}")
            update(len(outcomes), "")

        if asked.engine == "ray":
            sweep.run_on_ray(waiting, cores=cores, finished=finished)
        else:
            sweep.run_here(waiting, workers=asked.workers, cores=cores, finished=finished)
    return [outcomes[job.trial.name] for job in jobs]


def _cores_here() -> int:
    if hasattr(os, "sched_getaffinity"):  # what `taskset` or a container leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _score(outcome: Outcome) -> str:
    found = sweep.score_of(outcome.result or {}, None)
    return "done" if found is None else f"{found[0]} {found[1]:.4g}"


def _check(plan: Plan, out: Path) -> list[Job]:
    """Every trial as a process; ValueError where `saqrl train` would refuse its flags.

    Also where a folder of this name holds a run with other settings.
    """
    defaults: dict[tuple[str, ...], Mapping[str, Any]] = {}
    jobs = []
    for trial in plan.trials:
        choices = tuple(
            word for name in CHOICES if name in trial.flags for word in _words(trial, name, None)
        )
        if choices not in defaults:
            defaults[choices] = _flag_defaults(choices)
        known = defaults[choices]
        for name in trial.flags:
            if name not in known:
                agent = f" with agent {known['agent']} and quantizer {known['quantizer']}"
                raise ValueError(
                    f"saqrl train has no field {name!r}{agent}; {closest(name, known)}"
                )
        words = [word for name in trial.flags for word in _words(trial, name, known[name])]
        settings = _parse(words, trial)
        folder = out / trial.name
        if (folder / "config.json").is_file() and (
            difference := first_difference(saved_settings(folder), settings)
        ):
            raise ValueError(f"{folder}: {difference}: name another --out for the changed sweep")
        words = ["train", *words, "--out", str(folder), "--resume"]
        jobs.append(Job(trial, tuple(words), folder, out / "logs" / f"{trial.name}.log"))
    return jobs


def _words(trial: Trial, name: str, default: Any) -> list[str]:
    """The words of one flag; a truth value is told by the flag's presence."""
    value, flag = trial.flags[name], name.replace("_", "-")
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; true or false")
        if value == default:
            return []
        section, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{section}{dot}no-{last}"]
    return [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def _flag_defaults(choices: Sequence[str]) -> dict[str, Any]:
    """The flags of `saqrl train` by dotted name, with their values where only `choices` is said."""
    asked = _quietly(choices, "the flags")[0]
    found: dict[str, Any] = {}
    for field in fields(asked):
        value = getattr(asked, field.name)
        if is_dataclass(value):
            section = field.name.removesuffix("_fields")
            found |= {f"{section}.{f.name}": getattr(value, f.name) for f in fields(value)}
        elif field.name not in OURS:
            found[field.name] = value
    return found


def _parse(words: Sequence[str], trial: Trial) -> Settings:
    return _quietly(words, f"trial {trial.name}")[1]


def _quietly(words: Sequence[str], what: str) -> tuple[Any, Settings]:
    """`read_flags`, its complaint in a box turned into one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return read_flags(words)
    except SystemExit as error:
        raise ValueError(f"{what}: {_complaint(said.getvalue())}") from error
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _complaint(box: str) -> str:
    """The text of tyro's box: what stands under its title, up to the next rule."""
    stripped = (line.strip(" │╭╮╰╯─-\t") for line in box.splitlines())
    blocks = [list(lines) for filled, lines in itertools.groupby(stripped, bool) if filled]
    if not blocks:
        return "cannot be parsed"
    # The title has a rule under it, or is the box's own upper edge.
    text = blocks[0][1:] or (blocks[1] if len(blocks) > 1 else blocks[0])
    return " ".join(text)
