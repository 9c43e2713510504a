"""Good and poor demonstrations of one task: do values gain over cloning?

    python benchmarks/mixture.py [--method NAME] [--seeds 2] [--list]

The task is robosuite's can. Good: 25 scripted demonstrations. Poor: 150 episodes, failures with
them, recorded (`saqrl evaluate --record`) from a policy that was cloned from ten demonstrations.
What the rows have to answer: are values on codes 10 points above cloning of everything, and above
cloning of the successes alone, which needs no values? Same codes, same gradient steps (a prior
counts), final policies, 50 episodes. benchmarks/results/mixture.jsonl gets a line for each cell as
it finishes; one that is there is not run again.
"""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import saqrl
from saqrl.studies.table import row_of

RESULTS = Path(__file__).parent / "results" / "mixture.jsonl"
OUT = Path("runs/mixture")
DATA = os.environ.get("SAQRL_DATA", "../shared/data")
CAN = f"robomimic:{DATA}/robomimic/can/ph-scripted/low_dim.hdf5"
GOOD, POOR = OUT / "good.npz", OUT / "poor.npz"
DEMONSTRATIONS, RECORDED, EPISODES = 25, 150, 50

CHUNKS = {
    "recipe": "plain",
    "chunk": 8,
    "action_horizon": 8,
    "quantizer.codes": 64,
    "feature_deviation": 0.3,
    "act_temperature": 0.5,
}
BOTH = f"npz:{GOOD} + npz:{POOR}"
# A policy's steps are those of its prior and of its agent together: 20,000.
CLONING = {**CHUNKS, "agent": "bc", "steps": 20_000}
VALUES = {
    **CHUNKS,
    "agent": "iql",
    "agent.q_of": "actions",
    "agent.expectile": 0.7,
    # Rewards of 1 as they are: an advantage of 0.1 makes a code e times as probable.
    "reward_scale": "none",
    "agent.temperature": 0.1,
    "steps": 10_000,
}
METHODS: dict[str, Mapping[str, Any]] = {
    "cloning": {**CLONING, "dataset": BOTH},
    "cloning-successes": {**CLONING, "dataset": BOTH, "dataset.min_reward": 1.0},
    "cloning-good": {**CLONING, "dataset": f"npz:{GOOD}"},
    "values": {**VALUES, "dataset": BOTH},
    "recipe": {"dataset": BOTH},
}


def poor(place: Path) -> None:
    """Record the policy that ten demonstrations give after a short training."""
    run = OUT / "poor-run"
    few = {**CLONING, "steps": 3_000, "quantizer_steps": 3_000, "act_temperature": 1.0}
    saqrl.fit(
        CAN, out=run, resume=run.exists(), quiet=True, data_episodes=10, eval_episodes=1, **few
    )
    saqrl.Run(run).evaluate(RECORDED, record=place)


def good(place: Path, played: Path) -> None:
    """The demonstrations until they first succeed, in the form of what was recorded."""
    log = saqrl.load_dataset(CAN)
    rows, solved = [], []
    for start, end in zip(log.episode_starts, log.episode_ends, strict=True):
        if len(solved) == DEMONSTRATIONS:
            break
        paid = np.flatnonzero(log.rewards[start:end] > 0)
        rows.append(np.arange(start, start + paid[0] + 1 if len(paid) else end))
        solved.append(bool(len(paid)))
    kept, last = np.concatenate(rows), np.cumsum([len(part) for part in rows]) - 1
    terminals = np.zeros(len(kept), bool)
    terminals[last] = solved
    with np.load(played) as file:
        about = file["saqrl"]
    np.savez(
        place,
        observations=log.observations[kept],
        actions=log.actions[kept],
        rewards=log.rewards[kept],
        next_observations=log.next_observations[kept],
        terminals=terminals,
        timeouts=np.zeros(len(kept), bool),
        saqrl=about,
    )


def run(method: str, seed: int) -> dict[str, Any]:
    """Train and score one cell; its row."""
    out = OUT / f"{method}-seed{seed}"
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    trained = saqrl.fit(out=out, quiet=True, seed=seed, eval_episodes=EPISODES, **METHODS[method])
    row = row_of(out)
    kept = ("measure", "final", "episodes", "act", "gradient_steps", "wall_seconds", "versions")
    return {
        "method": method,
        "seed": seed,
        **{name: row[name] for name in kept},
        "agent": trained.settings.agent_name,
        "seconds_of_cell": round(time.perf_counter() - begun),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="", choices=("", *METHODS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="say what would be trained, and stop")
    asked = parser.parse_args()
    rows = (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )
    done = {(row["method"], row["seed"]) for row in rows}
    OUT.mkdir(parents=True, exist_ok=True)
    for seed in range(asked.seeds):
        for method in METHODS:
            if asked.method in ("", method) and (method, seed) not in done:
                print(method, seed, flush=True)
                if asked.list:
                    continue
                if not POOR.exists():
                    poor(POOR)
                if not GOOD.exists():
                    good(GOOD, POOR)
                row = run(method, seed)
                print(f"  {row['final']:.1f} in {row['seconds_of_cell']} s", flush=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
