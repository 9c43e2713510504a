"""The quantization studies: how many codes, what the state is worth, which quantizer, how fast.

    python benchmarks/quantization.py [--data DIR] [--only TEXT] [--seeds 3] [--list] [--smoke]

Each measurement is one line of benchmarks/results/quantization.jsonl as soon as it is there, and
is not made again; quantization.json is their summary. It can be stopped anywhere and called again.
One seed of everything comes before the next seed. Runs that are scored lie under
runs/quantization and resume.

(a) codes      K = 8..512: held-out error, and score of SAQ-BC
(b) state      vqvae against vqvae-unconditioned for CQL, IQL, BRAC
(c) diversity  narrow against diverse data of one robot
(d) quantizers every quantizer at 64 codes
(e) network    widths of the networks that see the state; how much of it they see, by the score
               from five noisy demonstrations
(f) learning   what moving averages, k-means, revival and bounded encodings bring: steps to the
               error of the paper's preset
(g) replay     held-out episodes executed again, as they were and through their codes
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saqrl.arrays import write_atomically
from saqrl.datasets import load_dataset
from saqrl.quantizers import QUANTIZERS
from saqrl.studies.codebooks.material import Material, gather
from saqrl.studies.codebooks.replay import replay
from saqrl.studies.codebooks.study import examine, make_quantizer
from saqrl.training import engine
from saqrl.training.codebook_health import reconstruction_error
from saqrl.training.codes import encode_all
from saqrl.training.flags import changed
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter
from saqrl.training.train import train
from saqrl.training.versions import versions

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/quantization")
SIZES = (8, 16, 32, 64, 128, 256, 512)
SCORED_SIZES = (8, 32, 128, 512)
# Enough that held-out errors change by less than their spread over seeds.
QUANTIZER_STEPS, PRIOR_STEPS, AGENT_STEPS = 4_000, 2_000, 4_000
# Study (f): the paper's preset is followed to here of its 500,000 steps.
LEARNING_STEPS, PAPER_STEPS = 4_000, 10_000

# Name -> how to read it; `first` keeps the reconstruction studies to so many episodes.
SETS: dict[str, dict[str, Any]] = {
    "door-expert": {"path": "d4rl/door-expert.hdf5", "first": 25},
    "door-expert-5": {"path": "d4rl/door-expert.hdf5", "first": 5},
    "pusht": {"path": "npz/pusht-human.npz", "angles": (4,), "environment": "gym_pusht/PushT-v0"},
    "hopper-expert": {"path": "d4rl/hopper-expert.hdf5"},
    "hopper-medium": {"path": "d4rl/hopper-medium.hdf5"},
    "hopper-mixed": {"path": "d4rl/hopper-mixed.hdf5"},
    "halfcheetah-expert": {"path": "d4rl/halfcheetah-expert.hdf5"},
    "door-human": {"path": "d4rl/door-human.hdf5"},
    "door-expert-100": {"path": "d4rl/door-expert.hdf5"},
    "hammer-expert-100": {"path": "d4rl/hammer-expert.hdf5"},
    "lift": {"path": "robomimic/lift/ph-scripted/low_dim.hdf5"},
    "can": {"path": "robomimic/can/ph-scripted/low_dim.hdf5"},
}
# Episodes of study (g) at most; those of robosuite are slow.
REPLAYED = {"lift": 4, "can": 4}
# What study (f) takes away from ours, and adds to the paper's.
LEARNERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours without k-means": {"first_codes": "random"},
    "ours without moving averages": {"codebook": "gradient", "revive_below": 0.0},
    "ours without revival": {"revive_below": 0.0},
    "ours without bound": {"encodings": "free"},
    "ours, constant rate": {"schedule": "constant"},
}
PAPER_LEARNERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper with k-means": {"first_codes": "kmeans"},
    "paper with moving averages": {"codebook": "average"},
    "paper with moving averages and revival": {"codebook": "average", "revive_below": 0.3},
}


def plan(seed: int) -> Iterator[dict[str, Any]]:
    """The measurements of one seed, the cheap ones first."""
    for data in ("door-expert", "pusht", "hopper-expert"):
        for codes in SIZES:
            yield {"study": "codes", "data": data, "quantizer": "vqvae", "codes": codes}
    for data in ("pusht", "door-expert", "hopper-mixed"):
        for name in QUANTIZERS:
            if name != "vqvae":
                yield {"study": "quantizers", "data": data, "quantizer": name, "codes": 64}
    for data in ("hopper-medium", "hopper-mixed", "door-human", "halfcheetah-expert"):
        for name in ("vqvae", "kmeans"):
            yield {"study": "diversity", "data": data, "quantizer": name, "codes": 64}
    yield {"study": "diversity", "data": "hopper-expert", "quantizer": "kmeans", "codes": 64}
    for hidden in ((64,), (128, 128), (512, 512)):
        for data in ("pusht", "door-expert"):
            yield {
                "study": "network",
                "data": data,
                "quantizer": "vqvae",
                "codes": 64,
                "hidden": hidden,
            }
    for data in ("door-expert", "pusht", "hopper-expert"):
        for codes in SCORED_SIZES:
            yield {
                "study": "codes-score",
                "data": data,
                "quantizer": "vqvae",
                "codes": codes,
                "agent": "bc",
            }
    for changes in ({"state_scale": 0.1}, {"state_scale": 0.3}, {}, {"encodings": "free"}):
        yield {
            "study": "scale-score",
            "data": "door-expert-5",
            "quantizer": "vqvae",
            "codes": 16,
            "agent": "bc",
            "changes": changes,
        }
    for data in ("hopper-mixed", "door-expert"):
        for agent in ("iql", "brac", "cql"):
            for name in ("vqvae", "vqvae-unconditioned"):
                yield {
                    "study": "state-score",
                    "data": data,
                    "quantizer": name,
                    "codes": 64,
                    "agent": agent,
                }

    for data in ("pusht", "door-expert", "hopper-expert"):
        for name in (*PAPER_LEARNERS, *LEARNERS):
            yield {"study": "learning", "data": data, "quantizer": name}
    for data in ("pusht", "door-expert-100", "hammer-expert-100", "hopper-expert", "lift", "can"):
        for codes in (16, 64):
            yield {"study": "replay", "data": data, "quantizer": "vqvae", "codes": codes}


@lru_cache(maxsize=1)
def material_of(root: str, name: str, seed: int) -> Material:
    what = SETS[name]
    data = load_dataset(
        str(Path(root) / what["path"]),
        angles=what.get("angles", ()),
        episodes=what.get("first"),
        environment=what.get("environment"),
    )
    return gather(data, seed=seed)


def measure(
    job: dict[str, Any], *, root: str, seed: int, smoke: bool, reporter: Reporter
) -> dict[str, Any]:
    """The result of one job, to be put beside it."""
    if job["study"].endswith("-score"):
        return scored(job, root=root, seed=seed, smoke=smoke, reporter=reporter)
    material = material_of(root, job["data"], seed)
    if job["study"] == "learning":
        return learned(job, material, smoke=smoke)
    quantizer = make_quantizer(
        job["quantizer"],
        codes=job["codes"],
        hidden=job.get("hidden"),
        steps=20 if smoke else QUANTIZER_STEPS,
    )
    prior_steps = 20 if smoke else PRIOR_STEPS
    examination = examine(material, quantizer, prior_steps=prior_steps, reporter=reporter)
    record = examination.record
    if job["study"] == "replay":
        shown = material.shown_transitions
        most = 1 if smoke else REPLAYED.get(job["data"], 10)
        played = replay(
            shown,
            examination.quantizer,
            material.scaling,
            episodes=min(most, shown.num_episodes),
            error=np.asarray(record["error"]["rms"], np.float32),
            reporter=reporter,
        )
        return {"error_per_deviation": record["error_per_deviation"], **played}
    return {**record, "noise_per_deviation": material.noise_per_deviation}


def learned(job: dict[str, Any], material: Material, *, smoke: bool) -> dict[str, Any]:
    """Held-out error along the steps, at 64 codes."""
    name = job["quantizer"]
    # Closely at first, where ours learns most.
    most = 20 if smoke else PAPER_STEPS if name == "paper" else LEARNING_STEPS
    pauses = [most // 2] if smoke else [*range(25, 500, 25), *range(500, most, 250)]
    if name in PAPER_LEARNERS:
        quantizer = build_settings("paper", agent="bc", quantizer="vqvae").quantizer
        changes = {"codes": 64, **PAPER_LEARNERS[name]}
        quantizer = replace(quantizer, **changes)  # type: ignore[type-var]
    else:
        quantizer = make_quantizer("vqvae", codes=64, **LEARNERS[name])
    # The schedule's end stays where the preset has it for the paper, whose rate is constant.
    quantizer = replace(quantizer, steps=most)
    key = jax.random.fold_in(jax.random.key(material.settings.seed), 0)
    batch, curve = material.training.action_batch(), []
    for step, state, _ in engine.intervals(quantizer, batch, key, pauses=[25]):
        if step in (*pauses, most):
            curve.append((step, reconstruction_error(quantizer.codec(state), material.shown)))
    used = len(set(encode_all(quantizer.codec(state), batch).tolist()))
    return {"curve": curve, "codes_used": used}


def scored(
    job: dict[str, Any], *, root: str, seed: int, smoke: bool, reporter: Reporter
) -> dict[str, Any]:
    """A whole training run with its evaluation, resumed where there is one already."""
    what = SETS[job["data"]]
    settings = build_settings("default", agent=job["agent"], quantizer=job["quantizer"])
    steps = (20, 20, 20) if smoke else (AGENT_STEPS, QUANTIZER_STEPS, PRIOR_STEPS)
    said = {
        "dataset": str(Path(root) / what["path"]),
        "env": what.get("environment"),
        "angles": what.get("angles", ()),
        "data_episodes": what.get("first"),
        "seed": seed,
        "eval_episodes": 1 if smoke else 20,
        "quantizer.codes": job["codes"],
        **{f"quantizer.{name}": value for name, value in job.get("changes", {}).items()},
        **dict(zip(("steps", "quantizer_steps", "prior.steps"), steps, strict=True)),
    }
    settings = changed(settings, said)
    words = [job["study"], job["data"], job["agent"], job["quantizer"], str(job["codes"])]
    words += [f"{name}={value}" for name, value in job.get("changes", {}).items()]
    out = RUNS / "-".join([*words, f"seed{seed}", *(["smoke"] if smoke else [])])
    summary = train(settings, out, resume=(out / "config.json").exists(), reporter=reporter)
    kept = (
        "act",
        "episodes",
        "return_mean",
        "success_rate",
        "normalized_score",
        "max_reward_mean",
        "quantizer",
        "seconds",
        "gradient_steps",
    )
    return {f"run_{name}" if name == "quantizer" else name: summary[name] for name in kept}


def summary_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, smallest and largest over seeds of each study's measurements."""
    groups: dict[str, dict[str, Any]] = {}
    for line in lines:
        job = line["job"]
        group = groups.setdefault(json.dumps(job, sort_keys=True), {"job": job, "results": []})
        group["results"].append(line["result"])
    rows = []
    for group in groups.values():
        results = group["results"]
        row: dict[str, Any] = {**group["job"], "seeds": len(results)}
        for name in (
            "num_codes",
            "error_per_deviation",
            "error_per_deviation_p95",
            "error_per_deviation_worst",
            "training_error_per_deviation",
            "noise_per_deviation",
            "noise_floor_per_deviation",
            "codes_used",
            "perplexity",
            "prior_cross_entropy",
            "prior_accuracy",
            "return_mean",
            "success_rate",
            "normalized_score",
            "max_reward_mean",
        ):
            values = [r[name] for r in results if r.get(name) is not None]
            if values:
                row[name] = [statistics.fmean(values), min(values), max(values)]
        for play in ("recorded", "actions", "codes", "noise"):
            for name in ("return_mean", "max_reward_mean", "normalized_score"):
                played = [r[play] for r in results if isinstance(r.get(play), dict)]
                values = [p[name] for p in played if p.get(name) is not None]
                if values:
                    row[f"{play}_{name}"] = [statistics.fmean(values), min(values), max(values)]
        if reasons := [r["left_out"] for r in results if "left_out" in r]:
            row["left_out"] = reasons[0]
        if all("curve" in r for r in results):
            row["held_out_error_at_end"] = statistics.fmean(r["curve"][-1][1] for r in results)
        rows.append(row)
    return {"rows": rows, "steps_to_the_papers_error": _steps_to_the_paper(lines)}


def _steps_to_the_paper(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Study (f): for each way to learn, when it is at the paper's last and at its lowest error."""
    curves = {
        (line["job"]["data"], line["seed"], line["job"]["quantizer"]): line["result"]["curve"]
        for line in lines
        if line["job"]["study"] == "learning"
    }
    rows = []
    for (data, seed, name), curve in curves.items():
        paper = curves.get((data, seed, "paper"))
        if paper is None:
            continue
        last, lowest = paper[-1][1], min(error for _, error in paper)
        rows.append(
            {
                "data": data,
                "seed": seed,
                "quantizer": name,
                "steps_to_last": next((step for step, error in curve if error <= last), None),
                "steps_to_lowest": next((step for step, error in curve if error <= lowest), None),
                "paper_steps": paper[-1][0],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data",
        default=os.environ.get("SAQRL_DATA", "../shared/data"),
        help="folder of the data files",
    )
    parser.add_argument("--only", default="", help="jobs whose description holds this text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--list", action="store_true", help="say what would be done")
    parser.add_argument("--smoke", action="store_true", help="a few steps of each, kept apart")
    asked = parser.parse_args()
    name = "quantization-smoke" if asked.smoke else "quantization"
    history = (RUNS if asked.smoke else RESULTS) / f"{name}.jsonl"
    history.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(x) for x in history.read_text().splitlines()] if history.exists() else []
    finished = {json.dumps([line["job"], line["seed"]], sort_keys=True) for line in lines}
    reporter = Reporter()
    for seed in range(asked.seeds):
        for job in plan(seed):
            described = json.dumps([job, seed], sort_keys=True)
            if described in finished or asked.only not in described:
                continue
            print(described, flush=True)
            if asked.list:
                continue
            try:
                result = measure(
                    job, root=asked.data, seed=seed, smoke=asked.smoke, reporter=reporter
                )
            except ValueError as error:  # bins in many dimensions: the refusal is the result
                if job["quantizer"] != "bins":
                    raise
                result = {"left_out": str(error)}
            lines.append({"job": job, "seed": seed, "result": result})
            with history.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            record = {
                "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
                "versions": versions(),
                **summary_of(lines),
            }
            write_atomically(history.with_suffix(".json"), json.dumps(record, indent=1).encode())
            jax.clear_caches()  # compiled programs of a hundred jobs exhaust a process's mappings


if __name__ == "__main__":
    main()
