"""The main job over several seeds: SAQ-BC beside regression and the Gaussian mixture.

    python benchmarks/demo.py [--seeds 0 1 2 3 4] [--table]

Each seed collects its own demonstrations, as `saqrl train --seed N` does, and trains every row on
them; 50 episodes of the final policy each, from the starts of `saqrl evaluate`. Rows that are in
benchmarks/results/demo.json already are not run again.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import saqrl
from saqrl.datasets.formats.writers import save_arrays
from saqrl.environments.oracles.collect import collect
from saqrl.training.presets import MAIN_JOB, PRESETS
from saqrl.training.versions import versions

RESULTS = Path(__file__).parent / "results" / "demo.json"
JOB = PRESETS[MAIN_JOB].settings
# The quantizer and the agent of the main job take 3,000 steps each. Opponents get those of the
# agent, as the baseline of the main job, or those of both.
PLAIN = {"actions": "continuous", "agent": "bc", "steps": 3_000}
LONGER = PLAIN | {"steps": 6_000}
MIXTURE = LONGER | {"agent": "gmm"}
# (style, row): what differs from the main job.
ROWS: dict[tuple[str, str], dict[str, Any]] = {
    ("human", "SAQ-BC (the main job)"): {},
    ("human", "BC (its baseline)"): PLAIN,
    ("expert", "SAQ-BC (the main job)"): {},
    ("expert", "BC (its baseline)"): PLAIN,
    ("human", "BC, chunk 1, 6,000 steps"): LONGER | {"chunk": 1},
    ("human", "BC, 6,000 steps"): LONGER,
    ("human", "GMM, 6,000 steps"): MIXTURE,
    ("human", "SAQ-BC, chunk 8"): {"chunk": 8},
    ("human", "BC, chunk 8, 6,000 steps"): LONGER | {"chunk": 8},
}


def demonstrate(style: str, seed: int, folder: Path) -> tuple[Path, dict[str, float]]:
    """The demonstrations that the main job would collect, and what they are."""
    path = folder / f"{style}-{seed}.npz"
    began = time.perf_counter()
    arrays = collect(
        JOB["env"], style=style, episodes=JOB["demonstrations"], seed=seed, workers=os.cpu_count()
    )
    save_arrays(path, arrays)
    return path, {
        "collect_seconds": round(time.perf_counter() - began, 1),
        "mean_length": len(arrays["rewards"]) / JOB["demonstrations"],
        "successes": int(arrays["terminals"].sum()),
        "failed_attempts": json.loads(arrays["provenance"].item())["failed_attempts"],
    }


def measure(path: Path, seed: int, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one row and play 50 episodes."""
    said = {"preset": MAIN_JOB, "seed": seed, "eval_episodes": 50, "baseline": False} | changes
    began = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        result = saqrl.fit(path, out=Path(out) / "run", quiet=True, **said).result
    kept = ("success_rate", "length_mean", "act", "episodes", "gradient_steps", "wall_seconds")
    measured = {name: result[name] for name in kept}
    return measured | {"processor_seconds": round(time.process_time() - began, 1)}


def table_text(rows: list[dict[str, Any]]) -> str:
    """One line a style and row: success of every seed and their mean, in per cent."""
    lines = ["| demonstrations | policy | success % | by seed |", "|---|---|---|---|"]
    for style, name in ROWS:
        own = [row for row in rows if (row["style"], row["name"]) == (style, name)]
        if own:
            scores = [100 * row["success_rate"] for row in sorted(own, key=lambda row: row["seed"])]
            each = ", ".join(f"{score:.0f}" for score in scores)
            lines.append(f"| {style} | {name} | {sum(scores) / len(scores):.0f} | {each} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown")
    asked = parser.parse_args()
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"data": [], "rows": []}
    if asked.table:
        print(table_text(table["rows"]))
        return
    table["command"] = "python benchmarks/demo.py"
    table["machine"] = {"cores": os.cpu_count(), "processor": platform.machine()}
    table["versions"] = versions(JOB["env"])
    done = {(row["style"], row["name"], row["seed"]) for row in table["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        for (style, name), changes in ROWS.items():
            for seed in asked.seeds:
                if (style, name, seed) in done:
                    continue
                path = Path(folder) / f"{style}-{seed}.npz"
                if not path.exists():
                    path, described = demonstrate(style, seed, Path(folder))
                    table["data"].append({"style": style, "seed": seed, **described})
                print(f"== {style}, {name}, seed {seed}", file=sys.stderr)
                measured = measure(path, seed, changes, Path(folder))
                table["rows"].append({"style": style, "name": name, "seed": seed, **measured})
                RESULTS.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
