"""Good and poor demonstrations of one task: do values gain over cloning?

    python -m benchmarks.mixture [--method TEXT] [--seeds 2] [--list]

The task is robosuite's can. Good: 25 scripted demonstrations. Poor: 150 episodes, failures with
them, recorded (`saqrl evaluate --record`) from a policy that was cloned from ten demonstrations.
What the rows have to answer: are values on codes 10 points above cloning of everything, and above
cloning of the successes alone, which needs no values? Same codes, same gradient steps (a prior
counts), final policies, 50 episodes. benchmarks/results/mixture.jsonl gets a line for each cell as
it finishes; one that is there is not run again.
"""

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

import saqrl
from benchmarks.logs import robomimic
from benchmarks.rows import Flags, Row, arguments, asked_for, fill, scored

RESULTS = Path(__file__).parent / "results" / "mixture.jsonl"
OUT = Path("runs/mixture")
CAN = robomimic("can")
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
METHODS: Mapping[str, Flags] = {
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


def cells(asked: Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """One seed of every method before the next seed."""
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for method in METHODS:
            if asked_for(method, asked.method, METHODS):
                yield {"method": method, "seed": seed}, partial(measured, method, seed)


def measured(method: str, seed: int) -> Row:
    """Train one cell, from episodes that are made first where they are not there; its score."""
    OUT.mkdir(parents=True, exist_ok=True)
    if not POOR.exists():
        poor(POOR)
    if not GOOD.exists():
        good(GOOD, POOR)
    out = OUT / f"{method}-seed{seed}"
    shutil.rmtree(out, ignore_errors=True)
    saqrl.fit(out=out, quiet=True, seed=seed, eval_episodes=EPISODES, **METHODS[method])
    return scored(out)


if __name__ == "__main__":
    asked = arguments(__doc__, seeds=2, only="").parse_args()
    fill(RESULTS, cells(asked), listing=asked.list)
