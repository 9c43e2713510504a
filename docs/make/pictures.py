"""Pictures of docs/concepts/method.md and docs/results/finetuning.md.

Made by python docs/make/pictures.py (extra `plots`).

What is drawn is what saqrl learns: codes of the flights past a pillar in examples/own_arrays.py,
and rows of benchmarks/results/grid.jsonl.
"""

import json
import runpy
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

import saqrl

matplotlib.use("agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "concepts"
BLUE, ORANGE, GREY = "#3f51b5", "#e65100", "#9e9e9e"
CONTINUOUS = ("bc", "gaussian", "gmm", "cql", "iql", "brac", "rebrac")
SETS = {
    "pusht-chunk8": "Push-T, chunks of 8 (human)",
    "pusht": "Push-T (human)",
    "can-50-chunk8": "can, 50, chunks of 8 (several ways)",
    "hopper-mixed": "hopper, mixed skill",
    "door-25": "door, 25 (expert)",
    "door-5": "door, 5 (expert)",
    "hopper-expert": "hopper (expert)",
}


def codes_of_two_states(quantizer, flights: dict[str, np.ndarray]) -> None:
    """The same eight codes decoded in two states: thick is probable, orange is the mean action."""
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    starts = np.flatnonzero(np.r_[True, flights["episode_ends"][:-1]])
    for start in starts[:30]:
        axes.plot(*flights["observations"][start : start + 20].T, color=GREY, lw=0.5, alpha=0.6)
    axes.add_patch(plt.Circle((0, 0), 0.25, color="#cfd8dc"))
    axes.annotate("pillar", (0, 0), ha="center", va="center", fontsize=8)
    for state in np.array([[-0.85, 0.0], [0.1, 0.45]]):
        actions = np.asarray(quantizer.decode(np.tile(state, (8, 1)), np.arange(8)))
        actions = actions.reshape(8, -1, 2)[:, 0]
        prior = np.exp(np.asarray(quantizer.log_prior(state)))
        for code, (action, chance) in enumerate(zip(actions, prior, strict=True)):
            tip = state + 0.3 * action
            style = {"arrowstyle": "->", "color": BLUE, "lw": 0.6 + 5 * chance}
            axes.annotate("", tip, state, arrowprops={**style, "alpha": 0.35 + 0.65 * chance})
            if chance > 0.05:
                axes.annotate(str(code), tip + 0.03, fontsize=8, color=BLUE)
        mean = state + 0.3 * (prior @ actions)
        axes.annotate("", mean, state, arrowprops={"arrowstyle": "->", "color": ORANGE, "lw": 2})
    axes.set(xlim=(-1.1, 1.1), ylim=(-0.62, 0.72), aspect="equal", xticks=[], yticks=[])
    save(figure, "codes")


def exact_and_sampled(quantizer) -> None:
    """An expectation over eight codes, and what estimates of it from samples look like."""
    generator = np.random.default_rng(0)
    prior = np.exp(np.asarray(quantizer.log_prior(np.array([-0.85, 0.0]))))
    prior = prior / prior.sum()
    values = generator.normal(0, 1, 8)
    exact = prior @ values
    figure, axes = plt.subplots(figsize=(5.5, 2.3), layout="constrained")
    for place, count in enumerate((1, 4, 10, 30)):
        drawn = values[generator.choice(8, (300, count), p=prior)].mean(1)
        jitter = generator.uniform(-0.25, 0.25, 300)
        axes.plot(drawn, place + jitter, ".", color=ORANGE, ms=2, alpha=0.6)
    axes.axvline(exact, color=BLUE, lw=2)
    axes.set_yticks(range(4), ["1 sample", "4", "10", "30 samples"], fontsize=8)
    axes.set_xlabel("estimates of E[Q] (orange) and the sum over all codes (blue)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    save(figure, "exact")


def when_it_helps() -> None:
    """SAQ-BC less the best continuous method of each data set, as a mean and seed by seed."""
    lines = (ROOT / "benchmarks/results/grid.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
    for place, (task, name) in enumerate(reversed(SETS.items())):
        scores: dict[str, list[float]] = {}
        for row in rows:
            if row["task"] == task:
                scores.setdefault(row["method"], []).append(row["final"])
        rivals = {m: np.mean(s) for m, s in scores.items() if m in CONTINUOUS}
        best = max(rivals, key=lambda method: rivals[method])
        gains = np.asarray(scores["saq-bc"]) - rivals[best]
        axes.barh(place, gains.mean(), color=BLUE if gains.mean() > 0 else ORANGE, alpha=0.5)
        axes.plot(gains, np.full(len(gains), place), "k.", ms=4)
        axes.annotate(f"{name}; best: {best}", (38, place), va="center", fontsize=8)
    axes.axvline(0, color="black", lw=0.8)
    axes.set(yticks=[], xlim=(-30, 95))
    axes.set_xlabel("points above the best continuous method; dots: seeds", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    save(figure, "when")


# Of fine-tuning: words and colours of the methods of benchmarks/finetune.py.
ONLINE = {
    "frozen": ("codes that stay", GREY, "-"),
    "grow": ("codes that grow", BLUE, "-"),
    "iql": ("IQL", ORANGE, "-"),
    "rlpd": ("RLPD", ORANGE, "--"),
    "nothing": ("SAC from nothing", ORANGE, ":"),
}
WORLDS = {
    "reacher-moved": "Reacher, target moved: return",
    "hopper-medium": "hopper-medium: D4RL score",
    "pusht": "Push-T: highest reward, %",
    "cube-single-task2": "cube-single: success, %",
}


def online() -> None:
    """Curves of fine-tuning: the mean of the seeds, and a thin line for each."""
    text = (ROOT / "benchmarks" / "results" / "finetune.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    found = {row["set"] for row in rows if row["method"] in ONLINE}
    worlds = {name: title for name, title in WORLDS.items() if name in found}
    size = (3.2 * len(worlds), 3)
    figure, every = plt.subplots(1, len(worlds), figsize=size, layout="constrained")
    for axes, (name, title) in zip(every, worlds.items(), strict=True):
        for method, (words, color, dashes) in ONLINE.items():
            own = [r["curve"] for r in rows if (r["set"], r["method"]) == (name, method)]
            if not own:
                continue
            style = {"color": color, "ls": dashes}
            for curve in own:
                axes.plot(*np.transpose(curve), **style, lw=0.6, alpha=0.6)
            axes.plot(*np.mean(own, axis=0).T, **style, lw=1.8, label=words)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("environment steps", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xticks((0, 10_000, 20_000))
    every[0].legend(fontsize=7, loc="lower right")
    save(figure, "finetuning", ROOT / "docs" / "results")


def save(figure, name: str, folder: Path = OUT) -> None:
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=130, metadata={"Software": None})
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    flights = runpy.run_path(str(ROOT / "examples" / "own_arrays.py"))["flights"](60, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        run = saqrl.fit(
            **flights,
            recipe="plain",
            agent="bc",
            steps=1000,
            quantizer_steps=1000,
            quiet=True,
            out=Path(folder) / "run",
            **{"quantizer.codes": 8, "quantizer.hidden": 64, "agent.hidden": 64},
        )
        codes_of_two_states(run.quantizer, flights)
        exact_and_sampled(run.quantizer)
    when_it_helps()
    online()
