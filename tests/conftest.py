"""Where the real data lie, and a device small enough for every machine."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs here run for milliseconds: compiling them fast matters more than compiling them well.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    """The folder of real data beside the repository; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data (../shared/data) are not on this machine")
    return SHARED_DATA


# One profile for all property tests: compiling makes first examples slow, and no draw may differ
# between two runs of the same tests.
settings.register_profile("saqrl", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("saqrl")
