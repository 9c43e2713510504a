"""Which hyperparameters the comparison uses: the same few trials for every method, on other seeds.

    python benchmarks/tuning.py [--only TEXT] [--list]

Three data sets stand for the kinds of data: human demonstrations (Push-T), few expert
demonstrations (ten of the door's), mixed skill (hopper-mixed). Every method is tried with its
defaults and two variants or more, on one seed that the comparison never uses; BRAC and ReBRAC,
which were far behind plain cloning with those, with one or two more. Single questions have trials
on other data. Runs lie under runs/tuning;
benchmarks/results/tuning.jsonl gets a line for each as it finishes.
"""

import argparse
import shutil
from pathlib import Path

from compare import CAN, DATA, DOOR, PUSHT, RESULTS, known_rows

from saqrl.studies.grid import Cell, Task, plan, run_grid
from saqrl.studies.methods import methods
from saqrl.studies.table import TABLE
from saqrl.training.progress import Reporter

OUT = Path("runs/tuning")
SEED = 100
MIXED = f"d4rl:{DATA}/d4rl/hopper-mixed.hdf5"
EXPERT = f"d4rl:{DATA}/d4rl/hopper-expert.hdf5"
# Method -> its variants: OWNER.FIELD=VALUE, or a setting of the run as FIELD=VALUE.
Trials = dict[str, tuple[tuple[str, ...], ...]]
WIDER = ("feature_deviation=0.3",)
ON_DEMONSTRATIONS: Trials = {
    "bc": ((), WIDER, ("bc.learning_rate=0.0003",)),
    "gmm": ((), WIDER, ("gmm.learning_rate=0.0003",)),
    "saq-bc": ((), WIDER, ("quantizer.codes=16",)),
    "saq-bc:greedy": ((), WIDER, ("quantizer.codes=16",)),
    "iql": ((), ("iql.tau=0.9",), ("iql.beta=10.0",), ("iql.beta=1.0",), WIDER),
    "saq-iql": ((), ("saq-iql.tau=0.7",), ("saq-iql.temperature=0.3",), WIDER),
    "brac": (
        (),
        ("brac.alpha=3.0",),
        ("brac.alpha=3.0", "brac.learning_rate=0.001", "brac.behaviour_share=0.5"),
        ("brac.alpha=30.0", "brac.learning_rate=0.001", "brac.behaviour_share=0.5"),
    ),
    "saq-brac": ((), ("saq-brac.alpha=0.3",), ("saq-brac.alpha=3.0",)),
    "rebrac": (
        (),
        ("rebrac.actor_penalty=0.1", "rebrac.learning_rate=0.001"),
        ("rebrac.actor_penalty=1.0", "rebrac.learning_rate=0.001"),
        # Both were far behind plain cloning, so two more.
        ("rebrac.actor_penalty=10.0", "rebrac.learning_rate=0.001"),
        ("rebrac.actor_penalty=100.0", "rebrac.learning_rate=0.001"),
    ),
    "saq-cql": ((), ("saq-cql.alpha=1.0",), ("saq-cql.alpha=20.0",)),
}
# Values want wide inputs where cloning wants small ones.
WIDEST = "feature_deviation=1.0"
ON_MIXED: Trials = {
    "bc": ((), (WIDEST,), ("bc.learning_rate=0.0003",)),
    "gmm": ((), (WIDEST,), ("gmm.learning_rate=0.0003",)),
    "saq-bc": ((), (WIDEST,), ("quantizer.codes=16",)),
    "saq-bc:greedy": ((), (WIDEST,), ("quantizer.codes=16",)),
    "iql": ((), (WIDEST,), (WIDEST, "iql.beta=10.0")),
    "saq-iql": ((), (WIDEST,), (WIDEST, "saq-iql.temperature=0.3")),
    "saq-cql": ((), (WIDEST,), (WIDEST, "saq-cql.alpha=1.0")),
    "saq-brac": ((), (WIDEST,), (WIDEST, "saq-brac.alpha=0.3")),
    "brac": (
        (),
        (WIDEST,),
        (WIDEST, "brac.alpha=10.0"),
        (WIDEST, "brac.alpha=30.0", "brac.learning_rate=0.001", "brac.behaviour_share=0.5"),
    ),
    "rebrac": (
        (),
        (WIDEST,),
        (WIDEST, "rebrac.actor_penalty=0.1", "rebrac.critic_penalty=0.1"),
        (WIDEST, "rebrac.actor_penalty=1.0", "rebrac.critic_penalty=0.1"),
    ),
}
# BRAC with the defaults, which did best on demonstrations, fell far behind cloning here.
ON_EXPERT: Trials = {
    "brac": (
        (),
        ("brac.alpha=3.0",),
        ("brac.alpha=30.0",),
        ("brac.reach=1.0",),
        ("brac.alpha=30.0", "brac.learning_rate=0.001", "brac.behaviour_share=0.5"),
    ),
}
# Success at the end is all that is paid: values outvoted the demonstrations with the defaults. The
# rows are of the comparison's own settings (16 codes, one evaluation).
ON_SPARSE: Trials = {
    "saq-bc": ((),),
    "saq-iql": ((), ("saq-iql.temperature=5.0",)),
    "saq-brac": ((), ("saq-brac.alpha=5.0",)),
    "iql": (("iql.beta=1.0",),),
    "brac": (
        (),
        ("brac.alpha=30.0", "brac.learning_rate=0.001", "brac.behaviour_share=0.5"),
    ),
}
# Noise that few demonstrations do not average out: what each side has against learning it by heart.
ON_FEW: Trials = {
    "bc": ((), ("bc.weight_decay=0.1",), ("bc.weight_decay=0.3",), WIDER),
    "saq-bc": tuple((f"quantizer.state_scale={scale}",) for scale in (1.0, 0.3, 0.1, 0.03)),
}
# Name, preset, changes, steps of the agent, trials.
SETS = (
    ("pusht", PUSHT, "pusht", {}, 5_000, ON_DEMONSTRATIONS),
    ("door-expert-10", DOOR, "door-expert", {"data_episodes": 10}, 5_000, ON_DEMONSTRATIONS),
    ("door-expert-5", DOOR, "door-expert", {"data_episodes": 5}, 5_000, ON_FEW),
    ("hopper-mixed", MIXED, "default", {}, 6_000, ON_MIXED),
    ("can-50", CAN, "default", {"data_episodes": 50}, 5_000, ON_SPARSE),
    ("hopper-expert", EXPERT, "default", {"env": "Hopper-v4"}, 5_000, ON_EXPERT),
)


def cells(only: str) -> list[Cell]:
    planned = []
    for name, dataset, preset, changes, steps, trials in SETS:
        for word, variants in trials.items():
            actions = ("quantized",) if word.startswith("saq-") else ("continuous",)
            for variant in variants:
                task = Task("+".join((name, *variant)), dataset, preset)
                settings = dict(
                    item.split("=") for item in variant if "." not in item.split("=")[0]
                )
                settings |= {"eval_episodes": 20, "steps": steps, "quantizer_steps": 6_000}
                planned += plan(
                    [task],
                    methods((word,), actions),
                    [SEED],
                    changes=changes | settings,
                    evaluations=3,
                    assignments=[item for item in variant if "." in item.split("=")[0]],
                )
    return [cell for cell in planned if only in f"{cell.task} {cell.method.name}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="trials whose 'data+variant method' holds this")
    parser.add_argument("--list", action="store_true", help="say what would be trained, and stop")
    asked = parser.parse_args()
    planned = cells(asked.only)
    if asked.list:
        for cell in planned:
            print(cell.task, cell.method.name)
        return
    table = RESULTS / "tuning.jsonl"
    known_rows(table, OUT)
    reporter = Reporter()
    for cell in planned:
        run_grid([cell], OUT, reporter, sharing=planned)
        shutil.copyfile(OUT / TABLE, table)


if __name__ == "__main__":
    main()
