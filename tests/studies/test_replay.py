"""Replays from recorded states of the simulator, in small environments and in the real ones."""

import dataclasses
import importlib.util
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.datasets import EnvironmentSpec, ReadOptions, Transitions, load_dataset
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.transitions import RecordedStart
from saqrl.nn import MLP
from saqrl.quantizers import ActionQuantizer
from saqrl.quantizers.binary import find_binary
from saqrl.quantizers.kmeans import KMeansCodec
from saqrl.studies.codebooks import replay as replays
from saqrl.studies.codebooks import starts
from saqrl.studies.codebooks.material import gather
from saqrl.training.progress import Reporter


class Sled(gymnasium.Env):
    """A sled on a line, pushed by the action: only its place is seen, its speed is not."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.speed = 0.0
        return self._get_obs(), {}

    def _get_obs(self):
        return np.array([self.place], np.float32)

    def step(self, action):
        self.speed += float(action[0])
        self.place += self.speed
        return self._get_obs(), self.place, False, False, {}


@pytest.fixture
def sled(monkeypatch):
    gymnasium.register("saqrl-tests/Sled-v0", entry_point=Sled)

    def restore(env, start):
        starts._require_size(start, 2)
        env.place, env.speed = start.state.tolist()

    monkeypatch.setattr(starts, "RECORDED_STARTS", {"saqrl-tests/Sled-v0": restore})
    yield "saqrl-tests/Sled-v0"
    del gymnasium.registry["saqrl-tests/Sled-v0"]


def rides(environment: str, steps: int = 5) -> Transitions:
    """Three recorded rides, begun in motion."""
    draw = np.random.default_rng(0)
    actions = draw.uniform(-1, 1, (3, steps)).astype(np.float32)
    places, speeds = draw.uniform(-1, 1, (2, 3))
    starts = tuple(
        RecordedStart(np.array(pair), Path("rides")) for pair in zip(places, speeds, strict=True)
    )
    moved = places[:, None] + np.cumsum(speeds[:, None] + np.cumsum(actions, 1), 1)
    seen = np.hstack([places[:, None], moved[:, :-1]])
    return Transitions(
        observations=seen.reshape(-1, 1).astype(np.float32),
        actions=actions.reshape(-1, 1),
        rewards=moved.reshape(-1).astype(np.float32),
        next_observations=moved.reshape(-1, 1).astype(np.float32),
        terminated=np.zeros(3 * steps, bool),
        episode_starts=np.arange(0, 3 * steps, steps),
        action_range=ActionRange(-np.ones(1, np.float32), np.ones(1, np.float32)),
        environment=EnvironmentSpec(environment),
        starts=starts,
    )


def played(data: Transitions, episodes: int = 3) -> dict:
    material = gather(data)
    codec = KMeansCodec(find_binary(jnp.asarray([[-1.0], [0], [1]])), jnp.zeros((2, 1)))
    return replays.replay(
        data,
        ActionQuantizer(codec, MLP(jax.random.key(0), 1, (), 2)),
        material.scaling,
        episodes=episodes,
        error=np.zeros(1, np.float32),
        reporter=Reporter(quiet=True),
    )


def test_recorded_states_bring_back_what_is_not_observed(sled):
    data = rides(sled)
    found = played(data)
    assert found["episodes"] == 3
    assert found["actions"]["return_mean"] == pytest.approx(found["recorded"]["return_mean"])
    assert replays.repeats_recording(found)
    # Every code stands for no push: the sled glides on with the speed that it had.
    places, speeds = np.stack([start.state for start in data.starts]).T
    glides = [sum(p + v * i for i in range(1, 6)) for p, v in zip(places, speeds, strict=True)]
    assert found["codes"]["return_mean"] == pytest.approx(np.mean(glides), rel=1e-5)


def test_episodes_keep_their_own_states_through_a_split(sled):
    data = rides(sled).select_episodes(np.array([2, 0]))
    found = played(data, episodes=2)
    assert found["actions"]["return_mean"] == pytest.approx(found["recorded"]["return_mean"])


def test_without_states_the_start_is_not_restored(sled):
    data = dataclasses.replace(rides(sled), starts=None)
    with pytest.raises(replays.NoReplay, match="the file holds no states"):
        played(data)


def test_states_of_another_simulator_are_refused(sled):
    data = rides(sled)
    starts = tuple(RecordedStart(np.zeros(7), Path("rides")) for _ in range(3))
    with pytest.raises(replays.NoReplay, match="rides: the recorded state has 7 numbers and the"):
        played(dataclasses.replace(data, starts=starts))


def test_a_state_that_is_not_the_observations_own_is_refused(sled):
    data = rides(sled)
    with pytest.raises(replays.NoReplay, match="observation 0 comes out at"):
        played(dataclasses.replace(data, starts=data.starts[1:] + data.starts[:1]))


def test_episodes_of_one_step_are_passed_over(sled):
    with pytest.raises(replays.NoReplay, match="one step have nothing to repeat"):
        played(rides(sled, steps=1))


def test_a_robosuite_recording_counts_until_it_is_solved():
    rewards = np.float32([0, 0, 1, 1, 1])
    assert replays._until_solved(rewards, "robosuite/Lift").tolist() == [0, 0, 1]
    assert replays._until_solved(rewards, "Hopper-v4").tolist() == rewards.tolist()
    shaped = np.float32([0.1, 0.4, 0.9])
    assert replays._until_solved(shaped, "robosuite/Lift").tolist() == shaped.tolist()


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs("robosuite", "numba")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("lift", 10), ("can", 14)])
def test_a_robosuite_demonstration_succeeds_again_from_its_recorded_start(real_data, name, width):
    path = real_data / f"robomimic/{name}/ph-scripted/low_dim.hdf5"
    data = load_dataset(str(path), options=ReadOptions(mask="valid"), episodes=2)
    assert dict(data.observation_keys)["object"] == width
    material = gather(data)
    # As many codes as there are actions: what they lose is the rounding of the grid's arithmetic.
    unit = jnp.asarray(data.action_range.to_unit(data.actions))
    codec = KMeansCodec(find_binary(unit), unit)
    quantizer = ActionQuantizer(
        codec, MLP(jax.random.key(0), material.training.features.shape[1], (), len(unit))
    )
    found = replays.replay(
        data,
        quantizer,
        material.scaling,
        episodes=2,
        error=np.zeros(7, np.float32),
        reporter=Reporter(quiet=True),
    )
    assert found["episodes"] == 2
    for kind in ("recorded", "actions", "codes"):
        assert found[kind]["return_mean"] == 1, kind
    assert replays.repeats_recording(found)


@needs("ogbench")
@pytest.mark.slow
def test_a_cube_goes_on_from_the_middle_of_a_recording(real_data):
    """Hand in motion, gripper half closed: the observation alone does not say where it goes."""
    path = real_data / "ogbench/cube-single-play-v0-val.npz"
    task = "cube-single-singletask-task1-v0"
    data = load_dataset(str(path), environment=task)
    environment = replays.make_environment(task)
    restored = {}
    for name, log in (("states", data), ("observations", dataclasses.replace(data, starts=None))):
        restored[name] = 0
        for episode in range(60):
            first = log.observations[log.episode_starts[episode]]
            try:
                starts.restore(environment, starts.start_of(log, episode), first)
            except replays.NoReplay:
                continue
            restored[name] += 1
    environment.close()
    assert restored["states"] > restored["observations"] > 0
