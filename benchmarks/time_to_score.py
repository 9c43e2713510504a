"""Score against gradient steps: the paper's preset, and ours with a tenth of its steps.

    python benchmarks/time_to_score.py [--only TEXT] [--seeds 1] [--paper-steps 20000 10000]

SAQ-BC on three data sets. The paper's preset is followed for so many steps of quantizer and prior
(its own schedule of 500,000 each would take hours; its rate is constant, so that a shorter run is
a part of the longer one). Ours gets a tenth of those steps, and its schedule ends there; on
hopper-expert, where that is too few, it gets 20,000 as well and acts greedily. Runs lie
under runs/time-to-score; benchmarks/results/time_to_score.json holds the curves, which
docs/results/time-to-score.png shows.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from throughput import machine

from saqrl.studies.table import MEASURES
from saqrl.training.evaluation import measure_of
from saqrl.training.flags import changed
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import read_history
from saqrl.training.settings import Settings
from saqrl.training.train import train
from saqrl.training.versions import versions

RESULTS = Path(__file__).parent / "results" / "time_to_score.json"
PICTURE = Path(__file__).parents[1] / "docs" / "results" / "time-to-score.png"
OUT = Path("runs/time-to-score")
EVALUATIONS, EPISODES = 5, 20
SETS: dict[str, dict[str, Any]] = {
    "door-expert-25": {"dataset": "d4rl:{}/d4rl/door-expert.hdf5", "data_episodes": 25},
    "pusht": {
        "dataset": "npz:{}/npz/pusht-human.npz",
        "env": "gym_pusht/PushT-v0",
        "angles": (4,),
    },
    "hopper-expert": {"dataset": "d4rl:{}/d4rl/hopper-expert.hdf5"},
}


# Steps of quantizer and prior where a tenth of the paper's is too few.
LONGER = {"hopper-expert": (10_000, 10_000)}


def settings_of(preset: str, data: dict[str, Any], steps: tuple[int, int], seed: int) -> Settings:
    name = preset.partition(",")[0]
    settings = build_settings(name, agent="bc", quantizer="vqvae")
    said = data | {"seed": seed, "eval_episodes": EPISODES, "eval_every": steps[1] // EVALUATIONS}
    said |= {"quantizer_steps": steps[0], "steps": steps[1]}
    return changed(settings, said | ({"act": "greedy"} if "greedy" in preset else {}))


def draw(lines: list[dict[str, Any]]) -> None:
    """Score against all gradient steps so far, a panel for each data set."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    names = list(dict.fromkeys(line["data"] for line in lines))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for line in lines:
            if line["data"] == name:
                colour = "C1" if line["preset"] == "paper" else "C0"
                dashed = "--" if "longer" in line["preset"] else "-"
                axis.plot(
                    *zip(*line["curve"], strict=True),
                    marker=".",
                    color=colour,
                    ls=dashed,
                    label=line["preset"].replace("paper", "the paper's preset"),
                )
        axis.set_xscale("log")
        axis.set_xticks([2_500, 5_000, 10_000, 25_000], ["2,500", "5,000", "10,000", "25,000"])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(0, 1.1 * max(axis.get_ylim()[1], 50))
        measure = next(line["measure"] for line in lines if line["data"] == name)
        axis.set(title=name, xlabel="gradient steps, quantizer and prior", ylabel=MEASURES[measure])
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        default=os.environ.get("SAQRL_DATA", "../shared/data"),
        help="folder of the data files",
    )
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--paper-steps", type=int, nargs=2, default=(20_000, 10_000))
    asked = parser.parse_args()
    lines = json.loads(RESULTS.read_text())["lines"] if RESULTS.exists() else []
    for seed in range(asked.seeds):
        for name, what in SETS.items():
            longer = ("default, longer, greedy",) if name in LONGER else ()
            for preset in ("default", *longer, "paper"):
                known = any(
                    (x["data"], x["preset"], x["seed"]) == (name, preset, seed) for x in lines
                )
                if asked.only not in name or known:
                    continue
                share = 1 if preset == "paper" else 10
                steps = (asked.paper_steps[0] // share, asked.paper_steps[1] // share)
                if preset in longer:
                    steps = LONGER[name]
                data = what | {"dataset": what["dataset"].format(asked.data)}
                settings = settings_of(preset, data, steps, seed)
                folder = OUT / f"{name}-{preset.replace(', ', '-')}-seed{seed}"
                summary = train(settings, folder, resume=folder.exists(), reporter=Reporter())
                records = read_history(folder, "evaluations")
                measure, scale = measure_of(summary["env"], records[-1])
                curve = [(steps[0] + r["step"], scale * r[measure]) for r in records]
                lines.append(
                    {
                        "data": name,
                        "preset": preset,
                        "seed": seed,
                        "measure": measure,
                        "curve": curve,
                        "mean_of_last_three": sum(score for _, score in curve[-3:]) / 3,
                        "seconds": summary["seconds"],
                    }
                )
                record = {
                    "command": "python benchmarks/time_to_score.py",
                    "machine": machine(),
                    "versions": versions(),
                    "paper_steps": list(asked.paper_steps),
                    "episodes": EPISODES,
                    "lines": lines,
                }
                RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    draw(lines)


if __name__ == "__main__":
    main()
