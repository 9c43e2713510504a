"""The trials of a sweep: processes of `saqrl train`, here or on a Ray cluster, and their table.

Nothing of one trial can disturb another; what has finished is not run again.
"""

import csv
import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.environments.packages import import_packages
from saqrl.studies.page import to_columns
from saqrl.studies.sweep import Plan, Trial, plain
from saqrl.training.flags import typed_as
from saqrl.training.interrupts import ENDS_WITH_INPUT, stop_if_asked
from saqrl.training.presets import settings_from
from saqrl.training.recipe import applies
from saqrl.training.settings import Settings, first_difference
from saqrl.training.train import saved_settings

# What a trial is judged by where the file names nothing: the first that its task reports.
SCORES = ("success_rate", "normalized_score", "return_mean")
# Flags of train that the sweep gives itself, and those that are no settings.
OURS = ("out", "resume", "json", "seeds")
BESIDE = ("loggers",)


@dataclass(frozen=True)
class Job:
    """A trial as a process: the words after `saqrl`, and where what it says goes."""

    trial: Trial
    words: tuple[str, ...]
    folder: Path
    log: Path
    settings: Settings


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: a result, or the one line that says why there is none."""

    trial: Trial
    folder: Path
    result: Mapping[str, Any] | None
    error: str | None = None


Finished = Callable[[Outcome], None]


def jobs_of(plan: Plan, out: Path) -> list[Job]:
    """Every trial as a process; ValueError where `saqrl train` would refuse its flags.

    Also where a folder of this name holds a run with other settings. Without `recipe` in the file
    it is `plain`: trials differ only in what varies.
    """
    jobs = []
    for trial in plan.trials:
        folder = out / trial.name
        flags = {"recipe": "plain", **trial.flags}
        try:
            said = {name: value for name, value in flags.items() if name not in BESIDE}
            if ours := [name for name in said if name in OURS]:
                raise ValueError(f"the sweep sets --{ours[0]} itself: remove it from the file")
            settings = settings_from(said)
        except ValueError as error:
            raise ValueError(f"trial {trial.name}: {error}") from error
        if (folder / "config.json").is_file():
            saved = saved_settings(folder)
            changed = "choose another --out for the changed sweep"
            try:  # what the recipe chose stays; a flag taken out of the file is not noticed
                asked = settings_from(said, base=saved) if applies(said) else settings
            except ValueError as error:
                raise ValueError(f"{folder}: {error}: {changed}") from error
            if difference := first_difference(saved, asked):
                raise ValueError(f"{folder}: {difference}: {changed}")
        words = [word for flag in flags.items() for word in typed_as(*flag)]
        words = ["train", *words, "--out", str(folder), "--resume"]
        log = out / "logs" / f"{trial.name}.log"
        jobs.append(Job(trial, tuple(words), folder, log, settings))
    return jobs


def outcome_on_disk(trial: Trial, folder: Path) -> Outcome | None:
    """Of a trial that has finished before; None where it has not."""
    file = folder / "result.json"
    return Outcome(trial, folder, json.loads(file.read_text())) if file.is_file() else None


def run_here(jobs: Sequence[Job], *, workers: int, cores: int, finished: Finished) -> None:
    """At most `workers` trials at once on this machine, `cores` threads each."""
    waiting, running = list(reversed(jobs)), dict[subprocess.Popen[bytes], Job]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                running[_start(job.words, job.log, cores)] = job
            for process in [process for process in running if process.poll() is not None]:
                finished(_outcome(running.pop(process), _end(process)))
            stop_if_asked()
            time.sleep(0.05)
    finally:
        for process in running:  # interrupted: what they have done stays, to be resumed
            _end(process)


def run_on_ray(jobs: Sequence[Job], *, cores: int, finished: Finished) -> None:
    """All trials as tasks of the Ray cluster at RAY_ADDRESS, else of one started here.

    Each asks for `cores` CPUs; the folders must lie on a file system that all machines see.
    ImportError with what to install.
    """
    import_packages("--engine ray", ("ray",), extra="ray")
    import ray

    ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    try:
        execute = ray.remote(num_cpus=cores, max_retries=0)(_execute)
        waiting = {
            execute.remote(job.words, str(job.log.absolute()), cores, os.getcwd()): job
            for job in jobs
        }
        while waiting:
            stop_if_asked()
            for done in ray.wait(list(waiting), num_returns=1, timeout=0.5)[0]:
                job = waiting.pop(done)
                try:
                    finished(_outcome(job, ray.get(done)))
                except ray.exceptions.RayError as error:
                    text = f"Ray: {type(error).__name__}: {str(error).splitlines()[0]}"
                    finished(Outcome(job.trial, job.folder, None, text))
    finally:
        ray.shutdown()


def _execute(words: Sequence[str], log: str, cores: int, place: str) -> int:
    """One trial on whatever machine this is; its exit status."""
    os.chdir(place)
    process = _start(words, Path(log), cores)
    try:
        return process.wait()
    finally:
        _end(process)


def _start(words: Sequence[str], log: Path, cores: int) -> subprocess.Popen[bytes]:
    """A trial that ends with this process, whatever this one ends with."""
    # NPROC is what XLA takes the size of its thread pools from.
    threads = {"NPROC": str(cores), "OMP_NUM_THREADS": str(cores), ENDS_WITH_INPUT: "1"}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "saqrl.cli", *words],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | threads,
        )


def _end(process: subprocess.Popen[bytes]) -> int:
    """Its exit status; it is killed where it has not ended."""
    with process:
        process.kill()
    return int(process.returncode)


def _outcome(job: Job, status: int) -> Outcome:
    found = outcome_on_disk(job.trial, job.folder)
    if status == 0 and found is not None:
        return found
    lines = job.log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith("saqrl: error: ")]
    if status < 0:
        why = f"killed by {signal.Signals(-status).name}"
        why += " (out of memory?)" if -status == signal.SIGKILL else ""
    elif said:
        why = said[-1].removeprefix("saqrl: error: ")
    else:
        why = f"exit status {status}: {lines[-1].strip() if lines else 'no output'}"
    return Outcome(job.trial, job.folder, None, f"{why} (see {job.log})")


def score_of(result: Mapping[str, Any], name: str | None) -> tuple[str, float] | None:
    """(name, value) of a result's score: the mean of the last three evaluations where it has one.

    Without a name the first of `SCORES` that is there; None where there is none.
    """
    means = result.get("mean_of_last_three") or {}
    for candidate in (name,) if name else SCORES:
        value: Any = means.get(candidate, result)
        for part in candidate.split(".") if value is result else ():
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            return candidate, float(value)
    return None


def words_of(outcome: Outcome) -> str:
    """What became of a trial, for a person."""
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    found = score_of(outcome.result or {}, None)
    return "done" if found is None else f"{found[0]} {found[1]:.4g}"


def summarize(outcomes: Sequence[Outcome], plan: Plan) -> list[dict[str, Any]]:
    """A row for every setting of what varies, over its seeds: failed ones first, the best last."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(json.dumps(outcome.trial.varied), []).append(outcome)
    rows = []
    for members in groups.values():
        results = [member.result for member in members if member.result is not None]
        found = [score for result in results if (score := score_of(result, plan.score))]
        values = [value for _, value in found]
        rows.append(
            {
                **members[0].trial.varied,
                "score": found[0][0] if found else plan.score,
                "mean": float(np.mean(values)) if values else None,
                "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "seeds": len(results),
                "failed": len(members) - len(results),
                "seconds": sum(float(result.get("wall_seconds", 0)) for result in results),
            }
        )
    sign = 1 if plan.best == "highest" else -1
    return sorted(rows, key=lambda row: -math.inf if row["mean"] is None else sign * row["mean"])


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in columns."""
    header = tuple(rows[0]) if rows else ()
    return to_columns(header, [tuple(_cell(row[name]) for name in header) for row in rows])


def table_csv(outcomes: Sequence[Outcome], plan: Plan) -> str:
    """A line for every trial."""
    lines = []
    for outcome in outcomes:
        result = outcome.result or {}
        score, value = score_of(result, plan.score) or (plan.score, None)
        line = {**outcome.trial.varied, "seed": outcome.trial.seed, "score": score, "value": value}
        line |= {"seconds": result.get("wall_seconds"), "run": str(outcome.folder)}
        lines.append(line | {"error": outcome.error})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def table_json(outcomes: Sequence[Outcome], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything: the rows of the table, and every trial with its result or error."""
    trials = [
        {
            "varied": dict(outcome.trial.varied),
            "seed": outcome.trial.seed,
            "run": str(outcome.folder),
            "result": outcome.result,
            "error": outcome.error,
        }
        for outcome in outcomes
    ]
    return {"table": list(rows), "trials": trials}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else plain(value)
