"""Single runs beside the comparison: each row is one `saqrl train` and its two ways of acting.

    python benchmarks/core_results.py [--only TEXT] [--seeds 0 1 2]

Rows that are in benchmarks/results/core.json already (same command, same version) are not run
again, so a stopped table goes on. Runs go to a temporary folder; the figures stay.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import saqrl

RESULTS = Path(__file__).parent / "results" / "core.json"
DATA = os.environ.get("SAQRL_DATA", "../shared/data")
PUSHT = f"--dataset npz:{DATA}/npz/pusht-human.npz --env gym_pusht/PushT-v0 --angles 4"
FEW = f"--dataset d4rl:{DATA}/d4rl/door-expert.hdf5 --data-episodes 5"
WIDE = "--steps 5000 --feature-deviation 1"

# Push-T four times as long as in the comparison, with a tenth of the episodes held out and without;
# the door with inputs ten times as large.
ROWS = {
    **{
        f"Push-T, {name}{on}": f"{PUSHT}{share} {command}"
        for on, share in ((", all episodes", " --held-out 0"), ("", ""))
        for name, command in {
            "MSE-BC": "--actions continuous --agent bc",
            "SAQ-BC, 16 codes": (
                "--agent bc --quantizer.codes 16 --quantizer-steps 20000 --steps 20000"
            ),
            "SAQ-BC, chunk 8": "--agent bc --chunk 8 --quantizer-steps 20000 --steps 20000",
        }.items()
    },
    "door-expert 5, MSE-BC": f"{FEW} --actions continuous --agent bc --steps 5000",
    "door-expert 5, MSE-BC, inputs of deviation 1": (
        f"{FEW} --actions continuous --agent bc {WIDE}"
    ),
    "door-expert 5, MSE-BC, inputs of deviation 1, weight decay": (
        f"{FEW} --actions continuous --agent bc {WIDE} --agent.weight-decay 0.3"
    ),
    "door-expert 5, SAQ-BC, inputs of deviation 1": (
        f"{FEW} --agent bc --quantizer-steps 5000 {WIDE} --agent.weight-decay 0.3 "
        "--quantizer.codes 16 --quantizer.state-scale 0.3"
    ),
}


def saqrl_json(*words: str) -> dict:
    """The JSON object that a command prints last; its error, if it fails, is shown and raised."""
    done = subprocess.run(
        [sys.executable, "-m", "saqrl.cli", *words, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(command: str, seed: int) -> dict:
    """Train once, score both ways of acting on the same 50 starts."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        trained = saqrl_json("train", *shlex.split(command), "--seed", str(seed), "--out", run)
        other = "greedy" if trained["act"] == "sample" else "sample"
        scores = {trained["act"]: trained}
        if "continuous" not in command:
            scores[other] = saqrl_json(
                "evaluate", run, "--act", other, "--episodes", str(trained["episodes"])
            )
    kept = ("return_mean", "return_std", "success_rate", "normalized_score", "max_reward_mean")
    return {
        "command": f"saqrl train {command} --seed {seed}",
        "seed": seed,
        "default_act": trained["act"],
        "episodes": trained["episodes"],
        "gradient_steps": trained["gradient_steps"],
        "wall_seconds": trained["wall_seconds"],
        "quantizer": trained["quantizer"],
        **{act: {name: score[name] for name in kept} for act, score in scores.items()},
    }


def markdown(rows: list[dict]) -> str:
    """One line a row that is still in ROWS: the task's own measure for both ways of acting."""
    lines = ["| run | greedy | sampled | time | command |", "|---|---|---|---|---|"]
    commands = [f"saqrl train {command} --seed " for command in ROWS.values()]
    for row in rows:
        if not any(row["command"].startswith(command) for command in commands):
            continue
        cells = [row["name"], *(_score(row.get(act)) for act in ("greedy", "sample"))]
        cells += [f"{row['wall_seconds']:.0f} s", f"`{row['command']}`"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _score(score: dict | None) -> str:
    """D4RL's normalised score where there is one, else the highest reward of an episode."""
    if score is None:
        return ""
    if score["normalized_score"] is not None:
        return f"{score['normalized_score']:.1f}"
    return f"{score['max_reward_mean']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print what is there as Markdown")
    asked = parser.parse_args()
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if asked.table:
        print(markdown(table["rows"]))
        return
    table["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "saqrl": saqrl.__version__,
    }
    done = {row["command"] for row in table["rows"]}
    for seed in asked.seeds:
        for name, command in ROWS.items():
            if asked.only not in name or f"saqrl train {command} --seed {seed}" in done:
                continue
            print(f"== {name}, seed {seed}", file=sys.stderr)
            table["rows"].append({"name": name, **measure(command, seed)})
            RESULTS.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
