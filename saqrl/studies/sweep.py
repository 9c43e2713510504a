"""A sweep: runs that differ in a few fields, planned from a TOML file, each in its own folder.

A plan is a pure function of the file, so a sweep that was stopped is the same sweep when it is
started again: finished trials stay, the others go on. Trials are processes of `saqrl train`, here
or on a Ray cluster; nothing of one can disturb another.
"""

import csv
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saqrl.registry import closest

SECTIONS = ("out", "score", "best", "seeds", "train", "grid", "random")
DISTRIBUTIONS = ("uniform", "log_uniform", "integers", "choice")
# What a trial is judged by where the file names nothing: the first that its task reports.
SCORES = ("success_rate", "normalized_score", "return_mean")
NAME_LENGTH = 100


@dataclass(frozen=True)
class Trial:
    """One run: the flags of `saqrl train` by name, and those of them that vary in the sweep."""

    flags: Mapping[str, Any]
    varied: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return int(self.flags["seed"])

    @property
    def name(self) -> str:
        """A folder's name that tells what varies; two trials share it only if they are equal."""
        parts = [f"{name}-{_plain(value)}" for name, value in self.varied.items()]
        parts.append(f"seed-{self.seed}")
        text = "_".join(parts)
        slug = re.sub(r"[^A-Za-z0-9._+-]", "-", text)
        if slug == text and len(slug) <= NAME_LENGTH:
            return slug
        return f"{slug[:NAME_LENGTH]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Plan:
    trials: tuple[Trial, ...]
    out: Path
    score: str | None
    """A field of the result, dotted where it is nested; None: the first of `SCORES` there is."""
    best: Literal["highest", "lowest"]


def read_plan(file: Path) -> Plan:
    """The trials that a sweep's file describes.

    FileNotFoundError, or ValueError that names the section and what it may hold. Whether
    `saqrl train` knows the fields is for the caller to find out.
    """
    try:
        content = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{file} is not readable TOML: {error} (quote dotted names: "agent.alpha" = 5.0)'
        ) from error
    for name in content:
        if name not in SECTIONS:
            raise ValueError(f"{file}: unknown section {name!r}; {closest(name, SECTIONS)}")
    for name in ("train", "grid", "random"):
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"{file}: {name} is a table: write [{name}]")
    best = content.get("best", "highest")
    if best not in ("highest", "lowest"):
        raise ValueError(f"{file}: best is {best!r}; 'highest' or 'lowest'")
    base = dict(_flat(content.get("train", {})))
    seeds = _seeds(file, content.get("seeds", base.pop("seed", 0)))
    trials: dict[str, Trial] = {}
    for point in _grid(file, content.get("grid", {})):
        for draw in _draws(file, content.get("random", {})):
            for seed in seeds:
                varied = {**point, **draw}
                if "seed" in varied or "seed" in base:
                    raise ValueError(f"{file}: seeds are given as seeds = [0, 1] at the top")
                trial = Trial({**base, **varied, "seed": seed}, varied)
                trials.setdefault(trial.name, trial)
    out = Path(content.get("out", Path("sweeps") / file.stem))
    return Plan(tuple(trials.values()), out, content.get("score"), best)


def _seeds(file: Path, given: Any) -> list[int]:
    seeds = given if isinstance(given, list) else [given]
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"{file}: seeds is {given!r}; a list of whole numbers such as [0, 1, 2]")
    return seeds


def _grid(file: Path, section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    fields = dict(_flat(section))
    for name, values in fields.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file}: grid.{name} is {values!r}; a list of values to try")
    for values in itertools.product(*fields.values()):
        yield dict(zip(fields, values, strict=True))


def _draws(file: Path, section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Random points; draw i depends on the seed and on i, so more trials keep those there are."""
    if not section:
        yield {}
        return
    rest = dict(section)
    trials, seed = rest.pop("trials", None), rest.pop("seed", 0)
    if type(trials) is not int or trials < 1:
        raise ValueError(f"{file}: random.trials is {trials!r}; how many points to draw")
    fields = dict(_flat(rest, stop=DISTRIBUTIONS))
    for name, described in fields.items():
        _check_distribution(f"{file}: random.{name}", name, described)
    for index in range(trials):
        generator = np.random.default_rng([seed, index])
        yield {name: _draw(generator, *next(iter(d.items()))) for name, d in fields.items()}


def _check_distribution(where: str, name: str, described: Any) -> None:
    if not isinstance(described, dict):
        word = name.rpartition(".")[2]
        raise ValueError(f"{where}: unknown distribution {word!r}; {closest(word, DISTRIBUTIONS)}")
    ((kind, given),) = described.items()
    if kind == "choice":
        if not isinstance(given, list) or not given:
            raise ValueError(f"{where}: choice is {given!r}; a list of values")
        return
    numbers = (int,) if kind == "integers" else (int, float)
    ordered = (
        isinstance(given, list)
        and len(given) == 2
        and all(type(bound) in numbers for bound in given)
        and given[0] < given[1]
    )
    if not ordered or (kind == "log_uniform" and given[0] <= 0):
        positive = ", both above 0" if kind == "log_uniform" else ""
        raise ValueError(f"{where}: {kind} is {given!r}; [lowest, highest]{positive}")


def _draw(generator: np.random.Generator, kind: str, given: list[Any]) -> Any:
    if kind == "choice":
        return given[int(generator.integers(len(given)))]
    low, high = given
    if kind == "integers":
        return int(generator.integers(low, high, endpoint=True))
    if kind == "log_uniform":
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return float(f"{value:.4g}")  # what a person can read in a folder's name


def _flat(
    table: Mapping[str, Any], prefix: str = "", stop: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Dotted names of a nested table; a table with one of the `stop` names alone is a value."""
    for name, value in table.items():
        dotted = prefix + name.replace("-", "_")
        if isinstance(value, dict) and not (len(value) == 1 and next(iter(value)) in stop):
            yield from _flat(value, f"{dotted}.", stop)
        else:
            yield dotted, value


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


# Running.


@dataclass(frozen=True)
class Job:
    """A trial as a process: the words after `saqrl`, and where what it says goes."""

    trial: Trial
    words: tuple[str, ...]
    folder: Path
    log: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: a result, or the one line that says why there is none."""

    trial: Trial
    folder: Path
    result: Mapping[str, Any] | None
    error: str | None = None


Finished = Callable[[Outcome], None]


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
                finished(_outcome(running.pop(process), process.returncode))
            time.sleep(0.05)
    finally:
        for process in running:  # interrupted: what they have done stays, to be resumed
            process.kill()
            process.wait()


def run_on_ray(jobs: Sequence[Job], *, cores: int, finished: Finished) -> None:
    """All trials as tasks of the Ray cluster at RAY_ADDRESS, else of one started here.

    Each asks for `cores` CPUs; the folders must lie on a file system that all machines see.
    ImportError with what to install.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('--engine ray needs ray: pip install "saqrl[ray]"') from error
    ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    try:
        execute = ray.remote(num_cpus=cores, max_retries=0)(_execute)
        waiting = {
            execute.remote(job.words, str(job.log.absolute()), cores, os.getcwd()): job
            for job in jobs
        }
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
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
        process.kill()


def _start(words: Sequence[str], log: Path, cores: int) -> subprocess.Popen[bytes]:
    # NPROC is what XLA takes the size of its thread pools from.
    threads = {"NPROC": str(cores), "OMP_NUM_THREADS": str(cores)}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "saqrl.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | threads,
        )


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
        why = f"exit status {status}: {lines[-1].strip() if lines else 'nothing was said'}"
    return Outcome(job.trial, job.folder, None, f"{why} (see {job.log})")


# The table.


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
    """The rows in columns, numbers to the right."""
    names = list(rows[0]) if rows else []
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (names, *cells)
    ]
    return "\n".join(lines)


def table_csv(outcomes: Sequence[Outcome], plan: Plan) -> str:
    """A line for every trial."""
    varied = list(dict.fromkeys(name for o in outcomes for name in o.trial.varied))
    text = io.StringIO()
    columns = [*varied, "seed", "score", "value", "seconds", "run", "error"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for outcome in outcomes:
        result = outcome.result or {}
        score, value = score_of(result, plan.score) or (plan.score, None)
        own = {"seed": outcome.trial.seed, "score": score, "value": value}
        own |= {"seconds": result.get("wall_seconds"), "run": str(outcome.folder)}
        writer.writerow({**outcome.trial.varied, **own, "error": outcome.error})
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
    return f"{value:.4g}" if isinstance(value, float) else _plain(value)
