"""Your own arrays: a policy from NumPy arrays, without a file and without a registered environment.

    python examples/own_arrays.py

A point flies past a pillar. Half of the recorded flights pass it on the left, half on the right. A
network that predicts one action gives the mean of both, which leads into the pillar; codes keep
the two ways apart. Both are trained here on the same rows and flown in the same simulation.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import saqrl

STEPS, SPEED, PILLAR = 20, 0.1, 0.25


def flights(count: int, seed: int) -> dict[str, np.ndarray]:
    """Recorded flights: observations (n, 2), actions (n, 2) and the mask of last rows (n,)."""
    generator = np.random.default_rng(seed)
    rows = []
    for flight in range(count):
        side = 1 if flight % 2 else -1
        place = np.array([-1.0, generator.normal(0, 0.03)])
        for step in range(STEPS):
            # Towards the side until the pillar is passed, then back to the middle.
            target = 0.5 * side if place[0] < 0 else 0.0
            action = np.array([1.0, np.clip(3 * (target - place[1]), -1, 1)])
            action[1] = np.clip(action[1] + generator.normal(0, 0.05), -1, 1)
            rows.append((place, action, step == STEPS - 1))
            place = place + SPEED * action
    observations, actions, ends = (np.asarray(column) for column in zip(*rows, strict=True))
    return {"observations": observations, "actions": actions, "episode_ends": ends}


def passes(policy: saqrl.Policy, count: int, seed: int) -> int:
    """How many of `count` flights get past the pillar without touching it."""
    generator = np.random.default_rng(seed)
    passed = 0
    for _ in range(count):
        place, touched = np.array([-1.0, generator.normal(0, 0.03)]), False
        policy.reset()  # at the start of every episode
        for _ in range(STEPS):
            place = place + SPEED * policy.act(place)  # in the units of the recorded actions
            touched |= bool(np.linalg.norm(place) < PILLAR)
        passed += not touched
    return passed


def main(out: Path, *, steps: int = 1000) -> dict[str, int]:
    """Train both policies below `out`; how many of 20 flights pass the pillar with each."""
    shared = {
        **flights(60, seed=0),
        "recipe": "plain",  # "auto", the default, chooses the settings below from the data
        "agent": "bc",
        "chunk": 5,
        "steps": steps,
        "act": "greedy",  # the most probable code
        "agent.hidden": 64,
        "quiet": True,
    }
    quantized = saqrl.fit(
        **shared,
        out=out / "quantized",
        quantizer_steps=steps,
        **{"quantizer.codes": 8, "quantizer.hidden": 64, "prior.steps": steps // 2},
    )
    continuous = saqrl.fit(**shared, out=out / "continuous", continuous=True)
    runs = {"codes": quantized, "one action": continuous}
    return {name: passes(run.policy, 20, seed=1) for name, run in runs.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the runs; default: a temporary one")
    out = parser.parse_args().out or Path(tempfile.mkdtemp())
    for name, passed in main(out).items():
        print(f"{name}: {passed} of 20 flights pass the pillar")
    print(f"runs, each with its page index.html: {out}")
