"""From raw observation to environment action, to disk and back, and in an environment."""

import dataclasses
import functools
import json
from collections.abc import Callable

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.agents import AGENTS
from saqrl.baselines import BASELINES
from saqrl.datasets import EnvironmentSpec
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.policy import CodeController, ContinuousController, Policy
from saqrl.policy.rollout import EVALUATION_SEEDS, Arena
from saqrl.policy.storage import PolicyError, controller_skeleton, load_policy, save_policy
from saqrl.quantizers import QUANTIZERS

OBSERVATION, ACT, CHUNK = 3, 2, 4


def described(kind: str, name: str) -> dict:
    small = {"hidden": (8,), "steps": 1}
    sizes = {"features": OBSERVATION + 1, "chunk_action_size": CHUNK * ACT}
    if kind == "continuous":
        agent = BASELINES.describe(BASELINES.load(name)(**small))
        return {"kind": kind, "agent": agent, **sizes}
    quantizer = QUANTIZERS.load("vqvae")(**small, codes=6, code_size=3)
    return {
        "kind": kind,
        "quantizer": QUANTIZERS.describe(quantizer),
        "prior": AGENTS.describe(AGENTS.load("bc")(**small)),
        "agent": AGENTS.describe(AGENTS.load(name)(**small)),
        **sizes,
    }


def make_policy(kind: str = "quantized", name: str = "bc", **changes) -> Policy:
    description = described(kind, name)
    policy = Policy(
        controller=jax.jit(lambda: controller_skeleton(description))(),
        observation_scaling=ObservationScaling(
            (1,), np.array([1, 0, 0, 0], np.float32), np.array([2, 1, 1, 1], np.float32)
        ),
        action_range=ActionRange(np.array([0, -1], np.float32), np.array([10, 1], np.float32)),
        observation_size=OBSERVATION,
        chunk=CHUNK,
        action_horizon=2,
        description=description,
        environment=EnvironmentSpec("Somewhere-v0", {"speed": 2}),
    )
    return dataclasses.replace(policy, **changes)


@functools.cache
def make_lively_policy(kind: str = "quantized", name: str = "bc") -> Policy:
    """With random weights: every code then stands for something."""
    policy = make_policy(kind, name)
    return dataclasses.replace(policy, controller=enlivened(policy.controller))


def enlivened(controller):
    """The same with random weights."""
    leaves, structure = jax.tree.flatten(controller)
    draw = np.random.default_rng(5)

    def lively(leaf):
        if leaf.dtype == bool:
            return jnp.arange(leaf.size).reshape(leaf.shape) % 4 == 0
        return leaf + 0.3 * draw.normal(size=leaf.shape).astype(leaf.dtype)

    return jax.tree.unflatten(structure, map(lively, leaves))


ACTORS = [
    *(("quantized", name) for name in AGENTS),
    *(("continuous", name) for name in BASELINES),
]


@pytest.mark.parametrize(("kind", "name"), ACTORS)
def test_a_saved_policy_acts_exactly_as_before(kind, name, tmp_path):
    policy = make_policy(kind, name)
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(str(tmp_path / "policy"))
    observations = np.random.default_rng(0).normal(size=(5, OBSERVATION)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 5)
    for act in ("greedy", "sample"):
        np.testing.assert_array_equal(
            policy.plan(observations, keys, act=act), loaded.plan(observations, keys, act=act)
        )
    assert loaded.environment == policy.environment
    assert (loaded.chunk, loaded.action_horizon) == (CHUNK, 2)


def test_actions_stay_in_the_range_of_the_robot():
    policy = make_policy("continuous", "bc")
    observations = 100 * np.random.default_rng(0).normal(size=(50, OBSERVATION))
    actions = policy.plan(
        observations.astype(np.float32), jax.random.split(jax.random.key(0), 50), act="greedy"
    )
    assert actions.shape == (50, CHUNK, ACT)
    assert (actions >= policy.action_range.low).all()
    assert (actions <= policy.action_range.high).all()


def test_a_plan_is_the_controllers_decision_in_the_robots_units_and_compiled_once():
    traced = []

    class Counted(eqx.Module):
        def decide(self, features, key, *, act, temperature):
            traced.append(act)
            noise = 0.0 if act == "greedy" else jax.random.uniform(key)
            return jnp.tile(features[:2] / 10, CHUNK) + noise

    policy = make_policy(controller=Counted())
    observations = np.random.default_rng(0).normal(size=(5, OBSERVATION)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 5)
    for _ in range(3):
        plans = {act: policy.plan(observations, keys, act=act) for act in ("greedy", "sample")}
    assert sorted(traced) == ["greedy", "sample"]
    unit = np.tile(policy.observation_scaling(observations)[:, None, :2] / 10, (1, CHUNK, 1))
    noise = np.asarray(jax.vmap(jax.random.uniform)(keys))[:, None, None]
    for act, decided in (("greedy", unit), ("sample", unit + noise)):
        expected = policy.action_range.from_unit(decided)
        np.testing.assert_allclose(plans[act], expected, rtol=1e-5, atol=1e-6)


def test_a_greedy_code_is_the_best_scored_and_sampled_codes_follow_their_probabilities():
    policy = make_policy("quantized", "iql")
    controller = policy.controller
    assert isinstance(controller, CodeController)
    features = jnp.asarray([0.3, -0.2, 0.8, 0.1])
    logits = controller.actor.logits(features, controller.quantizer.log_prior(features))
    greedy = controller.choose(features, jax.random.key(0), act="greedy")
    assert greedy == logits.argmax()
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: controller.choose(features, key, act="sample"))(keys)
    share = np.bincount(drawn, minlength=len(logits)) / len(drawn)
    # Four standard deviations of a share of 4000 draws.
    np.testing.assert_allclose(share, jax.nn.softmax(logits), atol=4 * 0.5 / np.sqrt(4000))


def test_a_player_plays_what_was_planned_and_plans_again_after_the_action_horizon():
    policy = make_policy()
    player = policy.player(seed=3, act="sample")
    observations = np.random.default_rng(1).normal(size=(4, OBSERVATION)).astype(np.float32)
    played = [player.act(observation) for observation in observations]
    for decision, first in enumerate((0, 2)):
        key = jax.random.fold_in(jax.random.key(3), decision)
        chunk = policy.plan(observations[first][None], key[None], act="sample")[0]
        np.testing.assert_array_equal(played[first : first + 2], chunk[:2])


def test_a_policy_acts_in_one_line_and_starts_episodes_anew():
    policy = make_policy(default_act="sample")
    player = policy.player()
    observations = np.random.default_rng(1).normal(size=(4, OBSERVATION))
    for number, observation in enumerate(observations):
        if number == 3:  # in the middle of a chunk
            policy.reset()
            player.reset()
        np.testing.assert_array_equal(policy.act(observation), player.act(observation))
    chunk = policy.plan(
        observations[3:], jax.random.fold_in(jax.random.key(0), 2)[None], act="sample"
    )
    np.testing.assert_array_equal(policy.act(observations[0]), chunk[0, 1])


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.array([0.0, np.nan, 0.0]), "number 1 of the observation is nan"),
        (np.array([0.0, 0.0, -np.inf]), "number 2 of the observation is -inf"),
        (np.array([0.0, 1e300, 0.0]), "number 1 of the observation is inf"),
        (np.zeros(5), r"reads observations of 3 numbers, this one has shape \(5,\)"),
        (["a", "b", "c"], "of type <U1; expected numbers"),
    ],
)
def test_what_is_no_observation_is_refused(observation, message):
    policy = make_policy()
    playing = policy.player()
    playing.act(np.zeros(3))
    for act in (policy.act, playing.act):  # before a chunk and in the middle of one
        with pytest.raises(ValueError, match=message):
            act(observation)
    assert "1 left of its chunk" in repr(playing)
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=message):
        policy.plan(np.stack([np.zeros_like(observation), observation]), keys, act="greedy")
    with pytest.raises(ValueError, match=r"have shape \(3,\); expected \(batch, 3\)"):
        policy.plan(np.zeros(3), keys, act="greedy")
    with pytest.raises(ValueError, match=r"this one has shape \(1, 3\)"):
        policy.act(np.zeros((1, 3)))


def test_a_policy_equals_itself_alone():
    policy = make_policy()
    assert policy == policy
    assert policy != make_policy()
    assert len({policy, policy, make_policy()}) == 2


def test_everything_says_in_one_line_what_it_is():
    policy = make_policy()
    assert repr(policy) == (
        "Policy(bc on 6 codes, observations (3,), actions (2,), chunk 4, action horizon 2, greedy)"
    )
    player = policy.player()
    player.act(np.zeros(3))
    assert repr(player) == f"Player(greedy, 1 left of its chunk, {policy})"
    assert repr(policy.quantizer) == ("PolicyQuantizer(6 codes, observations (3,), actions (4, 2))")
    assert repr(policy.controller.quantizer) == "ActionQuantizer(VQCodec, 6 codes)"
    assert "codes" not in repr(make_policy("continuous", "bc"))


def damage_json(folder):
    (folder / "policy.json").write_text("{")


def truncate_weights(folder):
    path = folder / "weights.npz"
    path.write_bytes(path.read_bytes()[:200])


def pickle_weights(folder):
    np.savez(folder / "weights.npz", action_low=np.array([object()]))


def remove_array(folder):
    with np.load(folder / "weights.npz") as archive:
        kept = dict(archive)
    kept.pop(next(name for name in kept if name.startswith("controller")))
    np.savez(folder / "weights.npz", **kept)


def age_format(folder):
    described = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(described | {"format": 99}))


@pytest.mark.parametrize(
    "damage", [damage_json, truncate_weights, pickle_weights, remove_array, age_format]
)
def test_a_damaged_policy_is_one_clear_error(damage: Callable, tmp_path):
    save_policy(make_policy(), tmp_path)
    damage(tmp_path)
    with pytest.raises(PolicyError, match=r"no policy that can be loaded|format 99"):
        load_policy(tmp_path)


def test_a_runs_folder_is_as_good_as_its_policys(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PolicyError, match="has its run finished"):
        load_policy(tmp_path)
    save_policy(make_policy(), tmp_path / "policy")
    assert repr(load_policy(tmp_path)) == repr(load_policy(tmp_path / "policy"))


def test_a_folder_without_policy_says_so(tmp_path):
    with pytest.raises(PolicyError, match="no policy"):
        load_policy(tmp_path)


class Corridor(gymnasium.Env):
    """Walks by the first action; an episode lasts 3 to 7 steps by its seed."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action_space = gymnasium.spaces.Box(-10, 10, (ACT,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed = seed
        self.state = self.np_random.normal(size=OBSERVATION).astype(np.float32)
        self.left = int(self.np_random.integers(3, 8))
        return self.state, {}

    def step(self, action):
        self.left -= 1
        self.state = self.state + np.float32(0.1) * float(action[0])
        reward = float(action[0])
        return self.state, reward, self.left == 0, False, {"success": reward > 5}


@pytest.mark.parametrize("act", ["greedy", "sample", "mean"])
def test_scores_do_not_depend_on_how_many_environments_run_side_by_side(act):
    results = []
    for lanes in (1, 4):
        with Arena(Corridor, lanes=lanes) as arena:
            results.append(arena.play(make_policy(), episodes=9, act=act, seed=2))
    # Batches of another size may round otherwise: a few units in the last place of float32.
    np.testing.assert_allclose(results[0].returns, results[1].returns, rtol=1e-4)
    np.testing.assert_array_equal(results[0].lengths, results[1].lengths)
    np.testing.assert_array_equal(results[0].successes, results[1].successes)


def test_an_arena_counts_what_the_environment_does():
    starts = []

    class Recorded(Corridor):
        def reset(self, *, seed=None, options=None):
            starts.append(seed)
            return super().reset(seed=seed, options=options)

    done = []
    with Arena(Recorded, lanes=2) as arena:
        played = arena.play(make_policy(), episodes=5, act="greedy", progress=done.append)
    assert sorted(starts) == [EVALUATION_SEEDS + episode for episode in range(5)]
    assert done[-1] == 5
    environment = Corridor()
    player = make_policy().player(act="greedy")
    observation, _ = environment.reset(seed=EVALUATION_SEEDS)
    rewards, ended = [], False
    while not ended:
        observation, reward, ended, _, _ = environment.step(player.act(observation))
        rewards.append(reward)
    assert played.returns[0] == pytest.approx(sum(rewards), rel=1e-4)
    assert played.max_rewards[0] == pytest.approx(max(rewards), rel=1e-4)
    assert played.lengths[0] == len(rewards)


def test_an_episode_that_ends_without_an_observation_is_scored():
    class Diverging(Corridor):
        """As simulators that stop where their state is not finite any more."""

        def step(self, action):
            observation, *rest = super().step(action)
            return observation * (np.nan if rest[1] else 1), *rest

    with Arena(Diverging, lanes=2) as arena:
        played = arena.play(make_policy(), episodes=3, act="greedy")
    with Arena(Corridor, lanes=2) as arena:
        finite = arena.play(make_policy(), episodes=3, act="greedy")
    np.testing.assert_array_equal(played.returns, finite.returns)


def test_continuous_controller_is_what_its_actor_says():
    policy = make_policy("continuous", "bc")
    controller = policy.controller
    assert isinstance(controller, ContinuousController)
    features = jnp.asarray([0.3, -0.2, 0.8, 0.1])
    np.testing.assert_array_equal(
        controller.decide(features, jax.random.key(0), act="greedy"),
        controller.actor.act(features, jax.random.key(0), greedy=True),
    )
