"""One small file of every format, written from one log."""

import shutil
from pathlib import Path

import numpy as np

from saqrl.datasets import EnvironmentSpec, Transitions, load_dataset
from saqrl.datasets.formats.writers import convert

FORMATS = ("npz", "d4rl", "minari", "robomimic", "lerobot", "ogbench")


def small_log(folder: Path) -> Transitions:
    """Three episodes of 6, 1 and 9 steps with true successors: truncated, terminated, truncated."""
    from dataclasses import replace

    draw, lengths = np.random.default_rng(3), [6, 1, 9]
    observations, following = [], []
    for length in lengths:
        walk = draw.normal(size=(length + 1, 5)).astype(np.float32)
        observations.append(walk[:-1])
        following.append(walk[1:])
    ends = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(16, bool), np.zeros(16, bool)
    terminals[ends[1]], timeouts[ends[[0, 2]]] = True, True
    np.savez(
        folder / "small.npz",
        observations=np.concatenate(observations),
        actions=draw.uniform(-2, 2, (16, 2)).astype(np.float32),
        rewards=draw.normal(size=16).astype(np.float32),
        next_observations=np.concatenate(following),
        terminals=terminals,
        timeouts=timeouts,
    )
    log = load_dataset(f"npz:{folder / 'small.npz'}")
    return replace(
        log,
        environment=EnvironmentSpec("Own-v0", {"max_episode_steps": 3}),
        observation_keys=(("robot0_eef_pos", 3), ("object", 2)),
    )


def write_format(name: str, log: Transitions, path: Path) -> None:
    """A new file or folder of the format; OGBench's holds walks alone."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if name != "ogbench":
        convert(log, path, name)
        return
    draw, ends = np.random.default_rng(4), np.zeros(12, bool)
    ends[[5, 11]] = True
    with path.open("wb") as stream:
        np.savez(
            stream,
            observations=draw.normal(size=(12, 5)).astype(np.float32),
            actions=draw.uniform(-1, 1, (12, 2)).astype(np.float32),
            terminals=ends,
            qpos=draw.normal(size=(12, 4)).astype(np.float32),
        )
