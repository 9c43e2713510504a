"""Where the real data lie, a device small enough for every machine, and the point's world."""

import itertools
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs here run for milliseconds: compiling them fast matters more than compiling them well.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK += " --xla_cpu_parallel_codegen_split_count=1"
if version("jax").startswith("0.10."):  # 0.12 ends a process that asks it for this
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)
# What one test, worker or child process has compiled is not compiled again by the next, and the
# folder of programs that users have is left alone.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
OURS = None  # the folder, in the process that makes and removes it
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    OURS = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="programs-")


def pytest_unconfigure():
    """When the last worker has ended."""
    if OURS is not None:
        shutil.rmtree(OURS, ignore_errors=True)


BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
SHARED_DATA = Path(os.environ.get("SAQRL_DATA", BESIDE))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data that SAQRL_DATA names; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data ({SHARED_DATA}; SAQRL_DATA names another folder) are not here")
    return SHARED_DATA


# One profile for all property tests: compiling makes first examples slow, and no draw may differ
# between two runs of the same tests.
settings.register_profile("saqrl", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("saqrl")


@pytest.fixture(scope="session", autouse=True)
def _environment():
    """The point of `tests.walking`, for tests of whole runs."""
    from tests.walking import ENVIRONMENT, Point

    gymnasium.register(ENVIRONMENT, entry_point=Point)
    yield
    del gymnasium.registry[ENVIRONMENT]


@pytest.fixture
def registries(monkeypatch):
    """What a test registers is forgotten after it."""
    from saqrl.registry import KINDS

    for registry in KINDS.values():
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        vars(registry).pop("_installed", None)
    yield
    for registry in KINDS.values():
        vars(registry).pop("_installed", None)


# A process may have 65,530 mappings of memory on Linux, and every compiled program takes some.
MAPPINGS, TESTS = 30_000, itertools.count(1)


@pytest.fixture(autouse=True)
def _few_programs():
    """Compiled programs are dropped before they exhaust the process."""
    yield
    maps = Path("/proc/self/maps")
    if next(TESTS) % 10 == 0 and maps.exists():
        with maps.open("rb") as lines:
            if sum(1 for _ in lines) > MAPPINGS:
                import jax

                jax.clear_caches()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """12 demonstrations that walk to the origin, as plain npz."""
    from tests.walking import Point

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
