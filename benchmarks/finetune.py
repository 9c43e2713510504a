"""Fine-tuning online: how the score moves, from which run, with which share of offline data.

    python benchmarks/finetune.py [--only TEXT] [--method NAME] [--seeds 3] [--steps N] [--list]

A run of each set and seed is trained offline (agent iql, and bc for `from-bc`) and goes on in its
environment. benchmarks/results/finetune.jsonl gets a line for each cell as it finishes, with the
curve; one that is there is not run again, one that was stopped goes on.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import saqrl
from saqrl.training.evaluation import measure_of
from saqrl.training.run_folder import read_config, read_history

RESULTS = Path(__file__).parent / "results" / "finetune.jsonl"
OUT = Path("runs/finetune")
DATA = os.environ.get("SAQRL_DATA", "../shared/data")
EPISODES = 50

Flags = Mapping[str, Any]


def _door(name: str) -> Flags:
    return {"dataset": f"d4rl:{DATA}/d4rl/{name}.hdf5", "env": "AdroitHandDoor-v1"}


SETS: dict[str, Flags] = {
    "cube-single-task2": {
        "dataset": f"ogbench:{DATA}/ogbench/cube-single-play-v0.npz",
        "env": "cube-single-singletask-task2-v0",
        "chunk": 5,
    },
    "door-human": _door("door-human"),
    "hopper-medium": {"dataset": f"d4rl:{DATA}/d4rl/hopper-medium.hdf5", "env": "Hopper-v4"},
}
# The agent of the offline run, and how it goes on.
METHODS: dict[str, tuple[str, Flags]] = {
    "half-offline": ("iql", {"keep_offline": 0.5}),
    "online-alone": ("iql", {"keep_offline": 0.0}),
    "no-noise": ("iql", {"noise": 0.0}),
    "from-bc": ("bc", {"agent": "iql"}),
}


def cells(asked: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """One seed of every method and set before the next seed."""
    for seed in range(asked.seeds):
        for name in SETS:
            for method in METHODS:
                if asked.only in name and asked.method in ("", method):
                    yield name, method, seed


def run(name: str, method: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and fine-tune one cell; its row."""
    agent, how = METHODS[method]
    place = OUT / f"{name}-{agent}-seed{seed}"
    said = {**SETS[name], "agent": agent, "seed": seed, "members": 1}
    said["eval_episodes"] = EPISODES
    offline = saqrl.fit(out=place, resume=place.exists(), quiet=True, **said)
    out = OUT / f"{name}-{method}-seed{seed}-{steps}"
    tuned = offline.finetune(out=out, resume=out.exists(), steps=steps, **how)
    result = tuned.result
    measure, factor = measure_of(result["env"], result)
    scored = [r for r in read_history(out, "evaluations") if r["stage"] == "online"]
    curve = [(record["step"], factor * record[measure]) for record in scored]
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "steps": steps,
        "measure": measure,
        "before": curve[0][1],
        "final": factor * result[measure],
        "curve": curve,
        "finetune": result["finetune"],
        "wall_seconds": result["wall_seconds"],
        "versions": read_config(out)["versions"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--method", default="", help="only this method")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50_000, help="environment steps")
    parser.add_argument("--list", action="store_true", help="say what would be run, and stop")
    asked = parser.parse_args()
    rows = (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )
    done = {(row["set"], row["method"], row["seed"], row["steps"]) for row in rows}
    for name, method, seed in cells(asked):
        if (name, method, seed, asked.steps) in done:
            continue
        print(name, method, seed, flush=True)
        if asked.list:
            continue
        row = run(name, method, seed, asked.steps)
        told = f"{row['before']:.1f} to {row['final']:.1f} {row['measure']}"
        print(f"  {told} in {row['wall_seconds']:.0f} s", flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
