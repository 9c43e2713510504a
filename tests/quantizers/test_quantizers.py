"""Each quantizer against a plain loop in float64, values and gradients, and what it promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.quantizers import QUANTIZERS, ActionBatch
from saqrl.quantizers.binary import find_binary
from saqrl.quantizers.bins import Bins
from saqrl.quantizers.candidates import Candidates, soft_minimum
from saqrl.quantizers.fsq import FSQ
from saqrl.quantizers.kmeans import KMeans, KMeansCodec
from saqrl.quantizers.residual import ResidualVQ
from saqrl.quantizers.vqvae import VQVAE, UnconditionedVQVAE
from saqrl.training import engine
from saqrl.training.codes import encode_all
from tests.golden import network

LITTLE = {"hidden": (), "batch_size": 8, "steps": 4}


def gripper_batch(rows: int = 64) -> ActionBatch:
    """A free dimension, a gripper, one that never moves."""
    draw = np.random.default_rng(0)
    columns = [draw.uniform(-1, 1, rows), draw.choice([-1.0, 1.0], rows), np.full(rows, 0.25)]
    return ActionBatch(
        jnp.asarray(draw.normal(size=(rows, 2)), jnp.float32),
        jnp.asarray(np.stack(columns, 1), jnp.float32),
    )


def one_step(quantizer, data):
    """(state, state after a step, metrics, codes, their actions), compiled as one program."""

    @jax.jit
    def run():
        state = quantizer.init(jax.random.key(0), data)
        after, metrics = quantizer.update(state, data, jax.random.key(1))
        codec = quantizer.codec(state)
        codes = jax.vmap(codec.encode)(data.observations, data.actions)
        return state, after, metrics, codes, jax.vmap(codec.decode)(data.observations, codes)

    return run()


def first_gradient(moments):
    """Adam's first moment after one step is a tenth of the gradient."""
    return jax.tree.map(lambda moment: np.asarray(moment) * 10, moments[0].mu)


@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_every_code_decodes_into_the_range_and_binary_dimensions_exactly(name):
    data = gripper_batch()
    quantizer = QUANTIZERS.load(name)(codes=12, **LITTLE)

    @jax.jit
    def run():
        state = quantizer.init(jax.random.key(0), data)
        codec = quantizer.codec(quantizer.update(state, data, jax.random.key(1))[0])
        every = jnp.arange(codec.num_codes)
        decoded = jax.vmap(jax.vmap(codec.decode, (None, 0)), (0, None))(data.observations, every)
        return decoded, jax.vmap(codec.encode)(data.observations, data.actions)

    decoded, codes = run()
    count = decoded.shape[1]
    assert 8 <= count <= 12
    assert (np.abs(decoded) <= 1).all()
    np.testing.assert_array_equal(decoded[..., 2], 0.25)
    assert set(np.unique(decoded[..., 1])) <= {-1.0, 1.0}
    assert codes.dtype == jnp.int32
    assert ((codes >= 0) & (codes < count)).all()


@pytest.mark.parametrize("name", list(QUANTIZERS))
def test_a_gripper_keeps_its_value_wherever_a_code_of_the_state_has_it(name):
    data = gripper_batch()
    # In metres: 0 and 0.04 where 0.4 is the bound.
    opened = jnp.where(data.actions[:, 1] > 0, 0.1, 0.0)
    data = ActionBatch(data.observations, data.actions.at[:, 1].set(opened))
    quantizer = QUANTIZERS.load(name)(codes=12, **LITTLE)

    @jax.jit
    def run():
        state = quantizer.init(jax.random.key(0), data)
        codec = quantizer.codec(quantizer.update(state, data, jax.random.key(1))[0])
        every = jnp.arange(codec.num_codes)
        decoded = jax.vmap(jax.vmap(codec.decode, (None, 0)), (0, None))(data.observations, every)
        codes = jax.vmap(codec.encode)(data.observations, data.actions)
        kept = jax.vmap(codec.decode)(data.observations, codes)
        untrained = jax.vmap(quantizer.codec(state).encode)(data.observations, data.actions)
        return state, decoded, kept, untrained

    state, decoded, kept, untrained = run()
    np.testing.assert_array_equal(encode_all(quantizer.codec(state), data), untrained)
    gripper = np.asarray(data.actions[:, 1])
    assert set(np.unique(decoded[..., 1])) <= set(gripper)
    possible = (decoded[..., 1] == gripper[:, None]).any(1)
    assert possible.mean() > 0.5
    np.testing.assert_array_equal(kept[possible, 1], gripper[possible])


def test_the_gripper_comes_before_the_distance_and_the_distance_decides_the_rest():
    centres = jnp.asarray([[0.9, 0.2], [-0.9, -1.0], [0.0, -0.9]])
    binary = find_binary(jnp.asarray([[0.0, 0.1], [0.3, 0.2], [0.9, 0.1]]))
    codec = KMeansCodec(binary, centres)
    nowhere = jnp.zeros(1)
    # The first centre is nearer to [0.9, -1] than the others, but there the gripper is open.
    assert codec.encode(nowhere, jnp.asarray([0.9, 0.1])) == 2
    assert codec.encode(nowhere, jnp.asarray([-0.8, 0.1])) == 1
    assert codec.encode(nowhere, jnp.asarray([-0.8, 0.2])) == 0
    np.testing.assert_allclose(codec.decode(nowhere, 1), [-0.9, 0.1], rtol=1e-6)
    # Here both are: the codec's own choice and the nearest decoded action have the other value.
    codec = KMeansCodec(binary, jnp.asarray([[0.9, 0.05], [-0.9, -0.05], [-0.7, -0.05]]))
    assert codec.nearest(nowhere, jnp.asarray([0.9, 0.1])) == 0
    assert codec.encode(nowhere, jnp.asarray([0.9, 0.1])) == 2


def test_the_unconditioned_vqvae_is_the_vqvae_without_the_state():
    assert QUANTIZERS.name_of(UnconditionedVQVAE()) == "vqvae-unconditioned"
    plain = dataclasses.asdict(VQVAE(state_scale=0))
    assert dataclasses.asdict(UnconditionedVQVAE()) == plain


def test_residual_loss_codes_and_gradient_are_those_of_a_plain_loop():
    data = gripper_batch(8)
    quantizer = ResidualVQ(codes=6, code_size=2, **LITTLE)
    state, after, metrics, codes, actions = one_step(quantizer, data)
    encoder, decoder = state.networks.model.encoder, state.networks.model.decoder
    coarse = np.asarray(state.coarse.codes, np.float64)
    fine = np.asarray(state.fine.codes, np.float64)
    loss = commitment = 0.0
    encoder_gradient = np.zeros(encoder.weights[0].shape)
    decoder_gradient = np.zeros(decoder.weights[0].shape)
    sizes, rights = [], []
    rows = zip(data.observations, data.actions, codes, actions, strict=True)
    for observation, action, code, kept in rows:
        joined = np.concatenate([observation, action])
        encoding = network(encoder, joined)
        sizes.append(max(1, np.sqrt(np.square(encoding).mean())))
        encoding /= sizes[-1]
        first = np.square(coarse - encoding).sum(-1).argmin()
        second = np.square(fine - (encoding - coarse[first])).sum(-1).argmin()
        chosen = coarse[first] + fine[second]
        seen = np.concatenate([observation, chosen])
        decoded = network(decoder, seen)
        loss += np.square(decoded - action).sum() / 8
        commitment += np.square(encoding - chosen).mean() / 8
        outer = 2 * (decoded - np.asarray(action, np.float64)) / 8
        decoder_gradient += np.outer(seen, outer)
        # Straight through: the decoder's gradient in its code goes to the encoding as it is.
        inner = np.asarray(decoder.weights[0], np.float64)[2:] @ outer
        inner += quantizer.commitment * (encoding - chosen) / 8  # two numbers a code: 2 / D is 1
        if sizes[-1] > 1:  # a shortened encoding moves only along the sphere
            inner = (inner - encoding * (encoding @ inner) / 2) / sizes[-1]
        encoder_gradient += np.outer(joined, inner)
        # The other two dimensions are narrowed to their values; a wrong one changes the code.
        if right := (decoded[1] > 0) == (action[1] > 0):
            assert code == first * len(fine) + second
            np.testing.assert_allclose(kept[0], np.clip(decoded[0], -1, 1), atol=1e-5)
        rights.append(right)
    assert {size > 1 for size in sizes} == {True, False}
    assert sum(rights) >= 3
    np.testing.assert_allclose(metrics["reconstruction"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["commitment"], commitment, rtol=1e-4)
    gradient = first_gradient(after.networks.moments)
    np.testing.assert_allclose(gradient.encoder.weights[0], encoder_gradient, atol=1e-5)
    np.testing.assert_allclose(gradient.decoder.weights[0], decoder_gradient, atol=1e-5)


def test_fsq_loss_codes_and_gradient_are_those_of_a_plain_loop():
    data = gripper_batch(8)
    quantizer = FSQ(codes=12, latents=2, **LITTLE)
    assert quantizer.levels == (4, 3)
    state, after, metrics, codes, actions = one_step(quantizer, data)
    encoder, decoder = state.networks.model.encoder, state.networks.model.decoder
    loss = 0.0
    encoder_gradient = np.zeros(encoder.weights[0].shape)
    places = [np.linspace(-1, 1, level) for level in quantizer.levels]
    rows = zip(data.observations, data.actions, codes, actions, strict=True)
    for observation, action, code, kept in rows:
        joined = np.concatenate([observation, action])
        bounded = np.tanh(network(encoder, joined))
        digits = [np.abs(p - b).argmin() for p, b in zip(places, bounded, strict=True)]
        rounded = np.array([p[d] for p, d in zip(places, digits, strict=True)])
        decoded = network(decoder, np.concatenate([observation, rounded]))
        loss += np.square(decoded - action).sum() / 8
        outer = 2 * (decoded - np.asarray(action, np.float64)) / 8
        inner = np.asarray(decoder.weights[0], np.float64)[2:] @ outer * (1 - bounded**2)
        encoder_gradient += np.outer(joined, inner)
        assert code == digits[0] * 3 + digits[1]
        np.testing.assert_allclose(kept[0], np.clip(decoded[0], -1, 1), atol=1e-5)
    np.testing.assert_allclose(metrics["reconstruction"], loss, rtol=1e-4)
    gradient = first_gradient(after.networks.moments)
    np.testing.assert_allclose(gradient.encoder.weights[0], encoder_gradient, atol=1e-5)


def test_fsq_rounds_fewer_latents_where_two_levels_each_are_too_many():
    assert FSQ().levels == (4, 4, 4)
    assert FSQ(codes=7).levels == (3, 2)
    assert FSQ(codes=4).levels == (2, 2)
    assert FSQ(codes=3).levels == (3,)
    assert FSQ(codes=9, latents=1).levels == (9,)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_candidates_of_a_temperature_that_is_not_above_zero_are_refused(temperature):
    with pytest.raises(ValueError, match=r"quantizer\.temperature is .*; it must be positive"):
        Candidates(temperature=temperature)


@pytest.mark.parametrize("latents", [0, -1])
def test_no_latents_are_refused(latents):
    with pytest.raises(ValueError, match=f"quantizer.latents is {latents}; it must be at least 1"):
        FSQ(latents=latents)


def test_candidates_loss_codes_and_gradient_are_those_of_a_plain_loop():
    data = gripper_batch(8)
    quantizer = Candidates(codes=4, temperature=0.5, **LITTLE)
    state, after, metrics, codes, actions = one_step(quantizer, data)
    model, nearest = state.network.model, 0.0
    gradient = np.zeros(model.weights[0].shape)
    rows = zip(data.observations, data.actions, codes, actions, strict=True)
    for observation, action, code, kept in rows:
        proposed = network(model, observation).reshape(4, 3)
        squared = np.square(proposed - action).sum(-1)
        nearest += squared.min() / 8
        weight = np.exp(-squared / 0.5)
        weight /= weight.sum()
        outer = (weight[:, None] * 2 * (proposed - np.asarray(action, np.float64))).reshape(-1) / 8
        gradient += np.outer(observation, outer)
        inside = np.clip(proposed, -1, 1)
        inside[:, 1], inside[:, 2] = np.where(inside[:, 1] > 0, 1, -1), 0.25
        assert code == np.square(inside - action).sum(-1).argmin()
        np.testing.assert_allclose(kept, inside[code], atol=1e-5)
    np.testing.assert_allclose(metrics["reconstruction"], nearest, rtol=1e-4)
    found = first_gradient(after.network.moments)
    np.testing.assert_allclose(found.weights[0], gradient, atol=1e-5)


def test_the_soft_minimum_is_below_the_minimum_and_goes_to_it():
    values = jnp.asarray([0.3, 0.1, 2.0])
    np.testing.assert_allclose(
        soft_minimum(values, 0.5), -0.5 * np.log(np.exp(-np.asarray(values) / 0.5).sum()), rtol=1e-5
    )
    assert soft_minimum(values, 0.5) < 0.1
    np.testing.assert_allclose(soft_minimum(values, 1e-3), 0.1, rtol=1e-5)


def test_kmeans_refinement_is_the_running_mean_of_what_each_centre_was_given():
    draw = np.random.default_rng(0)
    actions = jnp.asarray(draw.uniform(-1, 1, (40, 2)), jnp.float32)
    data = ActionBatch(jnp.zeros((40, 1)), actions)
    quantizer = KMeans(codes=5, batch_size=40)
    state, after, metrics, *_ = one_step(quantizer, data)
    centres = np.asarray(state.centres, np.float64)
    counts, error = np.asarray(state.counts, np.float64), 0.0
    assigned = [np.square(centres - action).sum(-1).argmin() for action in actions]
    expected = centres.copy()
    for code, action in zip(assigned, np.asarray(actions, np.float64), strict=True):
        error += np.square(centres[code] - action).sum() / 40
        counts[code] += 1
        expected[code] += (action - expected[code]) / counts[code]
    np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-4)
    np.testing.assert_allclose(after.centres, expected, atol=1e-5)


def test_bins_are_even_and_hold_both_ends():
    actions = jnp.asarray([[-0.8, 0.1], [0.4, 0.5], [0.0, 0.3]], jnp.float32)
    data = ActionBatch(jnp.zeros((3, 1)), actions)
    quantizer = Bins(codes=12, batch_size=3)
    assert quantizer.levels(2) == (4, 3)
    _, _, _, codes, decoded = one_step(quantizer, data)
    codec = quantizer.codec(quantizer.init(jax.random.key(0), data))
    places = np.asarray(jax.vmap(codec.decode, (None, 0))(data.observations[0], jnp.arange(12)))
    grid = [[x, y] for x in np.linspace(-0.8, 0.4, 4) for y in np.linspace(0.1, 0.5, 3)]
    np.testing.assert_allclose(places, grid, atol=1e-6)
    for action, code in zip(actions, codes, strict=True):
        assert code == np.square(places - np.asarray(action)).sum(-1).argmin()
    np.testing.assert_array_equal(decoded[:2], actions[:2])


def test_bins_say_the_number_where_it_explodes():
    data = ActionBatch(jnp.zeros((4, 1)), jnp.zeros((4, 28)))
    too_many = r"28 action dimensions already make 268,435,456 joint .*: choose a learned quantizer"
    with pytest.raises(ValueError, match=too_many):
        engine.begin(Bins(), jax.random.key(0), data)
    with pytest.raises(ValueError, match=r"raise codes to 128"):
        Bins(codes=64).levels(7)
    with pytest.raises(ValueError, match=r"raise codes to 4,096"):
        Bins(codes=64).levels(12)
    assert Bins(codes=64).levels(6) == (2,) * 6


@pytest.mark.parametrize("name", ["vqvae", "kmeans", "bins", "candidates"])
def test_one_dimensional_actions_that_never_change_are_exact(name):
    data = ActionBatch(jnp.ones((9, 1)), jnp.full((9, 1), 0.5))
    quantizer = QUANTIZERS.load(name)(codes=4, **LITTLE)

    @jax.jit
    def run():
        codec = quantizer.codec(quantizer.init(jax.random.key(0), data))
        codes = jax.vmap(codec.encode)(data.observations, data.actions)
        return jax.vmap(codec.decode)(data.observations, codes)

    np.testing.assert_array_equal(run(), data.actions)
