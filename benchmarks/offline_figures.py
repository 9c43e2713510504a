"""Does a figure of the held-out episodes tell a good from a bad policy? Push-T, played and not.

Trains policies from bad to good, plays each in Push-T as its run says, computes what can be said
of it from held-out episodes alone, and ranks: Spearman's correlation of each figure with the mean
highest reward. Every figure is written so that more is better.

    python benchmarks/offline_figures.py PUSHT.npz --out runs/offline \
        --json benchmarks/results/offline_figures.json

Goes on where it was stopped.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import saqrl
from saqrl.datasets import Transitions
from saqrl.datasets.windows import windows
from saqrl.policy import Policy
from saqrl.policy.storage import load_policy
from saqrl.training.codebook_health import action_error
from saqrl.training.data import load_data
from saqrl.training.held_out_skill import DECISIONS, distances, held_out_skill
from saqrl.training.preparation import split
from saqrl.training.run_folder import policy_folder

ENVIRONMENT = "gym_pusht/PushT-v0"
EPISODES = 40
# Added to the evaluations' 100,000: episodes that no table uses.
SEED = 100_000
PLAIN = {"recipe": "plain", "env": "none"}
WIDE = {"feature_deviation": 1.0, "angles": (4,)}
CHUNK_8 = {"chunk": 8, "quantizer.codes": 64, **WIDE}
CONTINUOUS = {"actions": "continuous", "steps": 6000}
# name -> the flags of its training, and earlier steps of its agent that are looked at too.
POLICIES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "chunk8": ({**CHUNK_8, "steps": 6000, "quantizer_steps": 4000, "keep_every": 100}, (300, 2000)),
    "small1": ({"steps": 500, "quantizer.codes": 16}, ()),
    "continuous": (CONTINUOUS, ()),
    "chunk1": ({}, ()),
    "gmm": ({**CONTINUOUS, "agent": "gmm"}, ()),
    "continuous8": ({**CONTINUOUS, "chunk": 8, **WIDE}, ()),
}


def code_likelihood(policy: Policy, log: Transitions, rows: np.ndarray) -> float | None:
    """Mean log-probability of the recorded chunks' codes; None of a policy without codes."""
    try:
        quantizer = policy.quantizer
    except ValueError:
        return None
    seen = windows(log, policy.history, rows)
    ends = np.repeat(log.episode_ends - 1, log.episode_lengths)[rows]
    steps = np.minimum(rows[:, None] + np.arange(policy.chunk), ends[:, None])
    actions = log.actions[steps].reshape(len(rows), *quantizer.action_shape)
    codes = quantizer.encode(seen, actions)
    return float(quantizer.log_prior(seen)[np.arange(len(rows)), codes].mean())


def figures(policy: Policy, log: Transitions) -> dict[str, float | None]:
    """Every candidate, more is better."""
    rows = np.unique(np.linspace(0, len(log) - 1, DECISIONS).astype(np.int64))
    began = time.perf_counter()
    skill = held_out_skill(policy, log)
    seconds = time.perf_counter() - began
    missed, held = distances(policy, log, rows)
    critical = held >= np.quantile(held, 0.8)
    first = distances(replace(policy, action_horizon=1), log, rows)
    return {
        "skill over the last command": skill,
        "the same, of the first action alone": 1 - float(first[0].mean() / first[1].mean()),
        "the same, where actions change most": 1
        - float(missed[critical].mean() / held[critical].mean()),
        "energy score": -float(missed.mean()),
        "greedy action error": -action_error(policy, log),
        "log-likelihood of codes": code_likelihood(policy, log, rows),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--act", default=None, help="greedy or sample, for all")
    asked = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name, (flags, steps) in POLICIES.items():
        out = asked.out / name
        run = saqrl.fit(asked.data, out=out, resume=True, quiet=True, **PLAIN, **flags)
        log = split(load_data(run.settings), run.settings)[1]
        assert log is not None
        for step in (*steps, None):
            policy = load_policy(policy_folder(out, step))
            act = asked.act or policy.default_act
            file = out / f"played-{step or 'last'}-{act}.json"
            if not file.exists():
                scores = run.evaluate(EPISODES, act=act, env=ENVIRONMENT, step=step, seed=SEED)
                file.write_text(json.dumps({"highest reward": scores.max_reward_mean}))
            line = {"act": act, **json.loads(file.read_text()), **figures(policy, log)}
            found[f"{name} at step {step or run.settings.agent.steps}"] = line
            print(f"{name} {step or ''}", json.dumps(line), flush=True)
    rewards = "highest reward"
    ranks = {}
    for figure in next(iter(found.values())):
        if figure in ("act", "seconds", rewards):
            continue
        pairs = [(p[rewards], p[figure]) for p in found.values() if p[figure] is not None]
        rho = spearmanr(*zip(*pairs, strict=True)).statistic
        ranks[figure] = {"spearman": round(float(rho), 3), "policies": len(pairs)}
        print(f"{rho:6.2f}  {figure} ({len(pairs)} policies)")
    if asked.json:
        record = {"episodes": EPISODES, "data": Path(asked.data).name, "ranks": ranks}
        rounded = {
            name: {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
            for name, line in found.items()
        }
        asked.json.write_text(json.dumps({**record, "policies": rounded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
