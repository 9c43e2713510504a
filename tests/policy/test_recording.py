"""What a policy did is a data set: the environment's own steps, whole or not there at all."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from saqrl.cli import main
from saqrl.datasets import EnvironmentSpec, load_dataset
from saqrl.policy.recording import RECORDING_SEEDS, recording_seed, write_recording
from saqrl.policy.rollout import EVALUATION_SEEDS, Arena, Episodes, Steps
from saqrl.policy.storage import save_policy
from saqrl.run import Run, play
from saqrl.training.run_folder import read_result
from tests.policy.test_policy import ACT, OBSERVATION, Corridor, make_lively_policy
from tests.training.test_history import HISTORY
from tests.training.test_history import policy as policy_with_history  # noqa: F401
from tests.walking import ENVIRONMENT, words

PLACE = EnvironmentSpec("Somewhere-v0", {"max_episode_steps": 7, "observation_keys": ["a", "b"]})


class Careless(Corridor):
    """Writes into what it is given and hands its own memory out; odd seeds run out of time."""

    def step(self, action):
        observation, reward, ended, _, info = super().step(action)
        action[:] = 99
        timed_out = bool(self.seed % 2)
        return observation, reward, ended and not timed_out, ended and timed_out, info


def replayed(steps: Steps, seed: int) -> None:
    """The recorded actions in a new environment give what was recorded, bit for bit."""
    environment = Careless()
    observation, _ = environment.reset(seed=seed)
    np.testing.assert_array_equal(observation, steps.observations[0])
    for step, action in enumerate(steps.actions):
        observation, reward, terminated, truncated, _ = environment.step(action.copy())
        np.testing.assert_array_equal(observation, steps.observations[step + 1])
        assert reward == steps.rewards[step]
        assert (terminated or truncated) == (step == len(steps.actions) - 1)
    assert terminated == steps.terminated


@pytest.mark.parametrize(
    ("kind", "name", "act"),
    [("quantized", "bc", "sample"), ("quantized", "iql", "mean"), ("continuous", "gmm", "sample")],
)
@pytest.mark.parametrize("lanes", [1, 3])
def test_recorded_steps_are_those_of_the_environment(kind, name, act, lanes):
    """Of chunks too: two of four actions are played before the next decision."""
    with Arena(Careless, lanes=lanes) as arena:
        played = arena.play(
            make_lively_policy(kind, name), episodes=5, act=act, seed=4, keep_steps=True
        )
    assert len(played.steps) == 5
    for episode, steps in enumerate(played.steps):
        replayed(steps, EVALUATION_SEEDS + 4 + episode)
        assert len(steps.actions) == played.lengths[episode]
        assert steps.rewards.sum() == played.returns[episode]


def test_of_a_history_single_observations_are_recorded(policy_with_history):  # noqa: F811
    assert policy_with_history.history == HISTORY > 1
    with Arena(Careless, lanes=2) as arena:
        played = arena.play(policy_with_history, episodes=3, act="greedy", keep_steps=True)
    for episode, steps in enumerate(played.steps):
        assert steps.observations.shape[1] == OBSERVATION
        replayed(steps, EVALUATION_SEEDS + episode)


def test_steps_are_kept_only_where_they_are_asked_for():
    with Arena(Corridor, lanes=2) as arena:
        assert arena.play(make_lively_policy(), episodes=3, act="greedy").steps is None


def test_what_was_written_is_read_as_it_was(tmp_path):
    policy = make_lively_policy()
    with Arena(Careless, lanes=2) as arena:
        played = arena.play(policy, episodes=4, act="sample", keep_steps=True)
    path = tmp_path / "played.npz"
    write_recording(path, policy, PLACE, played, about={"seed": 7})
    assert [entry.name for entry in tmp_path.iterdir()] == ["played.npz"]
    log = load_dataset(str(path))
    assert log.environment == PLACE
    assert log.has_rewards
    assert log.successes.tolist() == played.successes.tolist()
    np.testing.assert_array_equal(log.action_range.low, policy.action_range.low)
    np.testing.assert_array_equal(log.action_range.high, policy.action_range.high)
    for rows, steps in zip(log.episode_rows, played.steps, strict=True):
        np.testing.assert_array_equal(log.observations[rows], steps.observations[:-1])
        np.testing.assert_array_equal(log.next_observations[rows], steps.observations[1:])
        np.testing.assert_array_equal(log.actions[rows], steps.actions)
        np.testing.assert_allclose(log.rewards[rows], steps.rewards, rtol=1e-6)
        assert not log.terminated[rows][:-1].any()
        assert log.terminated[rows][-1] == steps.terminated
    ends = log.episode_ends - 1
    assert log.terminated[ends].tolist() == [True, False, True, False]
    with np.load(path) as arrays:
        np.testing.assert_array_equal(np.flatnonzero(arrays["timeouts"]), ends[1::2])
    recorded = log.provenance["recorded"]
    assert recorded["made_by"] == "saqrl evaluate --record"
    assert (recorded["agent"], recorded["actions"]) == ("bc", "quantized")
    assert (recorded["act"], recorded["episodes"], recorded["seed"]) == ("greedy", 4, 7)


def test_no_success_is_invented_where_the_task_reports_none(tmp_path):
    steps = Steps(np.zeros((3, OBSERVATION), np.float32), np.ones((2, ACT)), np.ones(2), True)
    numbers = np.ones(1)
    played = Episodes(numbers, numbers, numbers, None, (steps,))
    write_recording(tmp_path / "a.npz", make_lively_policy(), PLACE, played, about={})
    assert load_dataset(str(tmp_path / "a.npz")).successes is None


def test_an_episode_that_ends_without_an_observation_can_be_read(tmp_path):
    """What it saw before stands there, which no value is taken of."""
    seen = np.arange(3 * OBSERVATION, dtype=np.float32).reshape(3, OBSERVATION)
    seen[2, 1] = np.nan
    steps = Steps(seen, np.ones((2, ACT)), np.ones(2), True)
    numbers = np.ones(1)
    played = Episodes(numbers, numbers, numbers, np.ones(1, bool), (steps,))
    write_recording(tmp_path / "a.npz", make_lively_policy(), PLACE, played, about={})
    following = load_dataset(str(tmp_path / "a.npz")).next_observations
    np.testing.assert_array_equal(following, [seen[1], [seen[2, 0], seen[1, 1], seen[2, 2]]])


def test_recorded_starts_are_never_those_of_an_evaluation():
    most = RECORDING_SEEDS - 20
    for seed in (0, 3, most):
        first = EVALUATION_SEEDS + recording_seed(seed, 20)
        assert first >= 0
        assert first + 20 <= EVALUATION_SEEDS
    for seed in (-1, most + 1):
        with pytest.raises(ValueError, match=f"seed is {seed}; with --record"):
            recording_seed(seed, 20)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A tiny run in the point's world."""
    out = tmp_path_factory.mktemp("runs") / "run"
    quick = {"eval_every": "none", "chunk": 2, "act": "sample"}
    assert main(["train", *words(dataset, "bc", **quick), "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)
    monkeypatch.chdir(tmp_path)


def test_the_command_records_what_inspect_and_train_read(trained, dataset, capsys):
    assert main(["evaluate", str(trained), "--episodes", "6", "--record", "p.npz", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["record"] == "p.npz"
    log = load_dataset("p.npz")
    assert log.environment.id == ENVIRONMENT
    assert log.num_episodes == told["episodes"] == 6
    # The score is that of the recorded episodes.
    assert log.episode_returns.mean() == pytest.approx(told["return_mean"])
    assert log.successes.mean() == pytest.approx(told["success_rate"])
    assert log.episode_lengths.mean() == pytest.approx(told["length_mean"])
    assert log.provenance["recorded"]["versions"]["gymnasium"] == gymnasium.__version__
    # The point's task ends where it succeeds.
    np.testing.assert_array_equal(log.terminated[log.episode_ends - 1], log.successes)
    assert main(["inspect", "p.npz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["successful_episodes"] == log.successes.sum()
    assert found["episodes"] == 6
    alone = words("p.npz", "bc", eval_episodes=2, eval_every="none")
    assert main(["train", *alone, "--out", "alone"]) == 0
    mixed = words(f"{dataset} + 2*p.npz", "iql", eval_episodes=2, eval_every="none")
    assert main(["train", *mixed, "--out", "mixed"]) == 0
    assert read_result(Path("mixed"))["dataset"] == f"{dataset} + 2*p.npz"


def test_a_run_records_from_python_as_the_command_does(trained, tmp_path):
    scores = Run(trained).evaluate(5, seed=2, record=tmp_path / "p.npz")
    log = load_dataset("p.npz")
    assert log.num_episodes == 5
    assert log.provenance["recorded"]["seed"] == 2
    assert log.episode_returns.mean() == pytest.approx(scores.return_mean)
    environment = gymnasium.make(ENVIRONMENT)
    starts = [environment.reset(seed=RECORDING_SEEDS + 2 + episode)[0] for episode in range(5)]
    np.testing.assert_array_equal(log.observations[log.episode_starts], starts)


def test_what_cannot_be_written_is_refused_before_any_episode(trained, capsys, monkeypatch):
    monkeypatch.setattr(Arena, "play", lambda *_, **__: pytest.fail("an episode was played"))
    (trained.parent / "kept.npz").write_bytes(b"kept")
    refused = {
        str(trained.parent / "kept.npz"): "exists and is not overwritten: .*another --record",
        "p.hdf5": "ends in .npz",
        "nowhere/p.npz": "its folder does not exist",
    }
    for name, told in refused.items():
        assert main(["evaluate", str(trained), "--record", name]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("saqrl: error: ")
        with pytest.raises(OSError if "npz" in name else ValueError, match=told):
            Run(trained).evaluate(2, record=name)
        with pytest.raises(OSError if "npz" in name else ValueError, match=told):
            play(make_lively_policy(), 2, record=name)
    assert (trained.parent / "kept.npz").read_bytes() == b"kept"
    assert main(["evaluate", str(trained), "--record", "p.npz", "--seed", "49999"]) == 2
    assert "seed is 49999; with --record" in capsys.readouterr().err
    assert main(["evaluate", str(trained), "--record", "p.npz", "--offline"]) == 2
    assert "--record needs an environment and --offline uses none" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    def full(file, **_):
        file.write(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full)
    assert main(["evaluate", str(trained), "--episodes", "2", "--record", "p.npz"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    class Interrupted(Corridor):
        def step(self, action):
            raise KeyboardInterrupt

    monkeypatch.setattr(
        "saqrl.training.evaluation.make_environment", lambda *_, **__: Interrupted()
    )
    policy = dataclasses.replace(make_lively_policy(), environment=EnvironmentSpec(ENVIRONMENT))
    save_policy(policy, tmp_path / "policy")
    with pytest.raises(KeyboardInterrupt):
        play(policy, 2, record="p.npz")
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy"]


def test_an_interrupt_while_writing_leaves_nothing(trained, tmp_path, monkeypatch):
    def stopped(file, **_):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stopped)
    with pytest.raises(KeyboardInterrupt):
        Run(trained).evaluate(2, record=tmp_path / "p.npz")
    assert list(tmp_path.iterdir()) == []
