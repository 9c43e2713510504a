"""Trials before a comparison: for every method the same list of ideas, and as many of them.

Trials have training seeds and evaluation episodes of their own: nothing that a table is judged by
is chosen by.

OUT/tuning/       the trials, a grid of their own
OUT/tuning.json   what was chosen, with the score of every trial; it stays as it is from then on
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saqrl.arrays import write_atomically
from saqrl.studies.grid import Cell, run_grid
from saqrl.studies.page import Section
from saqrl.training.flags import changed, known_flags
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings

# A trial's training seed, and the number of its first episode: no table has them.
TRIAL_SEED, TRIAL_EPISODE = 100, 100_000
FOLDER, CHOSEN = "tuning", "tuning.json"
# How strongly an agent holds on to the data: what it calls that.
STRENGTHS = ("alpha", "temperature", "beta", "actor_penalty")

Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Tuned:
    """What was chosen for a method on a data set."""

    idea: str
    flags: Flags
    scores: Mapping[str, float | None]
    """Of every idea; None where the trial failed."""


def ideas(settings: Settings) -> Iterator[tuple[str, Flags]]:
    """(name, flags) of what is worth trying, in one order for all methods.

    A method leaves out what it has no setting for, and what it has already. The length of a chunk
    is no idea: it is part of what is compared.
    """
    listed: list[tuple[str, Flags]] = [
        ("as it is", {}),
        ("inputs of deviation 0.3", {"feature_deviation": 0.3}),
        ("weight decay 0.3", {"agent.weight_decay": 0.3}),
    ]
    strength = next((name for name in STRENGTHS if hasattr(settings.agent, name)), None)
    # bc's temperature is a way of acting.
    if strength and settings.agent_name != "bc":
        value = getattr(settings.agent, strength)
        listed += [
            (f"{strength} three times", {f"agent.{strength}": 3 * value}),
            (f"{strength} a third", {f"agent.{strength}": value / 3}),
        ]
    listed += [
        ("inputs of deviation 1", {"feature_deviation": 1.0}),
        ("learning rate 1e-3", {"agent.learning_rate": 1e-3}),
        ("learning rate 1e-4", {"agent.learning_rate": 1e-4}),
        ("learning rate 3e-4", {"agent.learning_rate": 3e-4}),
    ]
    if settings.quantized:
        sharper = {"act": "sample", "act_temperature": 0.5}
        listed += [("greedy", {"act": "greedy"}), ("sampled at 0.5", sharper)]
    if settings.data.best == 1:
        listed.append(("the best tenth of the episodes", {"data_best": 0.1}))
    known = known_flags(settings)
    for name, flags in listed:
        there = all(flag in known for flag in flags)
        if there and (not flags or changed(settings, flags) != settings):
            yield name, flags


def tune(
    cells: Sequence[Cell], out: Path, reporter: Reporter, *, trials: int
) -> dict[tuple[str, str], Tuned]:
    """What was chosen for each task and method of `cells`, tried first where that is not known.

    `cells` are one of each, as the table will train them but for seed and episodes. ValueError
    where a method has fewer ideas than that, or other numbers of trials were made before.
    """
    known = read_tuned(out)
    for each in known.values():
        if len(each.scores) != trials:
            raise ValueError(
                f"{out / CHOSEN} has {len(each.scores)} trials per method: pass --tune "
                f"{len(each.scores)}, or choose another --out"
            )
    missing = [cell for cell in cells if (cell.task, cell.method.name) not in known]
    planned = [each for cell in missing for each in trials_of(cell, trials)]
    if planned:
        reporter.say(f"{len(planned)} trials first: {trials} for each method and data set")
    rows = run_grid(planned, out / FOLDER, reporter) if planned else []
    scores = [row.get("score") for row in rows]
    for number, cell in enumerate(missing):
        found = scores[number * trials : (number + 1) * trials]
        tried = planned[number * trials : (number + 1) * trials]
        known[cell.task, cell.method.name] = _best(cell, tried, found)
    if missing:
        write_tuned(out, known)
    return known


def trials_of(cell: Cell, count: int) -> list[Cell]:
    """The first so many ideas for a cell, as cells of their own."""
    if count < 2:
        raise ValueError(
            f"tune is {count}; it must be at least 2: the first trial has the default settings"
        )
    found = list(ideas(cell.settings))
    if len(found) < count:
        raise ValueError(
            f"tune is {count}, but {cell.method.name} has only {len(found)} settings to try: "
            f"pass --tune {len(found)}, so that all methods have the same number"
        )
    return [
        replace(cell, idea=name, settings=changed(cell.settings, flags))
        for name, flags in found[:count]
    ]


def _best(cell: Cell, tried: Sequence[Cell], scores: Sequence[float | None]) -> Tuned:
    by_name = dict(zip((each.idea for each in tried), scores, strict=True))
    scored = {name: score for name, score in by_name.items() if score is not None}
    if not scored:
        raise ValueError(
            f"every trial of {cell.method.name} on {cell.task} failed; their log files say why"
        )
    best = max(scored, key=lambda name: scored[name])  # of equals the first
    return Tuned(best, dict(ideas(cell.settings))[best], by_name)


def read_tuned(out: Path) -> dict[tuple[str, str], Tuned]:
    """What was chosen in a comparison's folder; nothing where there were no trials."""
    path = out / CHOSEN
    if not path.exists():
        return {}
    return {
        (row["task"], row["method"]): Tuned(row["idea"], row["flags"], row["scores"])
        for row in json.loads(path.read_text())
    }


def write_tuned(out: Path, tuned: Mapping[tuple[str, str], Tuned]) -> None:
    rows = [
        {"task": task, "method": method, **vars(found)} for (task, method), found in tuned.items()
    ]
    write_atomically(out / CHOSEN, json.dumps(rows, indent=2).encode())


def tuned_section(tuned: Mapping[tuple[str, str], Tuned]) -> Section | None:
    """For a report: what each method was given, and what it was chosen from."""
    if not tuned:
        return None

    def shown(found: Tuned) -> str:
        scores = (
            f"{name} {'failed' if score is None else format(score, '.1f')}"
            for name, score in found.scores.items()
        )
        return ", ".join(scores)

    return Section(
        "Settings chosen by trials",
        f"Every method had the same number of trials from one list of ideas, one run each with "
        f"training seed {TRIAL_SEED} and other evaluation episodes than the scores above.",
        header=("data", "method", "chosen", "trials"),
        rows=tuple(
            (task, method, found.idea, shown(found)) for (task, method), found in tuned.items()
        ),
    )
