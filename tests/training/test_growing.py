"""Codebooks that go on learning while a run is fine-tuned."""

import json
from dataclasses import replace
from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.agents import CodedTransitions, operators
from saqrl.agents.bc import BC
from saqrl.cli import main
from saqrl.policy.policy import _decide_batch
from saqrl.policy.storage import load_policy
from saqrl.quantizers import ActionBatch
from saqrl.quantizers.vqvae import VQVAE
from saqrl.registry import AGENTS
from saqrl.run import Run
from saqrl.training import engine
from saqrl.training.online import adapting, growth
from saqrl.training.online.finetune import finetune
from saqrl.training.online.loop import Online
from saqrl.training.online.replay import Experience, Replay, Replayed, State
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from tests.training.moved import HIGHEST, MOVED, STEPS, Moved, demonstrate
from tests.walking import dying, outcome, run, small

LITTLE = {"steps": 200, "warm_up": 40, "eval_every": 100, "eval_episodes": 2, "lanes": 4}
LITTLE |= {"noise": 0.3, "recode_every": 80, "refine_every": 2}
GROW = {"codebook": "grow", "spare_codes": 6}
CODES, FEATURES = 5, 3
AGENTS_OF_ALL_KINDS = [
    ("iql", {}),
    ("iql", {"bins": 11}),
    ("iql", {"prior_temperature": 1.0}),
    ("cql", {"threshold": 0.0}),
    ("cql", {"support": 0.6}),
    ("brac", {}),
    ("brac", {"closed_form": True}),
]


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Finished runs on what turns left, in the world that pays right."""
    gymnasium.register(MOVED, entry_point=Moved)
    data = demonstrate(tmp_path_factory.mktemp("data") / "left.npz")
    made = {}

    def parent(agent="iql", **flags):
        name = "-".join([agent, *(f"{key}{value}" for key, value in flags.items())])
        if name not in made:
            made[name] = tmp_path_factory.mktemp("parents") / "run"
            said = {"quantizer_steps": 600, "quantizer.hidden": 32, "quantizer.codes": 16}
            said |= {"steps": 200, "agent.discount": 0.0, "act": "sample", "prior.steps": 100}
            if agent == "iql":
                said |= {"agent.temperature": 0.02, "agent.learning_rate": 0.003}
            run(small(data, agent, env=MOVED, **said | flags), made[name])
        return made[name]

    yield parent
    del gymnasium.registry[MOVED]


def tuned(parent, out, *, resume=False, **asked):
    settings = OnlineSettings(**LITTLE | asked)
    return finetune(parent, settings, out, resume=resume, reporter=Reporter(quiet=True))


@pytest.fixture(scope="module")
def whole(parents, tmp_path_factory):
    """An uninterrupted run of each kind, made when it is asked for."""
    made = {}

    def one(**asked):
        if (name := str(asked)) not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            tuned(parents(), made[name], **asked)
        return made[name]

    return one


def watched(monkeypatch):
    """Where the last state of a run is put, and its session."""
    seen, told = [], Online._told

    def look(self, state):
        seen.append((self, state))
        return told(self, state)

    monkeypatch.setattr(Online, "_told", look)
    return seen


def test_a_moved_target_is_reached_by_new_codes_alone(parents, tmp_path):
    asked = {"steps": 1000, "eval_every": 1000, "eval_episodes": 10, "noise": 0.2}
    asked |= {"refine_every": 1, "recode_every": 200}
    frozen = tuned(parents(), tmp_path / "frozen", **asked)
    programs = engine._advance._cache_size(), adapting._opened._cache_size()
    asked |= {"codebook": "grow", "spare_codes": 24, "recode_every": 80, "retire_after": 80}
    grow = tuned(parents(), tmp_path / "grow", **asked)
    # Nothing is compiled again for a code that is opened.
    assert engine._advance._cache_size() == programs[0] + 1
    assert adapting._opened._cache_size() == programs[1] + 1
    # No action of the run's codes is far above the demonstrations'.
    assert frozen["return_mean"] < STEPS * (HIGHEST + 0.1)
    assert grow["return_mean"] > frozen["return_mean"] + 1.5
    codes = grow["finetune"]["codes"]
    assert codes["added"] > 24  # rows of codes that have retired are used again
    assert codes["retired"] > 0
    assert codes["executed"] > 0
    assert codes["live"] == 16 + codes["added"] - codes["retired"]
    assert codes["last"]["first_uncovered"] > 2 * codes["last"]["uncovered"]
    assert codes["last"]["first_code_error"] > codes["last"]["code_error"]


def test_q_of_actions_knows_new_codes_from_the_start(parents, tmp_path):
    """With the noise of the default, which opens codes by itself."""
    asked = {"steps": 1000, "eval_every": 1000, "eval_episodes": 10, "noise": None}
    asked |= {"refine_every": 1, "recode_every": 200, "codebook": "grow", "spare_codes": 24}
    returns = {
        of: tuned(parents(**{"agent.q_of": of}), tmp_path / of, **asked)["return_mean"]
        for of in ("codes", "actions")
    }
    assert returns["codes"] > -6.5  # with frozen codes it stays at -7
    assert returns["actions"] > returns["codes"] + 1.5


def test_every_round_shares_its_programs(parents, tmp_path):
    tuned(parents(), tmp_path / "one", **GROW)
    before = engine._advance._cache_size(), _decide_batch._cache_size()
    tuned(parents(), tmp_path / "two", **GROW | {"steps": 400, "noise": 0.5})
    assert (engine._advance._cache_size(), _decide_batch._cache_size()) == before


@pytest.mark.parametrize(
    ("agent", "flags"),
    [
        ("iql", {"agent.q_of": "actions"}),
        ("cql", {}),
        ("brac", {}),
        ("iql", {"members": 2, "agent.bins": 11}),
    ],
)
def test_every_agent_goes_on_with_new_codes(parents, tmp_path, monkeypatch, agent, flags):
    seen = watched(monkeypatch)
    result = tuned(parents(agent, **flags), tmp_path / "out", **GROW)
    assert result["finetune"]["codes"]["added"] > 0
    ((_, state),) = seen
    live = np.asarray(state.codebook.quantizer.codebook.live)
    assert live.sum() == result["finetune"]["codes"]["live"]
    held = int(state.replay.length)
    assert live[np.asarray(state.replay.rows.codes)[:held]].all()
    assert live[np.asarray(state.codebook.recorded)].all()
    policy = load_policy(tmp_path / "out")
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(200, policy.observation_size)).astype(np.float32)
    actions = generator.uniform(-1, 1, (200, 2)).astype(np.float32)
    assert live[policy.quantizer.encode(observations, actions)].all()
    prior = np.exp(policy.quantizer.log_prior(observations).astype(np.float64))
    assert (prior[:, ~live] == 0).all()
    np.testing.assert_allclose(prior.sum(1), 1, atol=1e-5)
    features = jnp.asarray(policy.observation_scaling(observations))
    scores = jax.vmap(policy.controller.scores)(features)
    assert (np.asarray(jax.nn.softmax(scores))[:, ~live] < 1e-30).all()


@pytest.mark.parametrize("file_format", ["onnx", "npz"])
def test_a_grown_run_is_exported_as_it_plays(parents, tmp_path, file_format):
    out = tmp_path / "out"
    tuned(parents(), out, **GROW)
    for part in ("policy", "encoder", "decoder"):
        file = tmp_path / f"{part}.{file_format}"
        words = ["export", str(out), "--out", str(file), "--part", part]
        assert main(words) == 0  # kept only where it decides as the policy does
        assert file.is_file()
    assert main(["evaluate", str(out), "--episodes=2"]) == 0


@pytest.mark.parametrize("blow", [1, 3, 5])
@pytest.mark.parametrize("asked", [GROW, {"codebook": "decoder"}], ids=["grow", "decoder"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    parents, whole, tmp_path, monkeypatch, asked, blow
):
    parent, unbroken = parents(), whole(**asked)  # made before anything dies
    with dying(monkeypatch, blow=blow):
        tuned(parent, tmp_path / "cut", **asked)
    tuned(parent, tmp_path / "cut", resume=True, **asked)
    assert outcome(tmp_path / "cut") == outcome(unbroken)


@pytest.mark.parametrize("asked", [GROW, {"codebook": "decoder"}], ids=["grow", "decoder"])
def test_it_goes_on_again_where_it_ended(parents, tmp_path, asked):
    tuned(parents(), tmp_path / "one", **asked)
    one = load_policy(tmp_path / "one").controller
    for number, more in enumerate([{}, GROW, {"agent": "brac", "value_steps": 5}]):
        out = tmp_path / f"again{number}"
        tuned(tmp_path / "one", out, **more | {"steps": 40, "warm_up": 10_000, "noise": 0})
        two = load_policy(out).controller
        rows = one.quantizer.num_codes
        for old, new in zip(
            jax.tree.leaves((one.quantizer.codec.encoder, one.quantizer.codec.codes)),
            jax.tree.leaves((two.quantizer.codec.encoder, two.quantizer.codec.codes[:rows])),
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)
        if not more:
            jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_cosine_agent_goes_on_twice(parents, tmp_path):
    tuned(parents("brac", **{"agent.schedule": "cosine"}), tmp_path / "one")
    tuned(tmp_path / "one", tmp_path / "two", warm_up=10_000, steps=40)
    one, two = (load_policy(tmp_path / name).controller for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_decoder_moves_networks_and_counts_codes_that_change(parents, tmp_path):
    result = tuned(parents(), tmp_path / "out", codebook="decoder", refine_rate=0.003)
    old, new = (load_policy(p).controller.quantizer for p in (parents(), tmp_path / "out"))
    np.testing.assert_array_equal(old.codec.codes, new.codec.codes)
    jax.tree.map(np.testing.assert_array_equal, old.prior, new.prior)
    assert not np.array_equal(old.codec.encoder.weights[0], new.codec.encoder.weights[0])
    assert not np.array_equal(old.codec.decoder.weights[0], new.codec.decoder.weights[0])
    codes = result["finetune"]["codes"]
    assert len(codes["recoded_offline"]) == 2
    assert max(codes["recoded_offline"] + codes["recoded_replay"]) > 0
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert sum("recoded_replay" in json.loads(line) for line in lines) == 2


def test_shares_that_change_are_those_of_brute_force():
    old, new = jnp.asarray([1, 2, 3, 4, 9]), np.asarray([1, 5, 3, 7, 0])
    assert adapting._changed(old, new, 4) == 0.5
    assert adapting._changed(old, new, 0) == 0.0


def test_codes_that_nobody_plays_retire(parents, tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    tuned(parents(), tmp_path / "out", **GROW | {"retire_after": 20})
    ((session, state),) = seen
    adapted = session.codebook
    # A code that a recorded action needs stays, whoever plays it; one that nobody needs goes.
    live = np.asarray(adapted._live(state))
    spared = int(np.asarray(state.codebook.recorded)[0])
    idle = np.full(len(live), int(state.steps) - 20)
    kept, _ = adapted._recoded(adapting._with(state, executed=idle))
    np.testing.assert_array_equal(adapted._live(kept), live)
    after, _ = adapted._recoded(adapting._with(state, executed=idle - 1))
    needed = np.isin(np.arange(len(live)), np.asarray(state.codebook.recorded)[: adapted.count])
    np.testing.assert_array_equal(adapted._live(after), live & needed)
    assert adapted._live(after)[spared]
    bias = np.asarray(after.prior.biases[-1])
    assert (bias[~(live & needed)] == operators.DISALLOWED).all()
    gone = int((live & ~needed).sum())
    assert gone > 0
    assert adapted._counted(after)["retired"] == adapted._counted(state)["retired"] + gone
    held = int(after.replay.length)
    assert (live & needed)[np.asarray(after.replay.rows.codes)[:held]].all()
    # Its row is free: the next code takes it.
    again = adapted._opened(after, jnp.zeros(4))
    free = int(np.asarray(adapted._live(after)).argmin())
    assert np.asarray(again.codebook.quantizer.codebook.live)[free]
    np.testing.assert_array_equal(again.codebook.quantizer.codebook.codes[free], np.zeros(4))


def coded(codes=CODES, rows=12):
    generator = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    seen, following = normal(rows, FEATURES), normal(rows, FEATURES)
    log_prior = jax.nn.log_softmax(2 * normal(2, rows, CODES))
    log_prior = jnp.pad(
        log_prior, ((0, 0), (0, 0), (0, codes - CODES)), constant_values=operators.DISALLOWED
    )
    taken = jnp.asarray(generator.integers(0, CODES, rows), jnp.int32)
    rewards, discounts = normal(rows), jnp.full(rows, 0.9)
    priors = log_prior[0], log_prior[1]
    return CodedTransitions(
        seen, taken, rewards, following, discounts, *priors, codes, codes > CODES
    )


def small_agent(name, flags):
    return AGENTS.load(name)(hidden=(8,), batch_size=12, steps=9, schedule="constant", **flags)


def axes_of(agent):
    def make(codes):
        log_prior = jnp.zeros((1, codes))
        seen, zero = jnp.zeros((1, FEATURES)), jnp.zeros(1)
        code = jnp.zeros(1, jnp.int32)
        example = CodedTransitions(seen, code, zero, seen, zero, log_prior, log_prior, codes)
        return agent.init(jax.random.key(0), example)

    return growth.code_axes(make)


@pytest.mark.parametrize(("name", "flags"), AGENTS_OF_ALL_KINDS)
def test_masked_rows_are_in_no_sum(name, flags):
    agent, more = small_agent(name, flags), 4
    axes = axes_of(agent)
    state = agent.init(jax.random.key(0), coded())
    wide = growth.widened(state, axes, more)
    live = jnp.arange(CODES + more) < CODES
    wide = growth.shares_changed(agent, wide, partial(growth.closed, live=live))
    update = jax.jit(agent.update)
    for step in range(3):
        key = jax.random.key(step)
        state, metrics = update(state, coded(), key)
        wide, of_wide = update(wide, coded(CODES + more), key)
        for measured, value in metrics.items():
            assert float(of_wide[measured]) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    narrow = growth.widened(state, axes, more)

    def same(one, other, axis):
        rows = np.arange(CODES)
        if axis is not None:
            one, other = np.take(one, rows, axis), np.take(other, rows, axis)
        # The same float32 sums in another order.
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)

    for one, other, axis in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), axes, strict=True):
        same(np.asarray(one), np.asarray(other), axis)
    data, of_wide = coded(), coded(CODES + more)
    ours = jax.vmap(agent.actor(state).logits)(data.observations, data.log_prior)
    theirs = jax.vmap(agent.actor(wide).logits)(data.observations, of_wide.log_prior)
    probabilities = np.asarray(jax.nn.softmax(theirs))
    np.testing.assert_allclose(probabilities[:, :CODES], jax.nn.softmax(ours), atol=1e-5)
    assert (probabilities[:, CODES:] == 0).all()


@pytest.mark.parametrize("large", [0.0, 50.0])
def test_sums_over_live_rows_are_those_of_float64(large):
    generator, alive = np.random.default_rng(2), np.asarray([0, 1, 3, 6])
    prior = np.full(8, float(operators.DISALLOWED))
    logits = generator.normal(size=4)
    prior[alive] = logits - np.log(np.exp(logits).sum())
    q = np.full(8, large) + generator.normal(size=8)
    own, mine = prior[alive], q[alive]
    floor = -1.5
    given = jnp.asarray(prior, jnp.float32), jnp.asarray(q, jnp.float32)
    floored = np.maximum(own, floor)
    floored -= np.log(np.exp(floored).sum())
    value = 0.7 * np.log(np.exp(floored + mine / 0.7).sum())
    found = operators.regularised_value(*given, alpha=0.7, floor=floor)
    assert float(found) == pytest.approx(value, rel=1e-5)
    tilted = np.maximum(own, floor) + mine / 0.7
    tilted -= np.log(np.exp(tilted).sum())
    policy = operators.reweighted_prior(*given, temperature=0.7, floor=floor)
    np.testing.assert_allclose(np.asarray(policy)[alive], tilted, atol=1e-4)
    gap = np.log(np.exp(mine - large).sum()) + large - mine[2]
    there = operators.existing(given[1], given[0])
    found = operators.conservative_gap(there, jnp.asarray(alive[2]))
    assert float(found) == pytest.approx(gap, rel=1e-4, abs=1e-4)
    slope = np.asarray(jax.grad(lambda q: operators.conservative_gap(q, alive[2]))(there))
    assert (np.delete(slope, alive) == 0).all()
    for share in (0.5, 0.9, 1.1):
        allowed = np.asarray(operators.Support(share=share).allowed(given[0]))
        expected = np.exp(own) >= min(share / len(alive), np.exp(own).max())
        np.testing.assert_array_equal(allowed[alive], expected)
        assert not np.delete(allowed, alive).any()
    assert np.flatnonzero(operators.Support().allowed(given[0])).tolist() == alive.tolist()


@pytest.mark.parametrize(("name", "flags"), AGENTS_OF_ALL_KINDS)
def test_a_new_code_begins_as_its_nearest(name, flags):
    agent, more = small_agent(name, flags), 3
    data, model = coded(CODES + more), VQVAE(codes=CODES + more, code_size=2, hidden=(8,), spare=3)
    live = jnp.arange(CODES + more) < CODES
    state = growth.widened(agent.init(jax.random.key(0), coded()), axes_of(agent), more)
    state, _ = agent.update(state, data, jax.random.key(5))
    state = growth.shares_changed(agent, state, partial(growth.closed, live=live))
    network = nn.MLP(jax.random.key(1), FEATURES, (8,), CODES)
    prior_axes = growth.code_axes(lambda codes: nn.MLP(jax.random.key(1), FEATURES, (8,), codes))
    prior = growth.closed(growth.widened(network, prior_axes, more), live)
    actions = jnp.zeros((12, 2))
    quantizer = model.init(jax.random.key(2), ActionBatch(data.observations, actions))
    latent = jnp.asarray([0.3, -0.2])
    codes = np.asarray(quantizer.codebook.codes, np.float64)
    source = int(np.square(codes[:CODES] - np.asarray(latent, np.float64)).sum(1).argmin())
    adam = BC(hidden=(8,)).optimiser().init
    moments = jax.tree.map(lambda leaf: leaf + 1, adam(prior))
    moment_axes = growth.code_axes(
        lambda codes: adam(nn.MLP(jax.random.key(1), FEATURES, (8,), codes))
    )
    after, wider, moved, grown = adapting._opened(
        (state, prior, moments, quantizer),
        latent,
        jnp.asarray(6, jnp.int32),
        agent=agent,
        axes=(axes_of(agent), prior_axes, moment_axes),
    )
    for was, now, axis in zip(*map(jax.tree.leaves, (moments, moved)), moment_axes, strict=True):
        if axis is None:
            np.testing.assert_array_equal(was, now)
        else:
            new, old = (np.take(np.asarray(x), at, axis) for x, at in ((now, 6), (was, source)))
            np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(grown.codebook.codes[6], latent)
    assert np.flatnonzero(grown.codebook.live).tolist() == [*range(CODES), 6]
    kept = [code for code in range(CODES) if code != source]

    def probabilities(network):
        signal = np.asarray(data.observations, np.float64)
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            signal = signal @ np.asarray(weight, np.float64) + np.asarray(bias, np.float64)
            signal = signal if layer == len(network.weights) - 1 else np.maximum(signal, 0)
        odds = np.exp(signal - signal.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def split(before, now):
        np.testing.assert_allclose(now[:, kept], before[:, kept], atol=1e-6)
        for code in (source, 6):
            np.testing.assert_allclose(now[:, code], before[:, source] / 2, atol=1e-6)
        assert (now[:, [5, 7]] == 0).all()

    split(probabilities(prior), probabilities(wider))
    for one, other in zip(agent.shares(state), agent.shares(after), strict=True):
        if not one.norm_scales:
            split(probabilities(one), probabilities(other))
    critics = [
        jax.tree.leaves(own, is_leaf=lambda part: isinstance(part, nn.Ensemble))
        for own in (state, after)
    ]
    pairs = [pair for pair in zip(*critics, strict=True) if isinstance(pair[0], nn.Ensemble)]
    assert len(pairs) >= 2  # online and target
    for one, other in pairs:
        before, now = (np.asarray(own(data.observations)) for own in (one, other))
        np.testing.assert_array_equal(now[..., :CODES], before[..., :CODES])
        np.testing.assert_array_equal(now[..., 6], before[..., source])


def test_new_codes_are_those_that_gain_most():
    generator = np.random.default_rng(3)
    near = generator.uniform(0.5, 1, 7)
    apart = generator.uniform(0, 1.2, (7, 7))
    limit, most = 0.6, 3
    expected, left = [], near.copy()
    for _ in range(most):
        gains = {}
        for row in range(7):
            if left[row] > limit and apart[row, row] < left[row]:
                gains[row] = sum(max(left[j] - apart[row, j], 0) for j in range(7))
        if not gains:
            break
        expected.append(max(gains, key=gains.get))
        left = np.minimum(left, apart[expected[-1]])
    assert growth.chosen(near, apart, limit=limit, most=most) == expected
    assert growth.chosen(near, apart, limit=2.0, most=most) == []
    assert growth.chosen(near, apart + 2, limit=limit, most=most) == []


class Before(Replayed):
    """The update of a frozen codebook, word for word as it was before codebooks could move."""

    def update(self, state, batch, key):
        draw_key, update_key = jax.random.split(key)
        kept = round(self.share * self.batch_size)
        drawn = state.replay.draw(draw_key, self.batch_size - kept)
        online = CodedTransitions(
            drawn.features,
            drawn.codes,
            drawn.rewards,
            drawn.next_features,
            drawn.discounts,
            jax.nn.log_softmax(state.prior(drawn.features)),
            jax.nn.log_softmax(state.prior(drawn.next_features)),
            batch.num_codes,
        )
        order = np.arange(self.batch_size).reshape(-1, self.members).T.ravel()
        mixed = jax.tree.map(
            lambda old, new: jnp.concatenate([old[:kept], new])[order], batch, online
        )
        agent, metrics = self.agent.update(state.agent, mixed, update_key)
        return replace(state, agent=agent, updates=state.updates + 1), metrics


@pytest.mark.parametrize(("name", "flags"), AGENTS_OF_ALL_KINDS)
def test_a_frozen_codebook_is_what_it_was(name, flags):
    agent, data = small_agent(name, flags), coded()
    zeros = jnp.zeros((), jnp.int32)
    rows = Experience(data.observations, data.codes, data.rewards, data.observations, data.rewards)
    results = []
    for cls in (Replayed, Before):
        state = State(
            agent.init(jax.random.key(0), data),
            nn.MLP(jax.random.key(1), FEATURES, (8,), CODES),
            Replay.empty(16, FEATURES).add(rows, 12),
            zeros,
            jnp.copy(zeros),
            jnp.copy(zeros),
        )
        assert len(jax.tree.leaves(state.replay)) == 6
        state = jax.tree.map(jnp.copy, state)
        trainer = engine.Trainer(cls.of(agent, 0.5), data, jax.random.key(2))
        results.append(trainer.advance(state, 0, 6).state)
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize(
    ("flags", "asked", "answer"),
    [
        ({"quantizer": "kmeans"}, ["--codebook", "grow"], "--quantizer vqvae"),
        ({"quantizer": "kmeans"}, ["--codebook", "decoder"], "use --codebook frozen"),
        ({}, ["--spare-codes", "3"], "only with --codebook grow"),
        ({}, ["--codebook", "grow", "--spare-codes", "0"], "at least 1"),
        ({}, ["--codebook", "decoder", "--refine-every", "0"], "learns nothing"),
        ({}, ["--codebook", "grow", "--refine-rate", "0"], "above 0"),
        ({"stream_rows": 100}, ["--codebook", "grow"], "streams its data"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(parents, tmp_path, capsys, flags, asked, answer):
    parent = parents() if not flags else tmp_path / "parent"
    if flags:
        said = {"dataset": str(Run(parents()).settings.data.dataset), "env": MOVED, "steps": 5}
        said |= {"prior.steps": 5, "quantizer_steps": 5, "quantizer.codes": 4, "eval_episodes": 1}
        run(settings_from(said | flags), parent)
    out = tmp_path / "out"
    assert main(["finetune", str(parent), "--out", str(out), *asked]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "saqrl: error" in line]
    assert len(errors) == 1
    assert answer in errors[0]
    assert not out.exists()


def test_growing_without_noise_is_told_to_open_nothing(tmp_path, capsys):
    for noise, told in (("0", True), ("0.1", False)):
        main(["finetune", str(tmp_path / "no run"), "--codebook", "grow", "--noise", noise])
        assert ("hardly a new code opens" in capsys.readouterr().err) == told


def test_a_training_keeps_no_rows_free(dataset, tmp_path):
    with pytest.raises(ValueError, match="--spare-codes"):
        run(small(dataset, **{"quantizer.spare": 2}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
