"""The point's environment and demonstrations, for tests of whole runs."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from tests.experiment.walking import ENVIRONMENT, Point


@pytest.fixture(scope="package", autouse=True)
def _environment():
    gymnasium.register(ENVIRONMENT, entry_point=Point)
    yield
    del gymnasium.registry[ENVIRONMENT]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """12 demonstrations that walk to the origin, as plain npz."""
    generator, rows = np.random.default_rng(0), []
    environment = Point()
    for seed in range(12):
        place, _ = environment.reset(seed=seed)
        ended = False
        while not ended:
            action = np.clip(-3 * place + generator.normal(0, 0.1, 2), -1, 1).astype(np.float32)
            following, reward, terminated, truncated, _ = environment.step(action)
            rows.append((place, action, reward, following, terminated, truncated))
            place, ended = following, terminated or truncated
    columns = [np.asarray(column) for column in zip(*rows, strict=True)]
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    path = tmp_path_factory.mktemp("data") / "walk.npz"
    np.savez(path, **dict(zip(names, columns, strict=True)))
    return path
