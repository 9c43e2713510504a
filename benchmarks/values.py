"""Values on chunk codes: the goal configuration, each lever off or on, and FQL on play data.

    python -m benchmarks.values [--only TEXT] [--method TEXT] [--seeds 1] [--episodes 50] [--list]
    python -m benchmarks.values --first-seed 100 --only cube-100k --method goal --try steps=30000

Every cell is a final policy. The runs of one set and seed share one quantizer and one prior, so a
row of a lever differs from the goal's in the agent alone. benchmarks/results/values.jsonl gets a
line for each cell as it finishes; one that is there is not run again.

What the rows have to answer: what each lever is worth on play data and on Push-T, and whether
exact values on codes reach a flow policy (FQL, arXiv 2502.02538) that has the same data and at
least as many gradient steps. The
data of 1M steps are made by `saqrl collect --env cube-single-v0 --style play --episodes 1000
--seed 1 --out cube-single-play-v0.npz` (scene alike), in the folder that --large names.
"""

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import logs
from benchmarks.rows import Flags, Row, arguments, asked_for, fill, scored
from saqrl.studies.shared_codes import share_codes
from saqrl.studies.tuning import TRIAL_SEED
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import read_result
from saqrl.training.settings import Settings
from saqrl.training.train import train

RESULTS = Path(__file__).parent / "results" / "values.jsonl"
TRIALS = RESULTS.with_name("value_trials.jsonl")
TRIAL_EPISODE = 300_000  # the first of the trials' own
OUT = Path("runs/values")

PLAY = {
    "preset": "cube-single-play",
    "chunk": 5,
    "action_horizon": 2,
    "act_temperature": 0.5,
    "quantizer.codes": 128,
    "agent.expectile": 0.7,
    "agent.q_of": "actions",
    "agent.precision": "bfloat16",
}
# Several objects one after the other: values have to reach farther back, and nearer to the best.
LONG = {"agent.expectile": 0.9, "agent.discount": 0.995}
PUSHT = {"dataset": logs.PUSHT, "preset": "pusht-chunk8-values"}
PUSHT_IQL = {
    "dataset": logs.PUSHT,
    "preset": "pusht-chunk8",
    "agent": "iql",
    "agent.temperature": 1.0,
    "act_temperature": 0.5,
    "steps": 10_000,
}
# Steps of the behaviour prior, which count: the opponent has at least as many in all.
PRIOR = 10_000


# What is changed of the goal configuration, one at a time.
LEVERS: Mapping[str, Flags] = {
    "goal": {},
    "chunk-discount": {"agent.discount": 0.9, "agent.chunk_discount": 0.99},
    "deviations": {"agent.critics": 4, "agent.deviations": 1.0},
    "weight-decay": {"agent.weight_decay": 0.3},
}
PLAY_LEVERS = {
    **LEVERS,
    "bins": {"agent.bins": 51, "agent.value_range": (-12.0, 2.0)},
    "supported": {"act": "greedy", "agent.extraction": "supported"},
    "weighted-prior": {"agent.prior_temperature": 0.3},
    "expectile": {"agent.expectile": 0.9},
    "q-of-codes": {"agent.q_of": "codes"},
    "float32": {"agent.precision": "float32"},
    "members": {"members": 3},
}
PUSHT_LEVERS = {
    **LEVERS,
    "single": {"members": 1},
    "bins": {"agent.bins": 51, "agent.value_range": (-2.0, 12.0)},
    "even-share": {"agent.threshold": 0.0, "agent.support": 0.5},
    "mass": {"agent.threshold": 0.0, "agent.mass": 0.95},
    "greedy": {"act": "greedy"},
    "alpha": {"agent.alpha": 1.0},
    "bfloat16": {"agent.precision": "bfloat16"},
}


class Set(NamedTuple):
    """A data set, and the flags of each method on it."""

    name: str
    methods: Mapping[str, Flags]


def _play(name: str, dataset: str, task: str, steps: int, **own: Any) -> Set:
    said = {"dataset": dataset, "env": f"{task}-v0", "steps": steps}
    opponent = {
        **said,
        "preset": "cube-single-play",
        "agent": "fql",
        "actions": "continuous",
        "chunk": 5,
        "action_horizon": 5,
        # Chosen by trials on cube-100k-task2 (value_trials.jsonl); published: 30, 3e-4, chunk 1.
        "agent.alpha": 100.0,
        "agent.learning_rate": 1e-3,
        "agent.precision": "bfloat16",
        "steps": max(steps, 30_000) + PRIOR,
    }
    goal = {**PLAY, **said, **own}
    levers = {method: {**goal, **flags} for method, flags in PLAY_LEVERS.items()}
    return Set(name, {**levers, "opponent": opponent})


def sets(large: str) -> list[Set]:
    """Cheap ones first."""
    cube, scene = (f"ogbench:{large}/{name}-play-v0.npz" for name in ("cube-single", "scene"))
    return [
        # 30,000 steps were no better.
        _play("cube-100k-task2", logs.CUBE, "cube-single-singletask-task2", 15_000),
        Set(
            "pusht",
            {
                **{method: {**PUSHT, **flags} for method, flags in PUSHT_LEVERS.items()},
                "iql": PUSHT_IQL,
                "iql, members": {**PUSHT_IQL, "members": 3},
            },
        ),
        *(
            _play(f"cube-1m-task{n}", cube, f"cube-single-singletask-task{n}", 60_000)
            for n in (2, 1, 3, 4, 5)
        ),
        _play("scene-1m", scene, "scene-singletask-task2", 60_000, **LONG),
    ]


def cells(asked: Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """One seed of every set and method before the next seed."""
    earlier: list[tuple[Settings, Path]] = []
    tried = dict(each.split("=", 1) for each in asked.tried)
    apart = {"eval_first": TRIAL_EPISODE} if asked.first_seed >= TRIAL_SEED else {}
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for chosen in sets(asked.large):
            for method, flags in chosen.methods.items():
                if asked.only not in chosen.name:
                    continue
                if not asked_for(method, asked.method, chosen.methods):
                    continue
                flags = {**flags, "eval_episodes": asked.episodes, **apart, **tried}
                name = ", ".join((method, *asked.tried))
                settings = replace(settings_from(flags), seed=seed)
                out = OUT / f"{chosen.name}-{name}-seed{seed}"
                key = {"set": chosen.name, "method": name, "seed": seed}
                yield key, partial(measured, settings, flags, out, earlier)


def measured(
    settings: Settings, flags: Flags, out: Path, earlier: list[tuple[Settings, Path]]
) -> Row:
    """Train one cell, sharing the codes of an equal earlier run; what it scored."""
    shutil.rmtree(out, ignore_errors=True)
    share_codes(settings, out, earlier)
    train(settings, out, resume=out.exists(), reporter=Reporter(quiet=True))
    earlier.append((settings, out))
    success = read_result(out)["success_rate"]
    return scored(out) | {
        "success_rate": success,
        "said": {k: v for k, v in flags.items() if k != "dataset"},
    }


def main() -> None:
    parser = arguments(__doc__, seeds=1)
    parser.add_argument(
        "--try", dest="tried", nargs="+", default=(), metavar="FLAG=VALUE", help="for trials"
    )
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--large", default="data", help="folder of the collected data of 1M steps")
    asked = parser.parse_args()
    if asked.tried and asked.first_seed < TRIAL_SEED:
        parser.error(f"trials have seeds from {TRIAL_SEED} on: pass --first-seed {TRIAL_SEED}")
    if asked.first_seed < TRIAL_SEED < asked.first_seed + asked.seeds:
        parser.error(f"seeds from {TRIAL_SEED} on are for trials: choose lower ones")
    for each in asked.tried:
        if "=" not in each:
            parser.error(f"--try {each}: expected FLAG=VALUE")
    table = TRIALS if asked.first_seed >= TRIAL_SEED else RESULTS
    fill(table, cells(asked), listing=asked.list)


if __name__ == "__main__":
    main()
