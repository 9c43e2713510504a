"""The agent keeps saqrl's promises, found by its name alone."""

import numpy as np
import pytest

import saqrl
from saqrl import testing


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_promise(check):
    check("agent", "smooth-bc")


def test_its_hyperparameters_are_flags(tmp_path):
    generator = np.random.default_rng(0)
    run = saqrl.fit(
        observations=generator.normal(size=(60, 3)),
        actions=generator.uniform(-1, 1, (60, 2)),
        episode_ends=np.arange(60) % 10 == 9,
        agent="smooth-bc",
        out=tmp_path / "run",
        steps=5,
        quantizer_steps=5,
        quiet=True,
        **{"agent.smoothing": 0.3, "quantizer.codes": 4, "prior.steps": 5},
    )
    assert saqrl.Run(run.path).settings.agent.smoothing == 0.3
    with pytest.raises(ValueError, match=r"smoothing is 1\.5"):
        saqrl.fit("absent.npz", agent="smooth-bc", **{"agent.smoothing": 1.5})
