"""A continuous environment whose actions are codes."""

import dataclasses
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from saqrl.policy.discrete_env import QuantizedActions
from tests.deploy.test_export import make_policy
from tests.policy.test_policy import CHUNK, OBSERVATION


class Walk(gymnasium.Env):
    """The observation is a seeded walk; actions are recorded; five steps an episode."""

    metadata: dict = {"render_modes": []}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-100, 100, (OBSERVATION,), np.float32)
    action_space = gymnasium.spaces.Box(
        np.array([0, -1], np.float32), np.array([10, 1], np.float32)
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.played = []
        return self._observe(), {}

    def step(self, action):
        self.played.append(action)
        ended = len(self.played) == 5
        return self._observe(), float(len(self.played)), ended, False, {}

    def _observe(self):
        return self.np_random.normal(size=OBSERVATION).astype(np.float32)


@pytest.fixture(scope="module")
def policy():
    return make_policy("quantized", "bc")


def test_the_wrapped_environment_passes_gymnasiums_own_check(policy):
    env = QuantizedActions(Walk(), policy)
    assert env.action_space == gymnasium.spaces.Discrete(6)
    with warnings.catch_warnings():
        # It would rather check environments without wrappers; the wrapper is the point here.
        warnings.filterwarnings("ignore", ".*different from the unwrapped version")
        check_env(env, skip_render_check=True)


def test_a_code_plays_what_it_stands_for_in_this_state(policy):
    env = QuantizedActions(Walk(), policy)
    observation, _ = env.reset(seed=0)
    expected = env.decode(observation, 3)
    assert expected.shape == (CHUNK, 2)
    observation, reward, terminated, truncated, info = env.step(3)
    np.testing.assert_array_equal(env.unwrapped.played, expected[:2])
    assert (reward, terminated, truncated, info["steps"]) == (1 + 2, False, False, 2)
    different = env.decode(observation, 3)
    assert not np.array_equal(expected, different)
    env.step(np.int64(0))
    # The episode ends after one of the two actions.
    _, reward, terminated, _, info = env.step(1)
    assert (reward, terminated, info["steps"]) == (5, True, 1)


def test_what_does_not_fit_is_refused(policy):
    with pytest.raises(ValueError, match="has no codes"):
        QuantizedActions(Walk(), make_policy("continuous", "bc"))
    with pytest.raises(ValueError, match=r"observations of shape \(3,\)"):
        QuantizedActions(
            gymnasium.make("Pendulum-v1"), dataclasses.replace(policy, observation_size=4)
        )
    env = QuantizedActions(Walk(), policy)
    with pytest.raises(ValueError, match="before reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="code 6 does not exist"):
        env.step(6)
