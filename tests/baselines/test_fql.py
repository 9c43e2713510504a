"""FQL: one gradient step against float64 loops, and a problem with two modes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.fql import FQL, Flow
from saqrl.training import engine
from tests.baselines.test_updates import ACT, CRITICS, DISCOUNT, FEATURES, KEY, ROWS, q_values
from tests.baselines.test_updates import batch as batch
from tests.golden import assert_gradient, assert_moved, assert_same, doubles, linear, rows_of, step

TARGET_KEY, FLOW_KEY, POLICY_KEY = jax.random.split(KEY, 3)
FLOW_STEPS = 4
# Where the two modes of the data lie.
MODE = 0.7


def make(**changes) -> FQL:
    return FQL(**CRITICS, discount=DISCOUNT, **{"alpha": 3.0, "flow_steps": FLOW_STEPS} | changes)


def noise_of(key) -> np.ndarray:
    return np.asarray(jax.random.normal(key, (ROWS, ACT)), np.float64)


def flowed(leaves, observation, point, steps=FLOW_STEPS) -> np.ndarray:
    for i in range(steps):
        point = point + linear(leaves, observation, point, [i / steps]) / steps
    return np.clip(point, -1, 1)


@pytest.mark.parametrize(("target_q", "aggregate"), [("mean", np.mean), ("min", np.min)])
def test_critics_follow_the_target_critics_at_the_policys_action(batch, target_q, aggregate):
    before, after, metrics = step(make(target_q=target_q), batch, KEY)
    target, policy, noise = (
        doubles(before.target),
        doubles(before.policy.model),
        noise_of(TARGET_KEY),
    )

    def loop(leaves):
        total = 0.0
        for (o, a, r, o2, d, _), z in zip(rows_of(batch), noise, strict=True):
            action = np.clip(linear(policy, o2, z), -1, 1)
            y = r + d * aggregate(q_values(target, o2, action))
            total += sum((q - y) ** 2 for q in q_values(leaves, o, a))
        return total / ROWS

    np.testing.assert_allclose(
        metrics["bellman_error"], loop(doubles(before.critics.model)), rtol=1e-4
    )
    assert_gradient(after.critics, loop, before.critics.model)
    assert_moved(after.target, before.target, after.critics.model, rate=0.1)


def test_the_flow_follows_the_velocity_from_noise_to_the_action(batch):
    before, after, metrics = step(make(), batch, KEY)
    noise_key, time_key = jax.random.split(FLOW_KEY)
    noise, times = noise_of(noise_key), np.float64(jax.random.uniform(time_key, (ROWS,)))

    def loop(leaves):
        errors = []
        for (o, a, *_), x0, t in zip(rows_of(batch), noise, times, strict=True):
            velocity = linear(leaves, o, (1 - t) * x0 + t * a, [t])
            errors.append(np.square(velocity - (a - x0)).mean())
        return np.mean(errors)

    np.testing.assert_allclose(metrics["flow_error"], loop(doubles(before.flow.model)), rtol=1e-4)
    assert_gradient(after.flow, loop, before.flow.model)


@pytest.mark.parametrize("normalize_q", [False, True])
def test_the_policy_follows_q_and_the_flow_which_it_cannot_move(batch, normalize_q):
    before, after, metrics = step(make(normalize_q=normalize_q), batch, KEY)
    # Otherwise than in ReBRAC the critics are those from before this step.
    flow, critics = doubles(before.flow.model), doubles(before.critics.model)
    noise = noise_of(POLICY_KEY)

    def played(leaves):
        for (o, *_), z in zip(rows_of(batch), noise, strict=True):
            action = linear(leaves, o, z)
            q = np.mean(q_values(critics, o, np.clip(action, -1, 1)))
            yield np.square(action - flowed(flow, o, z)).mean(), q

    size = np.mean([abs(q) for _, q in played(doubles(before.policy.model))])

    def loop(leaves):
        return np.mean([3.0 * d - q / (size if normalize_q else 1.0) for d, q in played(leaves)])

    distances, values = zip(*played(doubles(before.policy.model)), strict=True)
    np.testing.assert_allclose(metrics["distillation_error"], np.mean(distances), rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_q"], np.mean(values), rtol=1e-4, atol=1e-5)
    assert_gradient(after.policy, loop, before.policy.model)


def test_each_loss_moves_its_own_network_alone(batch):
    """With other critics or another policy the flow takes the same step, and so on."""
    algorithm = make()
    before, after, _ = step(algorithm, batch, KEY)

    def moved(path):
        changed = eqx.tree_at(path, before, jax.tree.map(lambda leaf: leaf + 0.1, path(before)))
        return step(algorithm, batch, KEY, start=changed)[1]

    of_critics = moved(lambda state: state.critics.model)
    of_policy = moved(lambda state: state.policy.model)
    of_flow = moved(lambda state: state.flow.model)
    of_target = moved(lambda state: state.target)
    for other in (of_critics, of_policy, of_target):
        assert_same(other.flow, after.flow)
    assert_same(of_flow.critics, after.critics)
    assert_same(of_target.policy, after.policy)
    # What is there to be learned from the others is.
    assert not _same(of_target.critics.moments, after.critics.moments)
    assert not _same(of_policy.critics.moments, after.critics.moments)
    assert not _same(of_flow.policy.moments, after.policy.moments)
    assert not _same(of_critics.policy.moments, after.policy.moments)


def _same(one, other) -> bool:
    return all(map(np.array_equal, doubles(one), doubles(other)))


def test_euler_steps_of_a_linear_velocity_have_a_closed_form():
    """Of dx = r x dt: x (1 + r / n)^n after n steps of 1 / n, clipped to the bounds."""
    rate, steps = -0.8, 10
    flow = Flow(nn.MLP(KEY, FEATURES + ACT + 1, (), ACT))
    weight = jnp.zeros((FEATURES + ACT + 1, ACT))
    weight = weight.at[FEATURES : FEATURES + ACT].set(rate * jnp.eye(ACT))
    flow = eqx.tree_at(lambda f: f.network.weights, flow, (weight,))
    noise = jnp.asarray([[0.5, -1.0], [9.0, -9.0]])
    found = flow.actions(jnp.ones((2, FEATURES)), noise, steps=steps)
    expected = np.clip(np.asarray(noise) * (1 + rate / steps) ** steps, -1, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The time is the step's beginning: 0, 0.1 ... 0.9, whose mean is 0.45.
    clocked = eqx.tree_at(
        lambda f: f.network.weights, flow, (jnp.zeros_like(weight).at[-1].set(1),)
    )
    moved = clocked.actions(jnp.ones((1, FEATURES)), jnp.zeros((1, ACT)), steps=steps)
    np.testing.assert_allclose(moved, [[0.45, 0.45]], rtol=1e-5)


def test_q_of_zero_leaves_the_distillation(batch):
    algorithm = make(normalize_q=True)
    state = algorithm.init(KEY, batch)
    nothing = jax.tree.map(jnp.zeros_like, state.critics.model)

    def loss(policy):
        return algorithm.policy_loss(policy, state.flow.model, nothing, batch, POLICY_KEY)[0]

    gradient = jax.grad(loss)(state.policy.model)
    assert loss(state.policy.model) > 0
    assert all(np.isfinite(leaf).all() for leaf in doubles(gradient))


def test_the_policy_acts_within_the_bounds_by_drawn_noise_or_its_mode(batch):
    algorithm = make()
    policy = algorithm.actor(step(algorithm, batch, KEY)[0])
    noise = np.float64(jax.random.normal(KEY, (ACT,)))
    for observation in 3 * batch.observations:
        for greedy, z in ((True, np.zeros(ACT)), (False, noise)):
            found = policy.act(observation, KEY, greedy=greedy)
            expected = np.clip(linear(doubles(policy.network), np.float64(observation), z), -1, 1)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_critics_are_normalised_and_begin_as_their_own_target(batch):
    state = FQL().init(KEY, batch)
    assert_same(state.critics.model, state.target)
    first, second = state.critics.model.heads
    assert first.weights[0].shape == (FEATURES + ACT, 256)
    assert len(first.norm_scales) == 2
    assert (first.weights[0] != second.weights[0]).all()
    assert not state.flow.model.network.norm_scales
    assert not state.policy.model.network.norm_scales


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flow_steps": 0}, "agent.flow-steps is 0; it must be above 0"),
        ({"alpha": -1.0}, "agent.alpha is -1.0; it must be at least 0"),
        ({"alpha": float("nan")}, "agent.alpha is nan"),
    ],
)
def test_settings_that_train_nonsense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FQL(**changes)


@pytest.fixture(scope="module")
def two_modes() -> ContinuousTransitions:
    """One decision an episode: half of the actions near +MODE, which are paid, half near -MODE."""
    generator = np.random.default_rng(1)
    rows = 512
    side = np.where(np.arange(rows) % 2, 1.0, -1.0)
    actions = MODE * side[:, None] + 0.05 * generator.normal(size=(rows, 1))
    observations = jnp.asarray(generator.normal(size=(rows, 1)), jnp.float32)
    actions = jnp.asarray(actions, jnp.float32)
    rewards = jnp.asarray(side > 0, jnp.float32)
    return ContinuousTransitions(
        observations, actions, rewards, observations, jnp.zeros(rows), actions
    )


def learned(data, alpha):
    """(state, actions of the policy, of the flow) after a short training."""
    algorithm = FQL(steps=2000, hidden=(64, 64), learning_rate=1e-3, batch_size=128, alpha=alpha)
    (*_, last) = engine.intervals(algorithm, data, jax.random.key(0), pauses=[2000])
    keys = jax.random.split(jax.random.key(1), len(data.rewards))
    policy, flow = algorithm.actor(last.state), last.state.flow.model
    drawn = jax.vmap(lambda o, key: policy.act(o, key, greedy=False))(data.observations, keys)
    noise = jax.random.normal(jax.random.key(2), data.actions.shape)
    return drawn[:, 0], flow.actions(data.observations, noise, steps=10)[:, 0]


@pytest.mark.parametrize(("alpha", "paid"), [(100.0, 0.5), (0.1, 1.0)])
def test_the_flow_keeps_both_modes_and_a_trusting_policy_the_better_one(two_modes, alpha, paid):
    drawn, cloned = learned(two_modes, alpha)
    assert np.mean(drawn > 0) == pytest.approx(paid, abs=0.1)
    assert np.mean(cloned > 0) == pytest.approx(0.5, abs=0.1)
    # Of the paid side every action is worth the same, so a policy that trusts Q may lie anywhere
    # there; a tenth of the others may lie between the modes, where a continuous map has to pass.
    for actions in (cloned, drawn) if paid == 0.5 else (cloned,):
        assert np.mean(np.abs(np.abs(actions) - MODE) < 0.25) > 0.85
