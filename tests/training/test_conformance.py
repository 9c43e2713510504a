"""What the engine relies on, for every algorithm in the registries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saqrl.agents import AGENTS, CodedTransitions
from saqrl.arrays import named_leaves, read_arrays, rebuild_tree, write_arrays
from saqrl.baselines import BASELINES, ContinuousTransitions
from saqrl.quantizers import QUANTIZERS, ActionBatch
from saqrl.training import engine

ROWS, FEATURES, ACT, CODES = 96, 4, 3, 8
STEPS = 12
# No code and no action.
WORTHLESS = 1000

ALGORITHMS = [
    *(pytest.param(QUANTIZERS, name, id=f"quantizer-{name}") for name in QUANTIZERS),
    *(pytest.param(AGENTS, name, id=f"agent-{name}") for name in AGENTS),
    *(pytest.param(BASELINES, name, id=f"baseline-{name}") for name in BASELINES),
]


@pytest.fixture(scope="module")
def tables():
    """The same small data set as each of the three kinds of algorithm reads it."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    observations, following = normal(ROWS, FEATURES), normal(ROWS, FEATURES)
    actions = jnp.tanh(normal(ROWS, ACT))
    rewards, discounts = normal(ROWS), jnp.full(ROWS, 0.9)
    priors = jax.nn.log_softmax(normal(2, ROWS, CODES))
    codes = jnp.asarray(generator.integers(0, CODES, ROWS), jnp.int32)
    return {
        "quantizer": ActionBatch(observations, actions),
        "agent": CodedTransitions(
            observations, codes, rewards, following, discounts, priors[0], priors[1], CODES
        ),
        "continuous agent": ContinuousTransitions(
            observations, actions, rewards, following, discounts, jnp.roll(actions, -1, axis=0)
        ),
    }


def small(registry, name):
    """The registered class with little networks."""
    algorithm = registry.load(name)(steps=STEPS, batch_size=16, hidden=(16, 16))
    if registry is QUANTIZERS:
        algorithm = dataclasses.replace(algorithm, codes=CODES)
    return algorithm


def train(algorithm, data, key, *, pauses=(STEPS,)):
    """(leaves of the final state, records)."""
    state, records = None, []
    for interval in engine.intervals(algorithm, data, key, pauses=pauses):
        state = interval.state
        records.append((interval.step, interval.metrics))
    return named_leaves(state), records


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)


@pytest.mark.parametrize(("registry", "name"), ALGORITHMS)
class TestEveryAlgorithm:
    def test_state_holds_arrays_only_and_training_changes_it(self, registry, name, tables):
        algorithm, data = small(registry, name), tables[registry.kind]
        first = engine.begin(algorithm, jax.random.key(0), data)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))
        before = named_leaves(first)
        after, records = train(algorithm, data, jax.random.key(0))
        assert any(not np.array_equal(before[key], after[key]) for key in before)
        assert all(np.isfinite(value) for _, metrics in records for value in metrics.values())
        assert all(np.isfinite(leaf).all() for leaf in after.values())

    def test_pausing_more_often_changes_nothing(self, registry, name, tables):
        algorithm, data = small(registry, name), tables[registry.kind]
        whole, _ = train(algorithm, data, jax.random.key(1))
        parts, records = train(algorithm, data, jax.random.key(1), pauses=(5, 4))
        assert [step for step, _ in records] == [4, 5, 8, 10, 12]
        assert_same(whole, parts)

    def test_going_on_from_disk_equals_not_stopping(self, registry, name, tables, tmp_path):
        algorithm, data = small(registry, name), tables[registry.kind]
        key = jax.random.key(2)
        whole, _ = train(algorithm, data, key)
        first = next(engine.intervals(algorithm, data, key, pauses=[5]))
        write_arrays(tmp_path / "state", named_leaves(first.state), {})
        skeleton = jax.eval_shape(lambda: engine.begin(algorithm, key, data))
        state = rebuild_tree(skeleton, read_arrays(tmp_path / "state")[0])
        for interval in engine.intervals(
            algorithm, data, key, pauses=[STEPS], state=state, first_step=5
        ):
            state = interval.state
        assert_same(whole, named_leaves(state))

    def test_seeds_differ(self, registry, name, tables):
        algorithm, data = small(registry, name), tables[registry.kind]
        one = named_leaves(engine.begin(algorithm, jax.random.key(0), data))
        two = named_leaves(engine.begin(algorithm, jax.random.key(1), data))
        assert any(not np.array_equal(one[key], two[key]) for key in one)

    def test_training_on_padded_rows_equals_training_on_the_same_rows_unpadded(
        self, registry, name, tables
    ):
        """To the last bit on a CPU; what stands in for missing rows is never read."""
        algorithm, whole, key = small(registry, name), tables[registry.kind], jax.random.key(4)
        short = jax.tree.map(lambda column: column[: ROWS - 10], whole)
        padded = jax.tree.map(lambda column: column.at[ROWS - 10 :].set(WORTHLESS), whole)
        alone, records = train(algorithm, short, key)
        leaves, of_padded = train(algorithm, engine.Rows(padded, ROWS - 10), key)
        assert_same(alone, leaves)
        assert records == of_padded

    def test_data_of_any_length_share_one_program_where_they_are_padded(
        self, registry, name, tables
    ):
        algorithm, data = small(registry, name), tables[registry.kind]
        train(algorithm, engine.Rows(data, ROWS), jax.random.key(0))
        before = engine._advance._cache_size()
        train(algorithm, engine.Rows(data, ROWS - 10), jax.random.key(1))
        assert engine._advance._cache_size() == before

    def test_intervals_of_any_length_share_one_compiled_program(self, registry, name, tables):
        algorithm, data = small(registry, name), tables[registry.kind]
        train(algorithm, data, jax.random.key(0))
        before = engine._advance._cache_size()
        train(algorithm, data, jax.random.key(3), pauses=(5, 3))
        assert engine._advance._cache_size() == before

    def test_a_description_rebuilds_the_same_hyperparameters(self, registry, name, tables):
        algorithm = small(registry, name)
        assert registry.rebuild(registry.describe(algorithm)) == algorithm
        assert hash(algorithm) == hash(registry.rebuild(registry.describe(algorithm)))
