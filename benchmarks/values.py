"""Values on chunk codes: the goal configuration, each lever off or on, and FQL beside it.

    python benchmarks/values.py [--only TEXT] [--method TEXT] [--seeds 1] [--episodes 50] [--list]

Every cell is a final policy. The runs of one set and seed share one quantizer and one prior, so a
row of a lever differs from the goal's in the agent alone. benchmarks/results/values.jsonl gets a
line for each cell as it finishes; one that is there is not run again.

What the rows have to answer: what each lever is worth on play data and on Push-T, and whether
exact values on codes reach a flow policy (FQL, arXiv 2502.02538) at the same data and steps. The
data of 1M steps are made by `saqrl collect --env cube-single-v0 --style play --episodes 1000
--seed 1 --out cube-single-play-v0.npz` (scene alike), in the folder that --large names.
"""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from saqrl.studies.shared_codes import share_codes
from saqrl.studies.table import row_of
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings
from saqrl.training.train import train

RESULTS = Path(__file__).parent / "results" / "values.jsonl"
OUT = Path("runs/values")
DATA = os.environ.get("SAQRL_DATA", "../shared/data")

Flags = Mapping[str, Any]
PLAY = {
    "preset": "cube-single-play",
    "chunk": 5,
    "action_horizon": 5,
    "quantizer.codes": 128,
    "agent.expectile": 0.7,
    "agent.q_of": "actions",
    "agent.precision": "bfloat16",
}
# With ten times the data values are worth more trust: fewer steps of a chunk, sharper choices.
LARGE = {"action_horizon": 2, "act_temperature": 0.5}
# Several objects one after the other: values have to reach farther back, and nearer to the best.
LONG = {**LARGE, "agent.expectile": 0.9, "agent.discount": 0.995}
PUSHT = {
    "dataset": f"npz:{DATA}/npz/pusht-human.npz",
    "preset": "pusht-chunk8",
    "agent": "iql",
    "agent.temperature": 1.0,
    "act_temperature": 0.5,
    "steps": 10_000,
}
# Steps of the behaviour prior, which count: the opponent has as many more.
PRIOR = 10_000


class Set(NamedTuple):
    """A data set with the goal configuration on it, and its continuous opponent."""

    name: str
    goal: Flags
    opponent: Flags


def _play(name: str, dataset: str, task: str, steps: int, **acting: Any) -> Set:
    said = {"dataset": f"ogbench:{dataset}", "env": f"{task}-v0", "steps": steps}
    opponent = {
        **said,
        "preset": "cube-single-play",
        "agent": "fql",
        "actions": "continuous",
        "agent.precision": "bfloat16",
        "steps": steps + PRIOR,
    }
    return Set(name, {**PLAY, **said, **acting}, opponent)


def sets(large: str) -> list[Set]:
    """Cheap ones first."""
    small = f"{DATA}/ogbench/cube-single-play-v0.npz"
    cube, scene = (f"{large}/{name}-play-v0.npz" for name in ("cube-single", "scene"))
    return [
        _play("cube-100k-task2", small, "cube-single-singletask-task2", 30_000),
        Set(
            "pusht",
            PUSHT,
            {
                **{k: v for k, v in PUSHT.items() if not k.startswith(("agent", "act_"))},
                "agent": "fql",
                "actions": "continuous",
                "agent.normalize_q": True,
                "agent.alpha": 1.0,
                "steps": 10_000 + PRIOR,
            },
        ),
        *(
            _play(f"cube-1m-task{n}", cube, f"cube-single-singletask-task{n}", 60_000, **LARGE)
            for n in (2, 1, 3, 4, 5)
        ),
        _play("scene-1m", scene, "scene-singletask-task2", 60_000, **LONG),
    ]


# What is changed of the goal configuration, one at a time.
LEVERS: Mapping[str, Flags] = {
    "goal": {},
    "bins": {"agent.bins": 51, "agent.value_range": (-12.0, 2.0)},
    "supported": {"act": "greedy", "agent.extraction": "supported"},
    "members": {"members": 3},
    "chunk-discount": {"agent.discount": 0.9, "agent.chunk_discount": 0.99},
    "deviations": {"agent.critics": 4, "agent.deviations": 1.0},
    "weight-decay": {"agent.weight_decay": 0.3},
    "weighted-prior": {"agent.prior_temperature": 0.3},
    "expectile": {"agent.expectile": 0.9},
    "q-of-codes": {"agent.q_of": "codes"},
    "float32": {"agent.precision": "float32"},
}


def cells(asked: argparse.Namespace) -> Iterator[tuple[Set, str, Flags, int]]:
    """One seed of every set and method before the next seed."""
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for chosen in sets(asked.large):
            methods = {name: {**chosen.goal, **flags} for name, flags in LEVERS.items()}
            for method, flags in {**methods, "opponent": chosen.opponent}.items():
                if asked.only in chosen.name and asked.method in method:
                    yield chosen, method, flags, seed


def run(
    chosen: Set, method: str, flags: Flags, seed: int, earlier: list[tuple[Settings, Path]]
) -> dict[str, Any]:
    """Train and score one cell; its row of the table."""
    out = OUT / f"{chosen.name}-{method}-seed{seed}"
    shutil.rmtree(out, ignore_errors=True)
    settings = replace(settings_from(flags), seed=seed)
    share_codes(settings, out, earlier)
    begun = time.perf_counter()
    train(settings, out, resume=out.exists(), reporter=Reporter(quiet=True))
    earlier.append((settings, out))
    row = row_of(out)
    kept = ("measure", "final", "episodes", "act", "gradient_steps", "wall_seconds", "versions")
    return {
        "set": chosen.name,
        "method": method,
        "seed": seed,
        **{name: row[name] for name in kept},
        "agent": settings.agent_name,
        "seconds_of_cell": round(time.perf_counter() - begun),
        "said": {name: value for name, value in flags.items() if name != "dataset"},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--method", default="", help="methods whose name holds this")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--large", default="data", help="folder of the collected data of 1M steps")
    parser.add_argument("--list", action="store_true", help="say what would be trained, and stop")
    asked = parser.parse_args()
    rows = (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )
    done = {(row["set"], row["method"], row["seed"]) for row in rows}
    earlier: list[tuple[Settings, Path]] = []
    for chosen, method, flags, seed in cells(asked):
        flags = {**flags, "eval_episodes": asked.episodes}
        if (chosen.name, method, seed) in done:
            continue
        print(chosen.name, method, seed, flush=True)
        if asked.list:
            continue
        row = run(chosen, method, flags, seed, earlier)
        print(f"  {row['final']:.1f} {row['measure']} in {row['seconds_of_cell']} s", flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
