"""The comparison by the protocol: equal steps, as many trials for every method, final policies.

    python -m benchmarks.grid [--only TEXT] [--rounds 5] [--few] [--list] [--table]

Five sets stand for the kinds of data: people's demonstrations (Push-T), few expert ones (five of
the door's), mixed skill (hopper-mixed), the best of it, a sparse reward (can). On each every
method gets TRIALS settings from the one list of `saqrl.studies.tuning`, on a training seed and
episodes of their own; the other sets take what their kind chose. A policy's steps include its
prior's. Runs lie under runs/grid; after each set and seed benchmarks/results has its rows in
grid.jsonl, the trials in grid_trials.jsonl, what they chose in grid_tuning.json, the machine and
every setting in grid.json. It can be stopped anywhere and called again: one seed of everything
comes before the next seed.

    saqrl report benchmarks/results/grid.jsonl --out docs/results
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.logs import CUBE, PUSHT, d4rl, robomimic
from benchmarks.rows import Flags, describe, known_rows, scores_table, with_table
from saqrl.arrays import write_atomically
from saqrl.studies.grid import Cell, Task, plan, run_grid
from saqrl.studies.methods import Method, methods
from saqrl.studies.table import TABLE, read_table
from saqrl.studies.tuning import CHOSEN, FOLDER, TRIAL_EPISODE, TRIAL_SEED, Tuned, ideas, tune
from saqrl.training.flags import changed
from saqrl.training.progress import Reporter

RESULTS = Path(__file__).parent / "results"
OUT = Path("runs/grid")
TRIALS, STEPS = 5, {"steps": 10_000, "quantizer_steps": 6_000, "eval_episodes": 50}
COMMON = methods(("bc", "iql", "saq-cql", "saq-brac", "gmm", "rebrac"), ("quantized", "continuous"))
# Slow, or behind wherever they were tried: on five sets.
FURTHER = methods(("cql", "brac", "fql"), ("continuous",))
# It draws this many actions for each state at each step; ten times more made it 15 times slower.
FEWER_DRAWS = ("cql.samples=3",)
# Its published penalty never leaves zero on few demonstrations: where its trials begin.
ON_DEMONSTRATIONS = ("rebrac.actor_penalty=30.0", "rebrac.learning_rate=0.001")
ON_MIXED = ("rebrac.actor_penalty=1.0", "rebrac.critic_penalty=0.1")


@dataclass(frozen=True)
class Set:
    """A data set, where it begins, and whose trials it takes."""

    name: str
    dataset: str
    preset: str = "default"
    kind: str = ""
    """The set whose trials decide; empty: its own."""
    changes: Flags = field(default_factory=dict)
    rounds: int = 3
    """Seeds at most."""
    further: bool = False
    """Whether all methods are trained on it."""

    @property
    def assignments(self) -> tuple[str, ...]:
        mixed = "hopper-mixed" in (self.name, self.kind)
        return (*FEWER_DRAWS, *(ON_MIXED if mixed else ON_DEMONSTRATIONS))

    def cells(self, compared: list[Method], seed: int, **more: Any) -> list[Cell]:
        task = Task(self.name, self.dataset, self.preset)
        changes = {**STEPS, **self.changes, **more.pop("apart", {})}
        own = {"assignments": self.assignments, "evaluations": 1, **more}
        return plan([task], compared, [seed], changes=changes, **own)


FIVE, MORE, FIFTY = ({"data_episodes": count} for count in (5, 25, 50))
WIDE, WIDEST = {"feature_deviation": 0.3}, {"feature_deviation": 1.0}
MIXED = {**WIDEST, "env": "Hopper-v4"}
# Cheap ones first, those that decide for others first of all.
SETS = (
    Set("pusht", PUSHT, "pusht", "", WIDE, 5, further=True),
    Set("door-5", d4rl("door-expert"), "door-expert", "", FIVE, 5, further=True),
    Set("hopper-mixed", d4rl("hopper-mixed"), "default", "", MIXED, further=True),
    Set("can-50-chunk8", robomimic("can"), "default", "", {**WIDE, **FIFTY, "chunk": 8}),
    Set("pusht-chunk8", PUSHT, "pusht-chunk8", "pusht", WIDE, 5, further=True),
    Set("door-25", d4rl("door-expert"), "door-expert-25", "door-5", MORE, 5),
    Set("pen-25", d4rl("pen-expert"), "default", "door-5", MORE, 5),
    Set("hammer-25", d4rl("hammer-expert"), "default", "door-5", MORE),
    Set("door-human", d4rl("door-human"), "default", "pusht"),
    Set("hopper-expert", d4rl("hopper-expert"), "hopper-expert", "door-5"),
    # The best seventh alone: what cloning makes of a mixture, and whether values add to it.
    Set("hopper-mixed-best", d4rl("hopper-mixed"), "hopper-expert", changes={"data_best": 0.147}),
    Set("hopper-medium", d4rl("hopper-medium"), "default", "hopper-mixed", MIXED, further=True),
    Set(
        "halfcheetah-medium",
        d4rl("halfcheetah-medium"),
        kind="hopper-mixed",
        changes={**WIDEST, "env": "HalfCheetah-v4"},
    ),
    Set(
        "cube-task2",
        CUBE,
        "cube-single-play",
        "hopper-mixed",
        {"env": "cube-single-singletask-task2-v0"},
    ),
    Set("lift", robomimic("lift"), "default", "can-50-chunk8"),
)


def tuned(asked: argparse.Namespace, reporter: Reporter) -> dict[tuple[str, str], Tuned]:
    """What the trials chose for each set of its own and method; made first where they are not."""
    apart = {"eval_first": TRIAL_EPISODE}
    planned: list[Cell] = []
    needed = {each.kind or each.name for each in SETS if asked.only in each.name}
    for chosen in SETS:
        if chosen.name in needed:
            compared = COMMON if asked.few else [*COMMON, *FURTHER]
            planned += chosen.cells(compared, TRIAL_SEED, apart=apart)
    return tune(planned, OUT, reporter, trials=TRIALS)


def batches(
    asked: argparse.Namespace, decided: dict[tuple[str, str], Tuned]
) -> Iterator[list[Cell]]:
    """One seed of one data set at a time."""
    for seed in range(asked.rounds):
        for each in SETS:
            if asked.only in each.name and seed < each.rounds:
                compared = [*COMMON, *(FURTHER if each.further and not asked.few else ())]
                planned = each.cells(compared, seed)
                kind = each.kind or each.name
                yield [_with(cell, decided.get((kind, cell.method.name))) for cell in planned]


def _with(cell: Cell, found: Tuned | None) -> Cell:
    """The cell with the idea that won: three times a strength is that of its own."""
    known = dict(ideas(cell.settings))
    if found is None or found.idea not in known:  # it has that already
        return cell
    return replace(cell, settings=changed(cell.settings, known[found.idea]))


def keep(record: dict[str, Any]) -> None:
    """Copy what the runs' folder has of rows, trials and choices to the committed results."""
    for place, name in (
        (OUT / TABLE, "grid.jsonl"),
        (OUT / FOLDER / TABLE, "grid_trials.jsonl"),
        (OUT / CHOSEN, "grid_tuning.json"),
    ):
        if place.exists():
            shutil.copyfile(place, RESULTS / name)
    write_atomically(RESULTS / "grid.json", json.dumps(record, indent=1).encode())


def main() -> None:
    parser = with_table(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--only", default="", help="data sets whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5, help="seeds of each data set at most")
    parser.add_argument("--few", action="store_true", help="not continuous CQL, BRAC and FQL")
    parser.add_argument("--list", action="store_true", help="say what would be trained, and stop")
    asked = parser.parse_args()
    if asked.table:
        sets, compared = (one.name for one in SETS), (one.name for one in [*COMMON, *FURTHER])
        rows = [row for row in read_table(RESULTS / "grid.jsonl") if "error" not in row]
        print(scores_table(rows, ("task", sets), ("method", compared)))
        return
    if asked.list:
        for cells in batches(asked, {}):
            print(cells[0].task, f"seed {cells[0].seed}:", *(cell.method.name for cell in cells))
        return
    known_rows(RESULTS / "grid.jsonl", OUT)
    known_rows(RESULTS / "grid_trials.jsonl", OUT / FOLDER)
    if (RESULTS / "grid_tuning.json").exists() and not (OUT / CHOSEN).exists():
        shutil.copyfile(RESULTS / "grid_tuning.json", OUT / CHOSEN)
    reporter = Reporter()
    grid = list(batches(asked, tuned(asked, reporter)))
    path = RESULTS / "grid.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    first = [cell for cells in grid for cell in cells if cell.seed == 0]
    record = describe(first, known, OUT / TABLE) | {"command": "python -m benchmarks.grid"}
    keep(record)  # the trials
    for cells in grid:
        run_grid(cells, OUT, reporter)
        keep(record)


if __name__ == "__main__":
    main()
