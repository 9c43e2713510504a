"""What the VQ-VAE computes, and what it learns."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.quantizers import ActionBatch
from saqrl.quantizers import codebook as books
from saqrl.quantizers.vqvae import VQVAE
from saqrl.training import engine
from tests.golden import network

SMALL = VQVAE(codes=8, code_size=4, hidden=(32,), batch_size=64, steps=1)
BY_GRADIENT = dataclasses.replace(
    SMALL,
    codebook="gradient",
    first_codes="random",
    encodings="free",
    revive_below=0.0,
    commitment=1.0,
)


def batch(rows: int = 64, features: int = 3, act: int = 2) -> ActionBatch:
    generator = np.random.default_rng(0)
    return ActionBatch(
        jnp.asarray(generator.normal(size=(rows, features)), jnp.float32),
        jnp.asarray(generator.uniform(-1, 1, (rows, act)), jnp.float32),
    )


@pytest.mark.parametrize("encodings", ["free", "bounded"])
def test_losses_are_those_of_a_plain_loop(encodings):
    data = batch()
    quantizer = dataclasses.replace(BY_GRADIENT, encodings=encodings, state_scale=0.5)
    state = jax.jit(quantizer.init)(jax.random.key(0), data)
    # Weights so large that some encodings reach the bound.
    weights = tuple(2 * weight for weight in state.networks.model.encoder.weights)
    state = eqx.tree_at(lambda s: s.networks.model.encoder.weights, state, weights)
    model = state.networks.model
    _, metrics = jax.jit(quantizer.update)(state, data, jax.random.key(1))
    codes = np.asarray(model.codes, np.float64)
    reconstruction = commitment = 0.0
    long = []
    for observation, action in zip(data.observations, data.actions, strict=True):
        seen = 0.5 * np.asarray(observation)
        encoding = network(model.encoder, np.concatenate([seen, action]))
        size = np.sqrt(np.square(encoding).mean())
        long.append(size > 1)
        if encodings == "bounded":
            encoding /= max(1, size)
        code = codes[np.square(codes - encoding).sum(-1).argmin()]
        decoded = network(model.decoder, np.concatenate([seen, code]))
        reconstruction += np.square(decoded - action).sum() / len(data.actions)
        commitment += np.square(encoding - code).mean() / len(data.actions)
    assert {True, False} == set(long)
    np.testing.assert_allclose(metrics["reconstruction"], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(metrics["commitment"], commitment, rtol=1e-4)


@pytest.mark.parametrize("kind", ["average", "gradient"])
def test_the_straight_through_gradient_is_what_the_formula_says(kind):
    """One example, one hidden-layer-free network: the gradients can be written down."""
    quantizer = dataclasses.replace(
        BY_GRADIENT, codebook=kind, hidden=(), codes=2, code_size=1, learning_rate=1.0
    )
    data = ActionBatch(jnp.asarray([[0.5]]), jnp.asarray([[0.8]]))
    state = jax.jit(quantizer.init)(jax.random.key(3), data)
    model = state.networks.model
    book = state.codebook.codes if model.codes is None else model.codes

    # Adam divides the first gradient by its own size, so look at its first moment instead.
    after, _ = jax.jit(quantizer.update)(state, data, jax.random.key(1))
    moment = after.networks.moments[0].mu
    joined = np.array([0.5, 0.8])
    encoding = float(network(model.encoder, joined)[0])
    code = np.asarray(book)[:, 0][np.square(np.asarray(book)[:, 0] - encoding).argmin()]
    weight = np.asarray(model.decoder.weights[0])[:, 0]
    decoded = float(network(model.decoder, np.array([0.5, code]))[0])
    through = 2 * (decoded - 0.8) * weight[1]
    committed = quantizer.commitment * 2 * (encoding - code)
    np.testing.assert_allclose(
        moment.encoder.weights[0][:, 0], 0.1 * (through + committed) * joined, rtol=1e-4
    )
    if kind == "gradient":
        chosen = int(np.square(np.asarray(book)[:, 0] - encoding).argmin())
        expected = np.zeros(2)
        expected[chosen] = 0.1 * 2 * (code - encoding)
        np.testing.assert_allclose(moment.codes[:, 0], expected, rtol=1e-4, atol=1e-7)
    else:
        assert moment.codes is None


def test_without_state_conditioning_the_state_changes_nothing():
    quantizer = dataclasses.replace(SMALL, state_scale=0)
    data = batch()
    codec = quantizer.codec(quantizer.init(jax.random.key(0), data))
    other = data.observations[::-1]
    for row in range(5):
        action = data.actions[row]
        code = codec.encode(data.observations[row], action)
        assert code == codec.encode(other[row], action)
        np.testing.assert_array_equal(
            codec.decode(data.observations[row], code), codec.decode(other[row], code)
        )


def two_sided(rows: int = 2000) -> ActionBatch:
    """Actions are +f(s) or -f(s): two modes whose mean is never taken."""
    generator = np.random.default_rng(1)
    observations = generator.uniform(-1, 1, (rows, 2))
    sides = generator.choice([-1.0, 1.0], (rows, 1))
    actions = sides * (0.5 + 0.4 * np.sin(3 * observations))
    return ActionBatch(jnp.asarray(observations, jnp.float32), jnp.asarray(actions, jnp.float32))


def test_few_codes_suffice_where_the_state_tells_the_rest():
    data = two_sided()
    errors = {}
    for conditioned in (1, 0):
        quantizer = VQVAE(codes=4, hidden=(64,), steps=1500, code_size=8, state_scale=conditioned)
        (interval,) = engine.intervals(quantizer, data, jax.random.key(0), pauses=[1500])
        codec = quantizer.codec(interval.state)
        codes = jax.vmap(codec.encode)(data.observations, data.actions)
        decoded = jax.vmap(codec.decode)(data.observations, codes)
        errors[conditioned] = float(jnp.square(decoded - data.actions).sum(-1).mean())
    assert errors[1] < 0.05  # the variance of the actions is 0.66
    assert errors[0] > 5 * errors[1]


@pytest.mark.parametrize(("count", "all_new"), [(16, True), (64, True), (128, False)])
def test_few_codes_are_drawn_anew_at_each_step_and_many_only_where_unused(count, all_new):
    """Until revive_until; then codes move by their averages alone."""
    rows = two_sided(512)
    first, data = jax.tree.map(lambda x: x[:256], rows), jax.tree.map(lambda x: x[256:], rows)
    quantizer = VQVAE(codes=count, hidden=(8,), steps=10, code_size=4, revive_until=0.5)
    state = jax.jit(quantizer.init)(jax.random.key(0), first)
    update, encode = jax.jit(quantizer.update), jax.jit(quantizer._encode)
    for step in range(6):
        encodings = encode(state.networks.model.encoder, data)
        state, _ = update(state, data, jax.random.key(step))
        distances = jnp.square(state.codebook.codes[:, None] - encodings).sum(-1)
        drawn = float((distances.min(1) < 1e-10).mean())
        if step < 5:
            assert drawn > 0.8 if all_new else drawn < 0.2
        else:
            assert drawn < 0.2


def test_revival_and_kmeans_keep_more_codes_alive_than_the_paper_preset():
    data = two_sided()
    used = {}
    for name, quantizer in {
        "ours": VQVAE(codes=32, hidden=(64,), steps=400, code_size=8),
        "paper": dataclasses.replace(BY_GRADIENT, codes=32, hidden=(64,), steps=400),
    }.items():
        (interval,) = engine.intervals(quantizer, data, jax.random.key(0), pauses=[400])
        codec = quantizer.codec(interval.state)
        codes = jax.vmap(codec.encode)(data.observations, data.actions)
        used[name] = float(books.perplexity(jnp.bincount(codes, length=32)))
    assert used["ours"] > 2 * used["paper"]


@pytest.mark.slow
def test_bounded_encodings_do_not_run_away(real_data):
    """With their scale left free, 32 codes of this file end at a twentieth of the accuracy."""
    from saqrl.datasets import load_dataset
    from saqrl.studies.codebooks.material import gather
    from saqrl.training.codebook_health import reconstruction_error

    material = gather(load_dataset(str(real_data / "d4rl/hopper-expert.hdf5")), seed=0)
    rows, found = material.training.action_batch(), {}
    for encodings in ("bounded", "free"):
        quantizer = VQVAE(codes=32, steps=4000, encodings=encodings)
        *_, last = engine.intervals(quantizer, rows, jax.random.key(0), pauses=[4000])
        error = reconstruction_error(quantizer.codec(last.state), material.shown)
        found[encodings] = error, float(last.metrics["commitment"])
    assert found["bounded"][0] < 0.2 * found["free"][0]
    assert found["bounded"][1] < 1 < 100 < found["free"][1]
