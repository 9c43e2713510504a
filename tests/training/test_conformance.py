"""Every algorithm in the registries keeps the promises that `saqrl.testing` checks."""

import pytest

from saqrl import testing
from saqrl.registry import AGENTS, BASELINES, QUANTIZERS

ALGORITHMS = [
    *(pytest.param("quantizer", name, id=f"quantizer-{name}") for name in QUANTIZERS),
    *(pytest.param("agent", name, id=f"agent-{name}") for name in AGENTS),
    *(pytest.param("baseline", name, id=f"baseline-{name}") for name in BASELINES),
]
# Whole runs of all of them are in tests/policy and tests/deploy.
QUICK = [check for check in testing.CHECKS if check is not testing.a_whole_run_acts_and_exports]


@pytest.mark.parametrize(("kind", "name"), ALGORITHMS)
@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.__name__)
def test_every_algorithm(check, kind, name):
    check(kind, name)


@pytest.mark.parametrize(
    ("kind", "name"), [("agent", "iql"), ("quantizer", "fsq"), ("baseline", "gmm")]
)
def test_a_whole_run_acts_and_exports(kind, name):
    testing.a_whole_run_acts_and_exports(kind, name)
