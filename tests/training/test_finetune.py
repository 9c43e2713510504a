"""Fine-tuning online, on the point that walks to the origin."""

import json
from dataclasses import replace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.agents.bc import BC
from saqrl.cli import main
from saqrl.policy.rollout import EVALUATION_SEEDS, Steps
from saqrl.policy.storage import load_policy, save_policy
from saqrl.run import Run
from saqrl.testing import small as small_algorithm
from saqrl.testing import table
from saqrl.training.data import load_data
from saqrl.training.online.exploring import Exploring, exploring_seed
from saqrl.training.online.finetune import finetune
from saqrl.training.online.invalidation import LOOKED_AT, distances
from saqrl.training.online.replay import Experience, Replay, Replayed, State, as_log
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.preparation import prepare
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunError
from saqrl.training.train import train
from tests.walking import Point, dying, full_disk, outcome, run, small

LITTLE = {"steps": 120, "warm_up": 30, "eval_every": 60, "eval_episodes": 3, "lanes": 2}


@pytest.fixture(scope="module")
def parents(dataset, tmp_path_factory):
    """A finished run of each kind, made when it is asked for."""
    made = {}

    def parent(agent="iql", **flags):
        name = "-".join([agent, *(f"{key}{value}" for key, value in flags.items())])
        if name not in made:
            made[name] = tmp_path_factory.mktemp("parents") / "run"
            run(small(dataset, agent, **flags), made[name])
        return made[name]

    return parent


def tuned(parent, out, *, resume=False, **asked):
    settings = OnlineSettings(**LITTLE | asked)
    return finetune(parent, settings, out, resume=resume, reporter=Reporter(quiet=True))


@pytest.fixture(scope="module")
def whole(parents, tmp_path_factory):
    """An uninterrupted fine-tuning of each kind, made when it is asked for."""
    made = {}

    def one(agent, **asked):
        if (name := f"{agent} {asked}") not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            tuned(parents(agent), made[name], **asked)
        return made[name]

    return one


@pytest.mark.parametrize(
    ("agent", "flags"),
    [
        ("iql", {}),
        ("iql", {"chunk": 3, "agent.q_of": "actions"}),
        ("cql", {}),
        ("iql", {"members": 2, "agent.schedule": "cosine"}),
        ("brac", {"agent.schedule": "cosine"}),
    ],
)
def test_a_run_goes_on_with_its_own_agent(parents, tmp_path, agent, flags):
    parent = parents(agent, **flags)
    result = tuned(parent, tmp_path / "out")
    told = result["finetune"]
    assert 120 <= told["environment_steps"] < 120 + 2 * 20
    assert told["updates"] == told["environment_steps"] - 30
    assert result["gradient_steps"] == Run(parent).result["gradient_steps"] + told["updates"]
    before = json.loads((parent / "evaluations.jsonl").read_text().splitlines()[-1])
    names = ("return_mean", "success_rate", "length_mean")
    assert {n: told["before"][n] for n in names} == {n: before[n] for n in names}
    old, new = load_policy(parent), load_policy(tmp_path / "out")
    assert old.description == new.description
    leaves = zip(jax.tree.leaves(old.controller), jax.tree.leaves(new.controller), strict=True)
    assert not all(np.array_equal(one, other) for one, other in leaves)


def test_without_updates_the_policy_is_the_runs_own(parents, tmp_path):
    parent = parents()
    result = tuned(parent, tmp_path / "out", warm_up=10_000)
    assert result["finetune"]["updates"] == 0
    old, new = load_policy(parent), load_policy(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, old.controller, new.controller)


def test_a_bc_run_first_learns_values(parents, tmp_path):
    parent = parents("bc")
    result = tuned(parent, tmp_path / "out", agent="brac", value_steps=25)
    assert result["agent"] == "brac"
    of_parent = Run(parent).result["gradient_steps"]
    assert result["gradient_steps"] == of_parent + 25 + result["finetune"]["updates"]
    prior = load_policy(tmp_path / "out").controller.quantizer.prior
    jax.tree.map(
        np.testing.assert_array_equal, prior, load_policy(parent).controller.quantizer.prior
    )


def test_of_a_bc_ensemble_the_first_member_goes_on(parents, tmp_path, capsys):
    parent = parents("bc", members=2)
    asked = OnlineSettings(**LITTLE | {"agent": "iql", "value_steps": 25, "warm_up": 10_000})
    finetune(parent, asked, tmp_path / "out", reporter=Reporter())
    assert "is an ensemble of 2: only its first member is fine-tuned" in capsys.readouterr().err
    prior = load_policy(tmp_path / "out").controller.quantizer.prior
    first = load_policy(parent).controller.quantizer.prior.heads[0]
    jax.tree.map(np.testing.assert_array_equal, prior, first)
    assert Run(tmp_path / "out").settings.members == 1


def test_a_finetuned_run_goes_on_again_where_it_ended(parents, tmp_path):
    tuned(parents(), tmp_path / "one")
    tuned(tmp_path / "one", tmp_path / "two", warm_up=10_000)
    one, two = (load_policy(tmp_path / name).controller for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("blow", [1, 2, 4])
@pytest.mark.parametrize("agent", ["iql", "bc"])
def test_resumed_finetuning_equals_an_uninterrupted_one(
    parents, whole, tmp_path, monkeypatch, agent, blow
):
    parent, asked = parents(agent), {"value_steps": 20}
    with dying(monkeypatch, blow=blow):
        tuned(parent, tmp_path / "cut", **asked)
    with pytest.raises(RunError, match=r"saqrl finetune .* --resume"):
        train(small(parent), tmp_path / "cut", resume=True, reporter=Reporter(quiet=True))
    tuned(parent, tmp_path / "cut", resume=True, **asked)
    assert outcome(tmp_path / "cut") == outcome(whole(agent, **asked))


def test_replay_rows_are_the_offline_rows_of_the_same_episodes(dataset):
    settings = small(dataset, chunk=3)
    log = load_data(settings)
    played = [
        Steps(
            np.concatenate([log.observations[rows], log.next_observations[rows][-1:]]),
            log.actions[rows],
            log.rewards[rows],
            bool(log.terminated[rows][-1]),
        )
        for rows in log.episode_rows
    ]
    from saqrl.training.features import Features

    features = Features(log, settings)
    ours = prepare(as_log(played, log), settings, features.scaling, features.factor)
    theirs = prepare(log, settings, features.scaling, features.factor)
    for name, column in vars(theirs).items():
        np.testing.assert_array_equal(getattr(ours, name), column, err_msg=name)


def experience(values):
    rows = jnp.asarray(values, jnp.float32)
    wide = rows[:, None]
    return Experience(wide, rows.astype(jnp.int32), rows, wide + 0.5, rows)


def test_the_replay_keeps_the_newest_rows():
    replay, seen = Replay.empty(5, 1), []
    for count in (2, 3, 1, 4, 9):
        new = list(range(len(seen), len(seen) + count))
        replay = replay.add(experience([*new, *[-1] * 3]), count)  # padded
        seen += new
        assert int(replay.length) == min(len(seen), 5)
        held = set(np.asarray(replay.rows.codes)[: int(replay.length)].tolist())
        assert held == set(seen[-5:])
        np.testing.assert_array_equal(replay.rows.features[:, 0], replay.rows.rewards)


def test_each_member_has_its_share_of_offline_rows():
    agent, data, seen = small_algorithm("agent", "iql"), replace(table("agent"), actions=None), []
    batch = jax.tree.map(lambda column: column[:16], data)

    class Watched:
        batch_size, steps, precision = 16, 1, "float32"

        def update(self, state, batch, key):
            seen.append(batch)
            return state, {}

    zeros, width = jnp.zeros((), jnp.int32), data.observations.shape[1]
    prior = nn.MLP(jax.random.key(0), width, (8,), data.num_codes)
    state = State(
        agent.init(jax.random.key(0), data), prior, Replay.empty(8, width), zeros, zeros, zeros
    )
    Replayed.of(Watched(), 0.5, 2).update(state, batch, jax.random.key(1))
    offline = (seen[0].observations != 0).any(-1).reshape(2, 8)  # the replay is empty: zeros
    assert offline.sum(1).tolist() == [4, 4]


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.25, 4), (1.0, 16)])
def test_a_batch_has_its_share_of_offline_rows(share, kept):
    agent, data = small_algorithm("agent", "iql"), replace(table("agent"), actions=None)
    batch = jax.tree.map(lambda column: column[:16], data)
    seen = []

    class Watched:
        batch_size, steps, precision = 16, 1, "float32"

        def update(self, state, batch, key):
            seen.append(batch)
            return state, {}

    zeros = jnp.zeros((), jnp.int32)
    width, codes = data.observations.shape[1], data.num_codes
    prior = nn.MLP(jax.random.key(0), width, (8,), codes)
    online = Experience(
        jnp.full((3, width), 7.0), jnp.full(3, 5), jnp.ones(3), jnp.zeros((3, width)), jnp.ones(3)
    )
    replay = Replay.empty(8, width).add(online, 3)
    state = State(agent.init(jax.random.key(0), data), prior, replay, zeros, zeros, zeros)
    Replayed.of(Watched(), share).update(state, batch, jax.random.key(1))
    (mixed,) = seen
    assert int((mixed.observations == 7).all(-1).sum()) == 16 - kept
    np.testing.assert_array_equal(mixed.observations[:kept], batch.observations[:kept])
    np.testing.assert_array_equal(mixed.log_prior[:kept], batch.log_prior[:kept])
    expected = jax.nn.log_softmax(prior(mixed.observations[kept:]))
    np.testing.assert_array_equal(mixed.log_prior[kept:], expected)


def test_a_prior_that_learns_takes_a_step_of_cloning_on_the_mixed_batch():
    agent, data = small_algorithm("agent", "iql"), replace(table("agent"), actions=None)
    batch = jax.tree.map(lambda column: column[:16], data)
    clone = BC(hidden=(8,), schedule="constant", weight_decay=0.0, learning_rate=0.01)
    prior = clone.init(jax.random.key(0), data)
    zeros, width = jnp.zeros((), jnp.int32), data.observations.shape[1]
    online = Experience(
        jnp.full((3, width), 7.0), jnp.full(3, 5), jnp.ones(3), jnp.zeros((3, width)), jnp.ones(3)
    )
    state = State(
        agent.init(jax.random.key(0), data),
        prior.model,
        Replay.empty(8, width).add(online, 3),
        *(zeros, zeros, zeros),
        moments=prior.moments,
    )
    learner = Replayed.of(agent, 0.5, clone=clone)
    drawn = state.replay.draw(jax.random.split(jax.random.key(1))[0], 8)
    mixed = learner.mixed(
        jax.tree.map(lambda column: column[:8], batch),
        drawn.coded(prior.model, batch.num_codes, spare=False),
        8,
    )
    wanted, _ = clone.update(prior, mixed, jax.random.key(2))
    after, _ = learner.update(state, batch, jax.random.key(1))
    for ours, theirs in zip(*map(jax.tree.leaves, (after.prior, wanted.model)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    # Offline rows are read with the prior as it is, not as it was when they were coded.
    seen = learner._renewed(batch, after.prior, 8)
    fresh = jax.nn.log_softmax(after.prior(batch.observations[:8]))
    np.testing.assert_array_equal(seen.log_prior, fresh)
    kept, _ = Replayed.of(agent, 0.5).update(state, batch, jax.random.key(1))
    np.testing.assert_array_equal(kept.prior.weights[0], prior.model.weights[0])


@pytest.mark.parametrize("codebook", ["frozen", "grow"])
def test_a_prior_that_learns_is_played_saved_and_resumed(parents, tmp_path, monkeypatch, codebook):
    asked = {"prior_rate": 0.01, "codebook": codebook}
    tuned(parents(), tmp_path / "whole", **asked)
    before, after = (
        load_policy(p).controller.quantizer.prior for p in (parents(), tmp_path / "whole")
    )
    assert not np.array_equal(before.weights[0], after.weights[0])
    with dying(monkeypatch, blow=2):
        tuned(parents(), tmp_path / "cut", **asked)
    tuned(parents(), tmp_path / "cut", resume=True, **asked)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_starts_are_no_evaluations():
    for seed in (0, 3, 2**31 - 1):
        for first in (0, 99_999, 10**7):
            start = EVALUATION_SEEDS + exploring_seed(seed, first, 4)
            assert 0 <= start <= EVALUATION_SEEDS - 4


def test_noise_stays_in_range_and_repeats(parents):
    policy = load_policy(parents())
    noisy = Exploring.of(policy, temperature=1.0, noise=0.5)
    seen = np.zeros((3, policy.window_size), np.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    plain, one, two = (p.plan(seen, keys, act="greedy") for p in (policy, noisy, noisy))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, plain)
    assert (one >= policy.action_range.low).all()
    assert (one <= policy.action_range.high).all()
    silent = replace(noisy, noise=0.0)
    np.testing.assert_array_equal(silent.plan(seen, keys, act="greedy"), plain)


def test_distances_are_those_of_brute_force(parents, dataset):
    from saqrl.training.features import Features

    settings = small(dataset)
    features = Features(load_data(settings), settings)
    quantizer = load_policy(parents()).controller.quantizer
    rows = features.training
    places = np.linspace(0, len(rows.features) - 1, LOOKED_AT).astype(int)
    found = distances(quantizer.codec, rows)
    for place, distance in list(zip(places, found, strict=True))[::40]:
        away = [
            np.sqrt(np.mean((quantizer.decode(rows.features[place], k) - rows.actions[place]) ** 2))
            for k in range(quantizer.num_codes)
        ]
        assert distance == pytest.approx(min(away), rel=1e-4)  # float32 in another order


def test_the_command_says_what_scripts_read(parents, tmp_path, capsys):
    words = [f"--{n.replace('_', '-')}={value}" for n, value in LITTLE.items()]
    command = ["finetune", str(parents()), *words, "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["finetune"]["parent"] == str(parents())
    assert set(result["finetune"]["codes"]) == {"recorded", "first", "last"}
    assert (tmp_path / "out" / "index.html").is_file()
    for again in (["evaluate", "--episodes=2"], ["ls"], ["report"]):
        target = str(tmp_path if again[0] in ("ls", "report") else tmp_path / "out")
        assert main([again[0], target, *again[1:]]) == 0
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    other = ["finetune", str(parents()), "--out", str(tmp_path / "out"), "--resume", "--steps=7"]
    assert main(other) == 2
    assert "steps is 120 in the run and 7 here" in capsys.readouterr().err


def test_a_run_goes_on_from_python(parents, tmp_path):
    made = Run(parents()).finetune(out=tmp_path / "out", **LITTLE)
    assert made.result["finetune"]["environment_steps"] >= 120
    with pytest.raises(ValueError, match="unknown setting 'step'"):
        Run(parents()).finetune(out=tmp_path / "no", step=3)


@pytest.mark.parametrize(
    ("agent", "flags", "asked", "answer"),
    [
        ("iql", {"actions": "continuous"}, [], "continuous run"),
        ("iql", {"env": "none"}, [], "give one with --env"),
        ("iql", {}, ["--env", "Pendulum-v1"], "observations of shape"),
        ("iql", {}, ["--env", "saqrl-tests/Absent-v0"], "Absent-v0"),
        ("iql", {}, ["--keep-offline", "2"], "from 0 to 1"),
        ("iql", {}, ["--steps", "0"], "at least 1"),
        ("iql", {}, ["--resume"], "is not a run folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    parents, tmp_path, capsys, agent, flags, asked, answer
):
    if flags.get("actions") == "continuous":
        from saqrl.training.presets import settings_from

        parent = tmp_path / "parent"
        own = {"dataset": Run(parents()).settings.data.dataset, "steps": 10, "agent.hidden": 16}
        train(settings_from(own | flags), parent, reporter=Reporter(quiet=True))
    else:
        parent = parents(agent, **flags)
    assert main(["finetune", str(parent), "--out", str(tmp_path / "out"), *asked]) == 2
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("saqrl: error")]
    assert len(errors) == 1
    assert answer in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_run_without_rewards_is_refused(dataset, tmp_path, capsys):
    with np.load(dataset) as whole:
        columns = {name: whole[name] for name in whole.files if name != "rewards"}
    bare = tmp_path / "bare.npz"
    np.savez(bare, **columns)
    run(small(bare, "bc"), tmp_path / "parent")
    capsys.readouterr()
    command = ["finetune", str(tmp_path / "parent"), "--out", str(tmp_path / "out")]
    for words in ([], ["--serve", "127.0.0.1:0"]):
        assert main([*command, *words]) == 2
        said = capsys.readouterr().err.splitlines()
        (error,) = [line for line in said if line.startswith("saqrl: error")]
        assert "have no rewards" in error
        assert not (tmp_path / "out").exists()


class Unsound(Point):
    """Its rewards are no numbers after a while."""

    count = 0

    def step(self, action):
        place, reward, *rest = super().step(action)
        Unsound.count += 1
        return place, float("nan") if Unsound.count > 150 else reward, *rest


class Endless(Point):
    def step(self, action):
        place, reward, _, _, info = super().step(action)
        return place, reward, False, False, info


def test_rewards_that_are_no_numbers_lose_nothing(parents, tmp_path, capsys):
    name = "saqrl-tests/Unsound-v0"
    gymnasium.register(name, Unsound)
    try:
        words = ["--steps=400", "--warm-up=30", "--eval-episodes=1", f"--env={name}"]
        out = tmp_path / "out"
        assert main(["finetune", str(parents()), "--out", str(out), *words]) == 2
        assert "gave the reward nan" in capsys.readouterr().err
        kept = (out / "metrics.jsonl").read_text()
        assert kept
        Unsound.count = -(10**6)
        assert main(["finetune", str(parents()), "--out", str(out), "--resume"]) == 0
        assert (out / "metrics.jsonl").read_text().startswith(kept)
    finally:
        del gymnasium.registry[name]


def test_an_environment_without_end_asks_for_a_limit(parents, tmp_path, monkeypatch, capsys):
    from saqrl.training.online import loop

    monkeypatch.setattr(loop, "LONGEST", 50)
    monkeypatch.setattr("saqrl.training.train.Session._evaluate", lambda *_: {})
    name = "saqrl-tests/Endless-v0"
    gymnasium.register(name, Endless)
    try:
        words = ["--env", name, "--out", str(tmp_path / "out")]
        assert main(["finetune", str(parents()), *words]) == 2
        assert "max_episode_steps" in capsys.readouterr().err
    finally:
        del gymnasium.registry[name]


def test_a_run_of_other_scaling_is_refused(parents, tmp_path):
    import shutil

    parent = tmp_path / "parent"
    shutil.copytree(parents(), parent)
    policy = load_policy(parent)
    scaling = policy.observation_scaling
    other = replace(scaling, mean=scaling.mean + np.float32(0.1))
    save_policy(replace(policy, observation_scaling=other), parent / "policy")
    with pytest.raises(ValueError, match="train it again"):
        tuned(parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_tells_how_to_go_on(parents, tmp_path, monkeypatch, capsys):
    words = [f"--{n.replace('_', '-')}={value}" for n, value in LITTLE.items()]
    command = ["finetune", str(parents()), *words, "--out", str(tmp_path / "out")]
    with full_disk(monkeypatch, stage="online", after=2):
        assert main(command) == 2
    assert "then resume: saqrl finetune" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
