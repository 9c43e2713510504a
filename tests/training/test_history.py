"""Several observations at once: the same windows in training, on the robot and on the network."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl.commands import train
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.windows import next_windows, windows
from saqrl.deploy import runtime
from saqrl.policy.discrete_env import QuantizedActions
from saqrl.policy.rollout import EVALUATION_SEEDS, Arena
from saqrl.policy.storage import controller_skeleton, load_policy, save_policy
from saqrl.training.preparation import fit_scaling, prepare
from tests.deploy.test_export import make_policy as lively
from tests.deploy.test_export import write
from tests.policy.test_policy import CHUNK, OBSERVATION, Corridor, described, enlivened
from tests.training.test_stream import asked, walks
from tests.walking import run, small

HISTORY = 3


@pytest.fixture(scope="module")
def policy():
    """Of three observations, random; two actions of each chunk are played."""
    plain = lively()
    description = described("quantized", "bc") | {"features": HISTORY * (OBSERVATION + 1)}
    skeleton = jax.jit(lambda: controller_skeleton(description))()
    return replace(
        plain,
        controller=enlivened(skeleton),
        observation_scaling=replace(plain.observation_scaling, history=HISTORY),
        description=description,
    )


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    history=st.integers(1, 5),
    chunk=st.integers(1, 4),
)
def test_windows_are_those_of_a_plain_loop_over_each_episode(lengths, history, chunk):
    log = walks(lengths, angles=(1,))
    wanted = asked(chunk=chunk, action_horizon=1, history=history, observation_scale="common")
    single = fit_scaling(log, replace(wanted, features=replace(wanted.features, history=1)))
    prepared = prepare(log, wanted, fit_scaling(log, wanted), 1.0)
    for rows in log.episode_rows:
        final = log.next_observations[rows.stop - 1]
        seen = [*log.observations[rows], final]
        for step in range(rows.stop - rows.start):
            here = [seen[max(step - back, 0)] for back in range(history)[::-1]]
            after = min(step + chunk, rows.stop - rows.start)
            then = [seen[max(after - back, 0)] for back in range(history)[::-1]]
            # In this log a next observation is the next row's, but for the last of an episode.
            row = rows.start + step
            np.testing.assert_array_equal(windows(log, history)[row], np.concatenate(here))
            np.testing.assert_array_equal(
                prepared.features[row], np.concatenate([single(o) for o in here])
            )
            np.testing.assert_array_equal(
                prepared.next_features[row], np.concatenate([single(o) for o in then])
            )


def test_the_last_next_window_ends_with_the_rows_own_next_observation():
    log = walks([2, 3])
    final = next_windows(log, np.array([1]), 3)[0]
    expected = [log.observations[0], log.observations[1], log.next_observations[1]]
    np.testing.assert_array_equal(final, np.concatenate(expected))
    np.testing.assert_array_equal(next_windows(log, np.array([4]), 1), log.next_observations[4:])


def test_a_history_of_one_is_the_observation_itself():
    log = walks([4, 3])
    assert windows(log, 1) is log.observations
    with pytest.raises(ValueError, match="history is 0; it must be at least 1"):
        windows(log, 0)
    with pytest.raises(ValueError, match="history is 0; it must be at least 1"):
        asked(history=0)


def played(policy, seed: int, act) -> list[np.ndarray]:
    """The actions of an episode by what `act` says of each observation."""
    environment, actions, ended = Corridor(), [], False
    observation, _ = environment.reset(seed=seed)
    while not ended:
        actions.append(act(observation))
        observation, _, ended, _, _ = environment.step(actions[-1])
    return actions


@pytest.mark.parametrize("suffix", ["npz", "onnx"])
def test_player_arena_and_exported_file_play_the_same_actions(policy, suffix, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    shown = np.random.default_rng(0).normal(size=(64, HISTORY * OBSERVATION)).astype(np.float32)
    write(policy, tmp_path / f"p.{suffix}", observations=shown, held_out=shown)
    robot, player = runtime.load(tmp_path / f"p.{suffix}"), policy.player(act="greedy")
    assert robot.history == HISTORY
    with Arena(Corridor, lanes=2) as arena:
        found = arena.play(policy, episodes=3, act="greedy")
    for episode in range(3):
        player.reset()
        robot.reset()
        seed = EVALUATION_SEEDS + episode
        ours = played(policy, seed, player.act)
        theirs = played(policy, seed, lambda seen: robot.act(seen).action)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert found.returns[episode] == pytest.approx(sum(float(a[0]) for a in ours), rel=1e-4)
    # What was seen matters, and is forgotten at a reset.
    here = np.ones(OBSERVATION, np.float32)
    first = robot.plan(np.tile(here, (1, HISTORY))).actions[0, 0]
    robot.reset()
    np.testing.assert_array_equal(robot.act(here).action, first)
    with pytest.raises(ValueError, match=r"observation of 9 numbers, the last 3 side by side"):
        robot.plan(here[None])
    with pytest.raises(ValueError, match=r"reads 3-observation windows of 9 numbers"):
        policy.plan(here[None], jax.random.split(jax.random.key(0), 1), act="greedy")


def test_a_window_is_planned_for_by_every_observation_while_a_chunk_is_played(policy):
    """The second decision sees what came between, not only what was decided by."""
    seen = np.random.default_rng(3).normal(size=(3, OBSERVATION)).astype(np.float32)
    player = policy.player(act="greedy")
    actions = [player.act(one) for one in seen]
    keys = jax.random.split(jax.random.key(0), 1)
    expected = policy.plan(seen.reshape(1, -1), keys, act="greedy")[0, 0]
    np.testing.assert_allclose(actions[2], expected, rtol=1e-5)


def test_the_server_keeps_a_window_for_each_client(policy, tmp_path):
    pytest.importorskip("websockets")
    msgpack = pytest.importorskip("msgpack")
    from tests.deploy.test_server import actions_of, array, connected, running

    shown = np.random.default_rng(0).normal(size=(64, HISTORY * OBSERVATION)).astype(np.float32)
    single = replace(policy, action_horizon=1)
    for name, made in (("single", single), ("chunks", policy)):
        write(made, tmp_path / f"{name}.npz", observations=shown, held_out=shown)
    seen = shown[:5, :OBSERVATION]
    robot = runtime.load(tmp_path / "single.npz")
    expected = [robot.act(one).action for one in seen]

    def asked_of(client, observation, **words):
        client.send(msgpack.packb({"observation": array(observation), **words}))
        return client.recv()

    with running(tmp_path / "single.npz") as (_, port), connected(port) as (one, greeting):
        assert greeting["history"] == HISTORY
        with connected(port) as (other, _):
            for step, observation in enumerate(seen):
                np.testing.assert_array_equal(
                    actions_of(asked_of(one, observation))[0], expected[step]
                )
                np.testing.assert_array_equal(
                    actions_of(asked_of(other, seen[0], reset=True))[0], expected[0]
                )
        answer = asked_of(one, seen[0], reset=True)
        np.testing.assert_array_equal(actions_of(answer)[0], expected[0])
        assert "'reset' is not true or false" in asked_of(one, seen[0], reset=3)
    with running(tmp_path / "chunks.npz") as (_, port), connected(port) as (client, _):
        refused = asked_of(client, seen[0])
        assert "send all of them as an array (3, 3), oldest first" in refused
        for whole in (seen[:3], seen[:3].ravel()):
            actions = actions_of(asked_of(client, whole))
            plan = runtime.load(tmp_path / "chunks.npz").plan(seen[None, :3])
            np.testing.assert_array_equal(actions, plan.actions[0])
        assert "expected one observation" in asked_of(client, seen[:2])


def test_codes_are_decoded_by_what_the_environment_has_shown(policy):
    env = QuantizedActions(Corridor(), policy)
    observation, _ = env.reset(seed=0)
    first = env.decode(np.tile(observation, HISTORY), 2)
    np.testing.assert_array_equal(env._window.flat(), np.tile(observation, HISTORY))
    env.step(2)
    assert first.shape == (CHUNK, 2)
    np.testing.assert_array_equal(env._window.flat()[:OBSERVATION], observation)


def test_a_policy_with_a_history_is_stored_and_one_from_before_has_none(policy, tmp_path):
    save_policy(policy, tmp_path / "new")
    again = load_policy(tmp_path / "new")
    assert again.history == HISTORY
    np.testing.assert_array_equal(
        again.act(np.ones(OBSERVATION)), policy.player().act(np.ones(OBSERVATION))
    )
    save_policy(lively(), tmp_path / "old")
    file = tmp_path / "old" / "policy.json"
    record = json.loads(file.read_text())
    del record["history"]
    file.write_text(json.dumps(record))
    assert load_policy(tmp_path / "old").history == 1


def test_a_run_with_a_history_learns_and_is_not_resumed_with_another(dataset, tmp_path):
    few = {"steps": 10, "quantizer_steps": 10, "eval_every": None, "eval_episodes": 1}
    wanted = small(dataset, "bc", history=2, chunk=2, angles=(1,), **few)
    run(wanted, tmp_path / "run")
    found = load_policy(tmp_path / "run")
    assert (found.history, found.window_size) == (2, 4)
    assert found.act(np.zeros(2, np.float32)).shape == (2,)
    with pytest.raises(ValueError, match=r"features\.history is 2 in the run and 3 here: remove"):
        train.main(["--out", str(tmp_path / "run"), "--resume", "--history", "3"])


def test_scaling_of_a_window_is_that_of_its_observations():
    log = walks([9])
    one = ObservationScaling.fit(log.observations, angles=(2,), deviation=0.3)
    several = replace(one, history=2)
    expected = np.concatenate([one(log.observations[3]), one(log.observations[4])])
    np.testing.assert_array_equal(several(log.observations[3:5].ravel()), expected)
