"""Where actions have no primitives: torques of the DeepMind Control suite, expert and replay logs.

    python -m benchmarks.control learn --task walker-walk [--steps 200000]
    python -m benchmarks.control [--only TEXT] [--method TEXT] [--seeds 3] [--list] [--table]

The paper (arXiv 2310.11731, section 7) leaves open whether codes help there. `learn` makes the
logs with a known learner, SAC of stable-baselines3 (`pip install stable-baselines3`; an hour or
less of one core): all it met while it learned (replay), and EXPERT episodes of what it had learned
in the end, sampled (expert). Then agents on codes and their continuous counterparts learn from the
same log: as many gradient steps (a prior's count, a quantizer's do not; `recipe` chooses its own
number), final policies, EPISODES episodes of at most 1000 reward each. A line for each cell goes
to benchmarks/results/control.jsonl as it finishes; one that is there is not run again.
"""

import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import saqrl
from benchmarks.rows import (
    Flags,
    Row,
    arguments,
    asked_for,
    scored,
    scores_table,
    show_or_fill,
    with_table,
)

RESULTS = Path(__file__).parent / "results" / "control.jsonl"
OUT = Path("runs/control")
TASKS, KINDS, EXPERT = ("walker-walk", "cheetah-run"), ("expert", "replay"), 25
STEPS, PRIOR, EPISODES = 10_000, 3_000, 20
CODES = {"recipe": "plain", "quantizer.codes": 64, "quantizer_steps": 6_000, "prior.steps": PRIOR}
WITHOUT = {"recipe": "plain", "actions": "continuous", "steps": STEPS}
VALUES = {"feature_deviation": 1.0, "reward_scale": "return-range", "steps": STEPS - PRIOR}
BEST = {"data_best": 0.3}  # of the episodes
METHODS: dict[str, Flags] = {
    "recipe": {},
    "saq-bc": {**CODES, "agent": "bc", "steps": STEPS},
    "bc": {**WITHOUT, "agent": "bc"},
    "gmm": {**WITHOUT, "agent": "gmm"},
    "saq-iql": {
        **CODES,
        **VALUES,
        "agent": "iql",
        "agent.q_of": "actions",
        "agent.temperature": 0.33,
    },
    "iql": {**WITHOUT, **VALUES, "agent": "iql", "steps": STEPS},
    "saq-cql": {**CODES, **VALUES, "agent": "cql"},
    "saq-brac": {**CODES, **VALUES, "agent": "brac"},
    "rebrac": {**WITHOUT, **VALUES, "agent": "rebrac", "steps": STEPS},
}
METHODS |= {
    f"{name}-best": {**METHODS[name], **BEST} for name in ("bc", "saq-bc", "iql", "saq-cql")
}


def learn(task: str, steps: int) -> None:
    """Train SAC and write both logs."""
    try:
        import torch
        from stable_baselines3 import SAC
    except ImportError as error:
        raise ImportError("learn needs SAC: pip install stable-baselines3") from error

    torch.set_num_threads(1)
    env = _flat(task)
    learner = SAC("MlpPolicy", env, buffer_size=steps, train_freq=2, gradient_steps=1, seed=0)
    learner.learn(steps)
    met: Any = learner.replay_buffer
    last = np.arange(steps) % 1000 == 999  # episodes of the suite have 1000 steps, and no other end
    columns = {
        "observations": met.observations[:steps, 0],
        "actions": met.actions[:steps, 0],
        "rewards": met.rewards[:steps, 0],
        "next_observations": met.next_observations[:steps, 0],
        "terminals": np.zeros(steps, bool),
        "timeouts": last,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    np.savez(OUT / f"{task}-replay.npz", **columns)
    returns = met.rewards[: steps // 1000 * 1000, 0].reshape(-1, 1000).sum(1)
    print("returns along the way:", *np.round(returns[:: max(1, len(returns) // 20)]))
    np.savez(OUT / f"{task}-expert.npz", **_played(env, learner))


def _flat(task: str) -> gymnasium.Env[Any, Any]:
    import_module("saqrl.environments.control_suite")  # registers the tasks
    return gymnasium.wrappers.FlattenObservation(gymnasium.make(f"dm_control/{task}-v0"))


def _played(env: gymnasium.Env[Any, Any], learner: Any) -> dict[str, np.ndarray]:
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for episode in range(EXPERT):
        seen, _ = env.reset(seed=episode)
        ended = False
        while not ended:
            action, _ = learner.predict(seen, deterministic=False)
            after, reward, terminated, truncated, _ = env.step(action)
            row = (seen, action, reward, after, terminated, truncated)
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
            seen, ended = after, terminated or truncated
    return {name: np.asarray(column) for name, column in columns.items()}


def cells(asked: Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """One seed of every method and log before the next seed."""
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for log in (f"{task}-{kind}" for task in TASKS for kind in KINDS):
            for method in METHODS:
                if asked.only in log and asked_for(method, asked.method, METHODS):
                    key = {"set": log, "method": method, "seed": seed}
                    yield key, partial(measured, log, method, seed)


def measured(log: str, method: str, seed: int) -> Row:
    """Train one cell; what it scored."""
    out = OUT / f"{log}-{method}-seed{seed}"
    shutil.rmtree(out, ignore_errors=True)
    env = f"dm_control/{log.rpartition('-')[0]}-v0"
    said: Flags = {"env": env, "seed": seed, "eval_episodes": EPISODES, **METHODS[method]}
    saqrl.fit(f"npz:{OUT}/{log}.npz", out=out, quiet=True, **said)
    return scored(out)


def table(rows: list[Row]) -> str:
    logs = (f"{task}-{kind}" for task in TASKS for kind in KINDS)
    return scores_table(rows, ("method", METHODS), ("set", logs))


def main() -> None:
    if sys.argv[1:2] == ["learn"]:
        parser = ArgumentParser(description="Make the logs of a task with SAC.")
        parser.add_argument("--task", choices=TASKS, required=True)
        parser.add_argument("--steps", type=int, default=200_000)
        chosen = parser.parse_args(sys.argv[2:])
        if chosen.steps < 1_000 or chosen.steps % 1_000:
            parser.error(f"--steps {chosen.steps}: expected whole episodes of 1,000 steps")
        learn(chosen.task, chosen.steps)
        return
    asked = with_table(arguments(__doc__, seeds=3)).parse_args()
    show_or_fill(asked, RESULTS, cells, table)


if __name__ == "__main__":
    main()
