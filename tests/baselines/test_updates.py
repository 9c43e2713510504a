"""One gradient step of each baseline against float64 loops over linear models."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqrl import nn
from saqrl.baselines import ContinuousTransitions, brac, cql, iql, rebrac
from saqrl.baselines.bc import ContinuousBC, GaussianBC
from saqrl.baselines.gmm import GMM
from saqrl.baselines.policies import GaussianPolicy, TanhGaussianActor
from tests.golden import (
    assert_gradient,
    assert_moved,
    assert_same,
    doubles,
    linear,
    rows_of,
    shaken,
    step,
)

ROWS, FEATURES, ACT = 3, 2, 2
LINEAR = {"hidden": (), "layer_norm": False, "steps": 8, "batch_size": ROWS}
CRITICS = {**LINEAR, "critics": 2, "target_rate": 0.1}
DISCOUNT = 0.9
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def batch() -> ContinuousTransitions:
    generator = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    return ContinuousTransitions(
        observations=normal(ROWS, FEATURES),
        actions=jnp.tanh(normal(ROWS, ACT)),
        rewards=normal(ROWS),
        next_observations=normal(ROWS, FEATURES),
        discounts=jnp.asarray([DISCOUNT, 0.0, DISCOUNT]),
        next_actions=jnp.tanh(normal(ROWS, ACT)),
    )


def q_values(critics, observation, action) -> list[float]:
    """Of both heads; the leaves are weight and bias of each."""
    return [float(linear(critics[i : i + 2], observation, action)[0]) for i in (0, 2)]


def gaussian(leaves, observation) -> tuple[np.ndarray, np.ndarray]:
    mean, log_deviation = np.split(linear(leaves, observation), 2)
    return mean, np.clip(log_deviation, -5, 2)


def normal_density(value, mean, log_deviation) -> float:
    return float(
        sum(
            -0.5 * ((v - m) / math.exp(s)) ** 2 - s - 0.5 * math.log(2 * math.pi)
            for v, m, s in zip(value, mean, log_deviation, strict=True)
        )
    )


def squashed_density(value, mean, log_deviation, reach=1.0) -> float:
    """Log-density of reach tanh(value), value ~ N(mean, exp(log_deviation)^2)."""
    return normal_density(value, mean, log_deviation) - sum(
        math.log(reach * (1 - math.tanh(v) ** 2)) for v in value
    )


def behaviour_loop(batch, reach):
    """The mean negative log-likelihood of the data as a function of a policy's leaves."""

    def loop(leaves):
        return -np.mean(
            [
                squashed_density(np.arctanh(a / reach), *gaussian(leaves, o), reach)
                for o, a, *_ in rows_of(batch)
            ]
        )

    return loop


def test_bc_follows_the_squared_error(batch):
    before, after, metrics = step(ContinuousBC(**LINEAR, weight_decay=0), batch, KEY)

    def loop(leaves):
        return np.mean([np.square(linear(leaves, o) - a).sum() for o, a, *_ in rows_of(batch)])

    np.testing.assert_allclose(metrics["squared_error"], loop(doubles(before.model)), rtol=1e-5)
    assert_gradient(after, loop, before.model)


@pytest.mark.parametrize("reach", [1.0, 1.1])
def test_gaussian_bc_follows_the_likelihood(batch, reach):
    before, after, metrics = step(GaussianBC(**LINEAR, weight_decay=0, reach=reach), batch, KEY)
    loop = behaviour_loop(batch, reach)
    np.testing.assert_allclose(-metrics["log_likelihood"], loop(doubles(before.model)), rtol=1e-4)
    assert_gradient(after, loop, before.model)


def test_gmm_follows_the_likelihood_of_the_mixture(batch):
    before, after, metrics = step(GMM(**LINEAR, weight_decay=0, components=2), batch, KEY)

    def loop(leaves):
        total = 0.0
        for o, a, *_ in rows_of(batch):
            outputs = linear(leaves, o)
            weights = np.exp(outputs[:2]) / np.exp(outputs[:2]).sum()
            inside = 0.0
            for weight, part in zip(weights, outputs[2:].reshape(2, 2 * ACT), strict=True):
                deviation = np.log1p(np.exp(part[ACT:])) + 1e-4
                inside += weight * math.exp(
                    normal_density(a, np.tanh(part[:ACT]), np.log(deviation))
                )
            total -= math.log(inside) / ROWS
        return total

    np.testing.assert_allclose(-metrics["log_likelihood"], loop(doubles(before.model)), rtol=1e-4)
    assert_gradient(after, loop, before.model)


def test_gmm_plays_the_mean_of_a_component():
    """Greedy the most probable one, else each as often as its weight says."""
    algorithm = GMM(hidden=(), components=3)
    example = ContinuousTransitions(*(jnp.zeros((1, 2)),) * 2, *(jnp.zeros(1),) * 4)
    actor = algorithm.actor(algorithm.init(jax.random.key(0), example))
    observation = jnp.asarray([0.3, -1.0])
    logits, means, _ = actor.mixture(observation)
    best = actor.act(observation, KEY, greedy=True)
    np.testing.assert_array_equal(best, means[jnp.argmax(logits)])
    keys = jax.random.split(KEY, 4000)
    drawn = jax.vmap(lambda key: actor.act(observation, key, greedy=False))(keys)
    shares = [(drawn == mean).all(-1).mean() for mean in means]
    # Three standard deviations of a share of 4000 draws.
    np.testing.assert_allclose(shares, jax.nn.softmax(logits), atol=0.025)


def test_iql_follows_its_three_losses_and_mixes_none(batch):
    algorithm = iql.IQL(**CRITICS, expectile=0.8, beta=2.0, discount=DISCOUNT)
    before, after, _ = step(algorithm, batch, KEY)
    model, target = before.networks.model, doubles(before.target)
    frozen = doubles(model)  # four leaves of critics, two of V, two of the mean, log-deviation

    def loop(leaves):
        value_loss = bellman = regression = 0.0
        for o, a, r, o2, d, _ in rows_of(batch):
            q = min(q_values(target, o, a))
            advantage = q - linear(leaves[4:6], o)[0]
            value_loss += abs(0.8 - (advantage < 0)) * advantage**2
            y = r + d * linear(frozen[4:6], o2)[0]
            bellman += sum((head - y) ** 2 for head in q_values(leaves[:4], o, a))
            weight = min(math.exp(2.0 * (q - linear(frozen[4:6], o)[0])), 100.0)
            mean = np.tanh(linear(leaves[6:8], o))
            regression -= weight * normal_density(a, mean, leaves[8])
        return float(value_loss + bellman + regression) / ROWS

    total = algorithm.loss(model, before.target, batch)[0]
    np.testing.assert_allclose(total, loop(frozen), rtol=1e-4)
    assert_gradient(after.networks, loop, model)
    assert_moved(after.target, before.target, after.networks.model.critics, rate=0.1)


@given(st.floats(-50, 50, width=32))
def test_advantage_weights_are_exponential_and_clipped(advantage):
    weight = iql.advantage_weight(jnp.float32(advantage), beta=3.0)
    assert float(weight) == pytest.approx(min(math.exp(min(3 * advantage, 10)), 100), rel=1e-4)


def test_cql_follows_bellman_error_and_conservative_gap(batch):
    algorithm = cql.CQL(**CRITICS, alpha=2.0, samples=4, discount=DISCOUNT)
    before, after, metrics = step(algorithm, batch, KEY)
    critics, policy, target = before.critics.model, before.policy.model, doubles(before.target)
    target_key, proposal_key, policy_key = jax.random.split(KEY, 3)
    following = doubles(cql.sample(policy, batch.next_observations, target_key)[0])[0]
    proposed, densities = map(np.float64, algorithm.proposals(policy, batch, proposal_key))

    def critic_loop(leaves):
        total = 0.0
        for row, (o, a, r, o2, d, _) in enumerate(rows_of(batch)):
            y = r + d * min(q_values(target, o2, following[row]))
            data_q = q_values(leaves, o, a)
            sums = [0.0, 0.0]
            for action, log_density in zip(proposed[:, row], densities[:, row], strict=True):
                for head, q in enumerate(q_values(leaves, o, action)):
                    sums[head] += math.exp(q) / math.exp(log_density) / len(proposed)
            for head in (0, 1):
                total += (data_q[head] - y) ** 2 + 2.0 * (math.log(sums[head]) - data_q[head])
        return total / ROWS

    assert_gradient(after.critics, critic_loop, critics)
    assert_moved(after.target, before.target, after.critics.model, rate=0.1)
    noise = np.asarray(jax.random.normal(policy_key, (ROWS, ACT)), np.float64)
    frozen = doubles(critics)

    def density_and_q(leaves):
        for row, (o, *_) in enumerate(rows_of(batch)):
            mean, log_deviation = gaussian(leaves, o)
            value = mean + np.exp(log_deviation) * noise[row]
            density = squashed_density(value, mean, log_deviation)
            yield density, min(q_values(frozen, o, np.tanh(value)))

    temperature = math.exp(float(before.log_temperature.model))

    def policy_loop(leaves):
        return np.mean([temperature * density - q for density, q in density_and_q(leaves)])

    assert_gradient(after.policy, policy_loop, policy)
    density = np.mean([density for density, _ in density_and_q(doubles(policy))])
    np.testing.assert_allclose(metrics["entropy"], -density, rtol=1e-4)
    assert metrics["temperature"] == pytest.approx(temperature, rel=1e-5)
    moment = after.log_temperature.moments[0].mu
    # Entropy below -A (the target) has to raise the temperature: a negative gradient.
    np.testing.assert_allclose(moment / 0.1, -(density - ACT), rtol=1e-4)


@pytest.mark.parametrize(
    "algorithm",
    [iql.IQL(), cql.CQL(), brac.BRAC(), rebrac.ReBRAC()],
    ids=lambda a: type(a).__name__,
)
def test_critics_read_state_and_action_and_begin_as_their_own_target(batch, algorithm):
    state = algorithm.init(KEY, batch)
    ours = state.networks.model.critics if isinstance(algorithm, iql.IQL) else state.critics.model
    target = state.target.critics if isinstance(algorithm, rebrac.ReBRAC) else state.target
    assert_same(ours, target)
    first, second = ours.heads
    assert first.weights[0].shape == (FEATURES + ACT, 256)
    assert first.weights[-1].shape == (256, 1)
    assert len(first.norm_scales) == len(algorithm.hidden)
    assert (first.weights[0] != second.weights[0]).all()


def test_cql_proposals_carry_their_own_densities(batch):
    algorithm = cql.CQL(**CRITICS, samples=4)
    policy = algorithm.init(jax.random.key(1), batch).policy.model
    actions, densities = algorithm.proposals(policy, batch, KEY)
    assert actions.shape == (12, ROWS, ACT)
    np.testing.assert_allclose(densities[:4], -ACT * math.log(2), rtol=1e-6)
    for rows, observations in (
        (slice(4, 8), batch.observations),
        (slice(8, 12), batch.next_observations),
    ):
        for row in range(ROWS):
            mean, log_deviation = gaussian(doubles(policy), np.float64(observations[row]))
            for action, density in zip(actions[rows, row], densities[rows, row], strict=True):
                expected = squashed_density(np.arctanh(np.float64(action)), mean, log_deviation)
                assert float(density) == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("reach", [1.0, 1.1])
def test_brac_fits_the_behaviour_first_and_then_leaves_it(batch, reach):
    algorithm = brac.BRAC(**CRITICS, behaviour_share=0.25, reach=reach)  # two of eight steps
    start, first, _ = step(algorithm, batch, KEY)
    assert_same((start.critics, start.target), (first.critics, first.target))
    assert_same(first.policy.model, first.behaviour.model)  # the policy leaves from the behaviour
    assert_gradient(first.behaviour, behaviour_loop(batch, reach), start.behaviour.model)
    _, second, fitting = step(algorithm, batch, KEY, start=first)
    assert (
        second.behaviour.model.network.weights[0] != first.behaviour.model.network.weights[0]
    ).all()
    _, third, improving = step(algorithm, batch, KEY, start=second)
    assert_same(second.behaviour, third.behaviour)
    assert fitting.keys() == improving.keys()
    assert {name for name, value in fitting.items() if value} == {"log_likelihood"}
    assert {name for name, value in improving.items() if not value} >= {"log_likelihood"}


@pytest.mark.parametrize("reach", [1.0, 1.1])
def test_brac_follows_the_penalised_value(batch, reach):
    algorithm = brac.BRAC(**CRITICS, behaviour_share=0.2, alpha=0.7, samples=2, reach=reach)
    start = shaken(algorithm.init(jax.random.key(1), batch))
    start = eqx.tree_at(lambda state: state.step, start, jnp.int32(1))  # the behaviour is fitted
    before, after, metrics = step(algorithm, batch, KEY, start=start)
    behaviour, target = doubles(before.behaviour.model), doubles(before.target)
    target_key, policy_key = jax.random.split(KEY)

    def estimate(policy, critics, key, side):
        """Value and divergence of each row, averaged over the samples."""
        noise = np.asarray(jax.random.normal(key, (2, ROWS, ACT)), np.float64)
        for row, columns in enumerate(rows_of(batch)):
            observation = columns[side]
            ours, theirs = gaussian(policy, observation), gaussian(behaviour, observation)
            value = divergence = 0.0
            for draw in noise[:, row]:
                u = ours[0] + np.exp(ours[1]) * draw
                action = np.clip(reach * np.tanh(u), -1, 1)
                value += min(q_values(critics, observation, action)) / 2
                divergence += (squashed_density(u, *ours) - squashed_density(u, *theirs)) / 2
            yield value, divergence

    frozen = doubles(before.policy.model)
    following = list(estimate(frozen, target, target_key, 3))

    def critic_loop(leaves):
        total = 0.0
        for (o, a, r, _, d, _), (value, divergence) in zip(rows_of(batch), following, strict=True):
            y = r + d * (value - 0.7 * divergence)
            total += sum((q - y) ** 2 for q in q_values(leaves, o, a))
        return total / ROWS

    critics = doubles(before.critics.model)
    np.testing.assert_allclose(metrics["bellman_error"], critic_loop(critics), rtol=1e-3)
    assert_moved(after.target, before.target, after.critics.model, rate=0.1)
    assert_gradient(after.critics, critic_loop, before.critics.model)

    def policy_loop(leaves):
        pairs = estimate(leaves, critics, policy_key, 0)
        return np.mean([0.7 * divergence - value for value, divergence in pairs])

    assert_gradient(after.policy, policy_loop, before.policy.model)


@pytest.mark.parametrize("algorithm", [GaussianBC, brac.BRAC])
def test_a_reach_inside_the_bounds_is_refused(algorithm):
    with pytest.raises(ValueError, match=r"agent\.reach is 0\.9; it must be at least 1"):
        algorithm(reach=0.9)


def test_a_policy_that_reaches_beyond_the_bounds_acts_on_them(batch):
    policy = GaussianPolicy(nn.MLP(KEY, FEATURES, (), 2 * ACT))
    far = eqx.tree_at(lambda p: p.network, policy, lambda o: jnp.asarray([9.0, -9.0, 0.0, 0.0]))
    action = TanhGaussianActor(far, reach=1.1).act(batch.observations[0], KEY, greedy=True)
    np.testing.assert_array_equal(action, [1, -1])
    drawn = TanhGaussianActor(far, reach=1.1).act(batch.observations[0], KEY, greedy=False)
    assert np.abs(drawn).max() <= 1


def test_rebrac_follows_both_penalties_and_moves_the_policy_every_other_step(batch):
    algorithm = rebrac.ReBRAC(**CRITICS, actor_penalty=0.3, critic_penalty=0.4, noise_clip=0.1)
    before, after, metrics = step(algorithm, batch, KEY)
    critics, policy = before.critics.model, before.policy.model
    target_critics, target_policy = doubles(before.target.critics), doubles(before.target.policy)
    noise = np.clip(0.2 * np.asarray(jax.random.normal(KEY, (ROWS, ACT)), np.float64), -0.1, 0.1)

    def critic_loop(leaves):
        total = 0.0
        for row, (o, a, r, o2, d, a2) in enumerate(rows_of(batch)):
            action = np.clip(np.tanh(linear(target_policy, o2)) + noise[row], -1, 1)
            penalty = 0.4 * np.square(action - a2).sum()
            y = r + d * (min(q_values(target_critics, o2, action)) - penalty)
            total += sum((q - y) ** 2 for q in q_values(leaves, o, a))
        return float(total) / ROWS

    np.testing.assert_allclose(metrics["bellman_error"], critic_loop(doubles(critics)), rtol=1e-4)
    assert_gradient(after.critics, critic_loop, critics)
    # As in TD3 the policy meets the critics of this very step, and Q's size is no variable.
    updated = doubles(after.critics.model)

    def played(leaves):
        for o, a, *_ in rows_of(batch):
            action = np.tanh(linear(leaves, o))
            yield min(q_values(updated, o, action)), np.square(action - a).sum()

    size = np.mean([abs(q) for q, _ in played(doubles(policy))])

    def policy_loop(leaves):
        return np.mean([0.3 * distance - q / size for q, distance in played(leaves)])

    assert_gradient(after.policy, policy_loop, policy)
    online = after.critics.model, after.policy.model
    assert_moved(after.target, before.target, online, rate=0.1)
    _, second, _ = step(algorithm, batch, KEY, start=after)
    assert_same((second.policy, second.target), (after.policy, after.target))
    _, third, _ = step(algorithm, batch, KEY, start=second)
    assert_moved(third.target, second.target, (third.critics.model, third.policy.model), rate=0.1)


def test_rebrac_learns_where_q_is_zero(batch):
    algorithm = rebrac.ReBRAC(**CRITICS)
    state = algorithm.init(KEY, batch)
    nothing = jax.tree.map(jnp.zeros_like, state.critics.model)
    loss = algorithm.policy_loss(state.policy.model, nothing, batch)[0]
    gradient = jax.grad(lambda policy: algorithm.policy_loss(policy, nothing, batch)[0])(
        state.policy.model
    )
    assert loss > 0
    assert all(np.isfinite(leaf).all() for leaf in doubles(gradient))


def test_gaussian_bc_normalises_where_it_is_asked_to(batch):
    plain, normed = (
        GaussianBC(hidden=(4,), layer_norm=wanted).init(KEY, batch) for wanted in (False, True)
    )
    assert len(jax.tree.leaves(normed.model)) > len(jax.tree.leaves(plain.model))


def test_a_regression_acts_within_the_bounds(batch):
    algorithm = ContinuousBC(**LINEAR)
    state = shaken(algorithm.init(KEY, batch))
    for observation in 3 * batch.observations:
        expected = np.clip(linear(doubles(state.model), np.float64(observation)), -1, 1)
        found = algorithm.actor(state).act(observation, KEY, greedy=False)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reach", [1.0, 1.1])
def test_a_tanh_gaussian_acts_by_its_median_or_a_draw(batch, reach):
    algorithm = GaussianBC(**LINEAR, reach=reach)
    state = shaken(algorithm.init(KEY, batch))
    noise = np.float64(jax.random.normal(KEY, (ACT,)))
    for observation in batch.observations:
        mean, log_deviation = gaussian(doubles(state.model), np.float64(observation))
        for greedy, value in ((True, mean), (False, mean + np.exp(log_deviation) * noise)):
            found = algorithm.actor(state).act(observation, KEY, greedy=greedy)
            expected = np.clip(reach * np.tanh(value), -1, 1)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("own", "bounded"), [(-9.0, -5.0), (-0.5, -0.5), (7.0, 2.0)])
def test_iql_acts_by_its_mean_or_a_draw_around_it(batch, own, bounded):
    algorithm = iql.IQL(**CRITICS)
    policy = algorithm.actor(shaken(algorithm.init(KEY, batch)))
    policy = eqx.tree_at(lambda p: p.log_deviation, policy, jnp.full(ACT, own))
    noise = np.float64(jax.random.normal(KEY, (ACT,)))
    for observation in batch.observations:
        mean = np.tanh(linear(doubles(policy.network), np.float64(observation)))
        drawn = np.clip(mean + math.exp(bounded) * noise, -1, 1)
        for greedy, expected in ((True, mean), (False, drawn)):
            found = policy.act(observation, KEY, greedy=greedy)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (lambda: brac.BRAC(behaviour_share=0.0), r"behaviour-share is 0\.0; it must be between"),
        (lambda: brac.BRAC(behaviour_share=1.0), r"behaviour-share is 1\.0"),
        (lambda: brac.BRAC(behaviour_share=float("nan")), "behaviour-share is nan"),
        (lambda: GaussianBC(reach=float("nan")), "agent.reach is nan"),
    ],
)
def test_hyperparameters_that_leave_a_phase_or_the_bounds_empty_are_refused(algorithm, message):
    with pytest.raises(ValueError, match=message):
        algorithm()


def test_the_ends_of_what_is_allowed_are_allowed():
    assert GaussianBC(reach=1.0).reach == 1
    assert brac.BRAC(behaviour_share=0.999).behaviour_share == 0.999
