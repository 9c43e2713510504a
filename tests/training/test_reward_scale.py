"""What rewards are multiplied by, where float32 still holds the product."""

from dataclasses import replace

import numpy as np
import pytest

from saqrl.datasets.assembly import assemble
from saqrl.training.preparation import reward_factor


def log(size):
    transitions = assemble(
        {
            "observations": np.zeros((8, 1), np.float32),
            "actions": np.linspace(-1, 1, 8, dtype=np.float32)[:, None],
            "rewards": np.array([1, 3] * 4, np.float32),
            "terminals": np.arange(8) % 2 == 1,
        },
        source="log",
    )
    return replace(transitions, rewards=transitions.rewards * np.float32(size))


def test_factors_give_the_sizes_that_they_promise():
    assert reward_factor(log(1), "unit") == pytest.approx(0.05)
    assert reward_factor(log(0), "unit") == 1
    assert reward_factor(log(1), "none") == 1
    spread = replace(log(1), rewards=np.arange(8, dtype=np.float32))  # returns 1, 5, 9, 13
    assert reward_factor(spread, "return-range") == pytest.approx(1000 / 12)


@pytest.mark.parametrize("scale", ["unit", "return-range"])
def test_rewards_too_small_to_be_scaled_are_refused(scale):
    rewards = np.arange(8, dtype=np.float32) * np.float32(1e-36)
    with pytest.raises(ValueError, match=r"which overflows float32: scale"):
        reward_factor(replace(log(1), rewards=rewards), scale)
