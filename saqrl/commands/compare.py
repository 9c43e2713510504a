"""`saqrl compare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import parse
from saqrl.datasets.naming import dataset_name
from saqrl.registry import closest
from saqrl.training.interrupts import resumed_by
from saqrl.training.presets import PRESETS
from saqrl.training.progress import Reporter

# Flags that are settings of every run, where they are given.
CHANGES = (
    *("env", "angles", "chunk", "history", "data_episodes", "data_best"),
    *("eval_episodes", "steps", "quantizer_steps"),
)


@dataclass
class Compare:
    """Train a grid of methods, data sets and seeds; to resume it, run the same command again."""

    datasets: tuple[str, ...]
    """SPECs, or PRESET=SPEC for the settings of a preset (see saqrl presets)"""
    agents: tuple[str, ...] = ("bc", "iql")
    """bc cql iql brac, continuous only: gaussian gmm rebrac fql; saq-NAME: only its quantized kind;
    NAME:greedy, NAME:sample or NAME:mean: how it acts"""
    actions: tuple[Literal["quantized", "continuous"], ...] = ("quantized", "continuous")
    """kinds of actions; an agent is trained with each kind that it supports"""
    seeds: int = 3
    """number of runs of each method on each data set"""
    first_seed: int = 0
    """seed of the first run; the others follow"""
    out: str = "comparison"
    """folder of the runs and of table.jsonl"""
    steps: int | None = None
    """gradient steps of every run, including those of a prior (at most a third)"""
    quantizer_steps: int | None = None
    """gradient steps of the quantizer"""
    env: str | None = None
    """environment id, if the data set does not name the right one"""
    angles: tuple[int, ...] | None = None
    """observation columns that are angles in radians; networks get their cosine and sine"""
    chunk: int | None = None
    """consecutive actions per decision"""
    history: int | None = None
    """number of last observations that the networks get"""
    data_episodes: int | None = None
    """use only the first N episodes of each data set"""
    data_best: float | None = None
    """use only this share of the episodes of each data set: those with the highest returns"""
    eval_episodes: int | None = None
    """episodes of an evaluation"""
    evaluations: int = 5
    """evaluations per run; its score is that of the last one"""
    set: tuple[str, ...] = ()
    """hyperparameters, for example saq-iql.expectile=0.8 rebrac.actor_penalty=0.1
    quantizer.codes=128"""
    tune: int | None = None
    """first run N trials of each method on each data set, from one list of settings for all"""
    json: bool = False
    """last line of stdout: the rows as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Compare, arguments)
    from saqrl.studies.grid import plan, run_grid
    from saqrl.studies.methods import methods
    from saqrl.studies.tuning import TRIAL_EPISODE, TRIAL_SEED, tune

    if asked.seeds < 1:
        raise ValueError(f"seeds is {asked.seeds}; it must be at least 1")
    given = {name: getattr(asked, name) for name in CHANGES}
    changes = {name: value for name, value in given.items() if value is not None}
    tasks, compared = (
        [task_of(word) for word in asked.datasets],
        methods(asked.agents, asked.actions),
    )
    seeds, out, reporter = (
        range(asked.first_seed, asked.first_seed + asked.seeds),
        Path(asked.out),
        Reporter(),
    )
    planned = partial(plan, tasks, compared, evaluations=asked.evaluations, assignments=asked.set)
    with resumed_by("the same command"):
        chosen = {}
        if asked.tune is not None:
            if seeds[-1] >= TRIAL_SEED:
                raise ValueError(
                    f"seeds from {TRIAL_SEED} on are reserved for trials; choose lower seeds"
                )
            apart = changes | {"eval_first": TRIAL_EPISODE}
            tuned = tune(planned([TRIAL_SEED], changes=apart), out, reporter, trials=asked.tune)
            chosen = {key: found.flags for key, found in tuned.items()}
        rows = run_grid(planned(seeds, changes=changes, chosen=chosen), out, reporter)
    failed = [row for row in rows if "error" in row]
    say(f"{len(rows) - len(failed)} of {len(rows)} runs finished, {len(failed)} failed")
    say(f"next: saqrl report {asked.out}")
    if asked.json:
        print_json({"out": asked.out, "rows": rows, "failed": len(failed)})
    return 1 if failed else 0


def task_of(word: str) -> Any:
    """SPEC or PRESET=SPEC; the task is called as the preset, or as the file."""
    from saqrl.studies.grid import Task

    preset, equals, spec = word.partition("=")
    if not equals:
        return Task(dataset_name(word), word)
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; {closest(preset, PRESETS)}")
    return Task(preset, spec, preset)
