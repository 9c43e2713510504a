"""The headline comparison: SAQ's agents and their continuous counterparts on the same data.

    python benchmarks/compare.py [--only TEXT] [--rounds 5] [--slow] [--list]

Runs lie under runs/benchmark; benchmarks/results/compare.jsonl gets a line for each as it finishes
and compare.json says on what machine, with which versions and settings. It can be stopped anywhere
and called again. Cheap data sets come first and one seed of everything before the next seed, so
what is there is always balanced:

    saqrl report benchmarks/results/compare.jsonl --out docs/results

Nothing here is tuned on these seeds: other seeds (from 100 on) serve for trying hyperparameters.
"""

import argparse
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saqrl.arrays import write_atomically
from saqrl.studies.grid import Cell, Task, plan, run_grid
from saqrl.studies.methods import Method, methods
from saqrl.studies.table import TABLE, read_table
from saqrl.training.progress import Reporter
from saqrl.training.versions import versions

RESULTS = Path(__file__).parent / "results"
OUT = Path("runs/benchmark")
DATA = os.environ.get("SAQRL_DATA", "../shared/data")
# In the order in which they are trained.
METHODS = methods(
    ("bc", "saq-bc:greedy", "iql", "gmm", "saq-cql", "brac", "rebrac"),
    ("quantized", "continuous"),
)
# It draws 30 actions for each state at each step: many times the cost of the others, so it comes
# when they have all been trained.
SLOW_METHODS = methods(("cql",), ("continuous",))


# What the trials of tuning.py chose (benchmarks/results/tuning.jsonl), on a seed of their own.
ON_DEMONSTRATIONS = ("rebrac.learning_rate=0.001", "rebrac.actor_penalty=100.0")
ON_MIXED = (
    "rebrac.actor_penalty=1.0",
    "rebrac.critic_penalty=0.1",
    "brac.alpha=10.0",
    "saq-brac.alpha=0.3",
    "saq-cql.alpha=1.0",
)
FEW_CODES = (*ON_DEMONSTRATIONS, "quantizer.codes=16")
LONGER_BEHAVIOUR = ("brac.alpha=30.0", "brac.learning_rate=0.001", "brac.behaviour_share=0.5")
# Noisy experts: tried with five episodes of the door on seeds 100 to 102.
FEW_DEMONSTRATIONS = (*FEW_CODES, "quantizer.state_scale=0.3")
# Tried there as well (seed 100), and the expectile with ten episodes.
FEWEST_DEMONSTRATIONS = (*FEW_DEMONSTRATIONS, "bc.weight_decay=0.3", "iql.expectile=0.9")


@dataclass(frozen=True)
class Set:
    """A data set of the grid and how much training it is worth."""

    name: str
    dataset: str
    preset: str = "default"
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int = 5_000
    quantizer_steps: int = 6_000
    rounds: int = 5
    """Seeds at most."""
    evaluations: int = 3
    chosen: tuple[str, ...] = FEW_CODES
    """Hyperparameters of its methods."""

    def cells(self, compared: list[Method], seed: int) -> list[Cell]:
        return plan(
            [Task(self.name, self.dataset, self.preset)],
            compared,
            [seed],
            changes={
                "eval_episodes": 20,
                "steps": self.steps,
                "quantizer_steps": self.quantizer_steps,
                **self.changes,
            },
            evaluations=self.evaluations,
            assignments=self.chosen,
        )


def first(episodes: int) -> dict[str, Any]:
    return {"changes": {"data_episodes": episodes}, "chosen": FEW_DEMONSTRATIONS}


DOOR, PEN, HAMMER = (f"d4rl:{DATA}/d4rl/{name}-expert.hdf5" for name in ("door", "pen", "hammer"))
CAN = f"robomimic:{DATA}/robomimic/can/ph-scripted/low_dim.hdf5"
LIFT = f"robomimic:{DATA}/robomimic/lift/ph-scripted/low_dim.hdf5"
PUSHT = f"npz:{DATA}/npz/pusht-human.npz"
CUBE = f"ogbench:{DATA}/ogbench/cube-single-play-v0.npz"
# Wider inputs did better on Push-T for every method that was tried with them.
WIDE = {"feature_deviation": 0.3}
# Values want wider ones still.
WIDEST = {"feature_deviation": 1.0}
MIXED = {"steps": 6_000, "quantizer_steps": 6_000, "rounds": 3, "chosen": ON_MIXED}
# Success at the end is all that is paid: values differ more from state to state than from code to
# code, and what is wrong in them must not outvote the demonstrations (tried on seed 100).
SPARSE = {
    "chosen": (*FEW_CODES, "saq-iql.temperature=5.0", "saq-brac.alpha=5.0"),
    "rounds": 3,
    "evaluations": 1,
}
SETS = (
    Set("pusht", PUSHT, "pusht", WIDE, steps=6_000, quantizer_steps=8_000),
    Set(
        "door-expert-5",
        DOOR,
        "door-expert",
        changes={"data_episodes": 5},
        chosen=FEWEST_DEMONSTRATIONS,
    ),
    Set("door-expert-25", DOOR, "door-expert-25", chosen=FEW_DEMONSTRATIONS),
    Set("pen-expert-25", PEN, **first(25)),
    Set("pusht-chunk8", PUSHT, "pusht-chunk8", WIDE, 6_000, 8_000, chosen=ON_DEMONSTRATIONS),
    Set("hammer-expert-25", HAMMER, rounds=3, **first(25)),
    Set("door-human", f"d4rl:{DATA}/d4rl/door-human.hdf5", rounds=3),
    # Not by its preset, with which every quantized agent acts greedily.
    Set(
        "hopper-expert",
        f"d4rl:{DATA}/d4rl/hopper-expert.hdf5",
        changes={"env": "Hopper-v4"},
        chosen=(*FEW_CODES, "rebrac.critic_penalty=0.1", *LONGER_BEHAVIOUR),
        rounds=3,
    ),
    *(
        Set(name, f"d4rl:{DATA}/d4rl/{name}.hdf5", changes=WIDEST, **MIXED)
        for name in ("hopper-medium", "hopper-mixed", "halfcheetah-medium")
    ),
    *(
        Set(
            f"cube-single-task{task}",
            CUBE,
            "cube-single-play",
            changes={"env": f"cube-single-singletask-task{task}-v0"},
            **MIXED,
        )
        for task in (1, 2)
    ),
    # These simulate at a few steps a second: one evaluation at the end instead of three.
    Set("can-50", CAN, changes={"data_episodes": 50}, **SPARSE),
    Set("lift", LIFT, **SPARSE),
    Set("can-200", CAN, **SPARSE),
)


def batches(only: str, rounds: int, *, slow: bool) -> Iterator[list[Cell]]:
    """One seed of one data set at a time."""
    for compared in (METHODS, SLOW_METHODS) if slow else (METHODS,):
        for seed in range(rounds):
            for chosen in SETS:
                if only in chosen.name and seed < chosen.rounds:
                    yield chosen.cells(compared, seed)


def known_rows(table: Path, out: Path) -> None:
    """Go on from the rows that are committed where the runs themselves are not on this machine."""
    if table.exists() and not (out / TABLE).exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(table, out / TABLE)


def describe(cells: list[Cell], known: dict[str, Any], table: Path) -> dict[str, Any]:
    """What a reader needs to know of the machine and of each method's settings.

    Of `known`, the record so far, the settings of the rows that have finished stay: the cells may
    be a part of the grid only, and may have changed since.
    """
    finished = {f"{row['task']} {row['method']}" for row in read_table(table) if "error" not in row}
    kept = {name: s for name, s in known.get("settings", {}).items() if name in finished}
    return {
        "command": "python benchmarks/compare.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions(),
        "settings": {f"{c.task} {c.method.name}": c.settings.to_json() for c in cells} | kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--rounds", type=int, default=5, help="seeds of each data set at most")
    parser.add_argument("--slow", action="store_true", help="the continuous CQL too")
    parser.add_argument("--list", action="store_true", help="say what would be trained, and stop")
    asked = parser.parse_args()
    grid = list(batches(asked.only, asked.rounds, slow=asked.slow))
    if asked.list:
        for cells in grid:
            print(cells[0].task, f"seed {cells[0].seed}:", *(cell.method.name for cell in cells))
        print(sum(map(len, grid)), "runs")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    seeds_of_first = [cell for cells in grid for cell in cells if cell.seed == 0]
    known_rows(RESULTS / "compare.jsonl", OUT)
    path = RESULTS / "compare.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    record = json.dumps(describe(seeds_of_first, known, OUT / TABLE), indent=1)
    write_atomically(path, record.encode())
    reporter = Reporter()
    for cells in grid:
        run_grid(cells, OUT, reporter)
        shutil.copyfile(OUT / TABLE, RESULTS / "compare.jsonl")


if __name__ == "__main__":
    main()
