"""A small log, the arrays of which every test breaks in its own way, and the real files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SHARED_DATA

Log = dict[str, np.ndarray]


@pytest.fixture
def log() -> Log:
    """Three episodes of 4, 3 and 5 steps: terminated, timed out, terminated."""
    draw = np.random.default_rng(0)
    steps, ends = 12, [3, 6, 11]
    terminals, timeouts = np.zeros(steps, bool), np.zeros(steps, bool)
    terminals[[3, 11]], timeouts[6] = True, True
    observations = draw.normal(size=(steps, 3)).astype(np.float32)
    following = np.roll(observations, -1, 0)
    following[ends] = draw.normal(size=(3, 3))
    return {
        "observations": observations,
        "actions": draw.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": draw.normal(size=steps).astype(np.float32),
        "next_observations": following,
        "terminals": terminals,
        "timeouts": timeouts,
    }


@pytest.fixture
def shared_file() -> Callable[[str], Path]:
    """A real file of the folder that SAQRL_DATA names, or a skip that says which is missing."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"no {name} in {SHARED_DATA}; SAQRL_DATA names another folder")
        return path

    return find
