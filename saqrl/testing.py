"""Conformance checks for agents, quantizers and baselines, to run on your own.

    import pytest, saqrl.testing

    @pytest.mark.parametrize("check", saqrl.testing.CHECKS, ids=lambda check: check.__name__)
    def test_mine(check):
        check("agent", "mine")

A failing check raises AssertionError. The checks take seconds and need only saqrl.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saqrl.agents import CodedTransitions
from saqrl.arrays import named_leaves, read_arrays, rebuild_tree, write_arrays
from saqrl.baselines import ContinuousTransitions
from saqrl.quantizers import ActionBatch
from saqrl.registry import KINDS
from saqrl.run import fit
from saqrl.training import engine

ROWS, FEATURES, ACT, CODES = 96, 4, 3, 8
STEPS = 12
# Not a valid code or action; it fills padded rows.
WORTHLESS = 1000


@cache
def table(kind: str) -> Any:
    """The same small data set, in the form that each kind of algorithm reads."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    observations, following = normal(ROWS, FEATURES), normal(ROWS, FEATURES)
    actions = jnp.tanh(normal(ROWS, ACT))
    rewards, discounts = normal(ROWS), jnp.full(ROWS, 0.9)
    priors = jax.nn.log_softmax(normal(2, ROWS, CODES))
    codes = jnp.asarray(generator.integers(0, CODES, ROWS), jnp.int32)
    if kind == "quantizer":
        return ActionBatch(observations, actions)
    if kind == "agent":
        own = priors[0], priors[1], CODES
        return CodedTransitions(
            observations, codes, rewards, following, discounts, *own, actions=actions
        )
    return ContinuousTransitions(
        observations, actions, rewards, following, discounts, jnp.roll(actions, -1, axis=0)
    )


def small(kind: str, name: str) -> Any:
    """The class of that name, with few steps and small networks."""
    cls = KINDS[kind].load(name)
    values = {"steps": STEPS, "batch_size": 16, "hidden": (16, 16), "codes": CODES}
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{field: value for field, value in values.items() if field in known})


def states_hold_arrays_and_training_changes_them(kind: str, name: str) -> None:
    algorithm, data = small(kind, name), table(kind)
    first = engine.begin(algorithm, jax.random.key(0), data)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first)), (
        "a leaf is not an array"
    )
    before = named_leaves(first)
    after, records = _trained(algorithm, data, jax.random.key(0))
    assert any(not np.array_equal(before[key], after[key]) for key in before), "nothing is learned"
    assert all(np.isfinite(value) for _, metrics in records for value in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in after.values())


def pausing_more_often_changes_nothing(kind: str, name: str) -> None:
    algorithm, data, key = small(kind, name), table(kind), jax.random.key(1)
    whole, _ = _trained(algorithm, data, key)
    parts, records = _trained(algorithm, data, key, pauses=(5, 4))
    assert [step for step, _ in records] == [4, 5, 8, 10, 12]
    _require_same(whole, parts)


def a_resumed_training_equals_an_uninterrupted_one(kind: str, name: str) -> None:
    algorithm, data, key = small(kind, name), table(kind), jax.random.key(2)
    whole, _ = _trained(algorithm, data, key)
    first = next(engine.intervals(algorithm, data, key, pauses=[5]))
    skeleton = jax.eval_shape(lambda: engine.begin(algorithm, key, data))
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder) / "state", named_leaves(first.state), {})
        state = rebuild_tree(skeleton, read_arrays(Path(folder) / "state")[0])
    rest, _ = _trained(algorithm, data, key, state=state, first_step=5)
    _require_same(whole, rest)


def seeds_differ(kind: str, name: str) -> None:
    algorithm, data = small(kind, name), table(kind)
    one, two = (
        named_leaves(engine.begin(algorithm, jax.random.key(seed), data)) for seed in (0, 1)
    )
    assert any(not np.array_equal(one[key], two[key]) for key in one), "the key is not used"


def padded_rows_are_never_read(kind: str, name: str) -> None:
    """Bit-exact on a CPU."""
    algorithm, whole, key = small(kind, name), table(kind), jax.random.key(4)
    short = jax.tree.map(lambda column: column[: ROWS - 10], whole)
    padded = jax.tree.map(lambda column: column.at[ROWS - 10 :].set(WORTHLESS), whole)
    alone, records = _trained(algorithm, short, key)
    leaves, of_padded = _trained(algorithm, engine.Rows(padded, ROWS - 10), key)
    _require_same(alone, leaves)
    assert records == of_padded


def intervals_and_data_of_any_length_share_one_program(kind: str, name: str) -> None:
    algorithm, data = small(kind, name), table(kind)
    _trained(algorithm, engine.Rows(data, ROWS), jax.random.key(0))
    before = engine._advance._cache_size()  # type: ignore[attr-defined]
    _trained(algorithm, engine.Rows(data, ROWS - 10), jax.random.key(3), pauses=(5, 3))
    assert engine._advance._cache_size() == before, "compiled again"  # type: ignore[attr-defined]


def a_description_rebuilds_the_same_hyperparameters(kind: str, name: str) -> None:
    algorithm, registry = small(kind, name), KINDS[kind]
    again = registry.rebuild(registry.describe(algorithm))
    assert again == algorithm
    assert hash(again) == hash(algorithm)


def a_whole_run_acts_and_exports(kind: str, name: str) -> None:
    """From arrays to a policy on disk and an exported file, given only the name."""
    from saqrl.deploy.export import export
    from saqrl.deploy.runtime import load

    generator = np.random.default_rng(5)
    observations = generator.normal(size=(ROWS, FEATURES)).astype(np.float32)
    actions = np.tanh(generator.normal(size=(ROWS, ACT))).astype(np.float32)
    owner = "quantizer" if kind == "quantizer" else "agent"
    known = {field.name for field in dataclasses.fields(KINDS[kind].load(name))}
    little = {"hidden": (16, 16), "batch_size": 16, "codes": CODES, "steps": STEPS}
    flags: dict[str, Any] = {f"{owner}.{n}": v for n, v in little.items() if n in known}
    flags |= {"steps": STEPS, "quantizer_steps": STEPS, "quantizer.codes": CODES, "act": "greedy"}
    flags |= {"prior.steps": STEPS, owner: name}
    with tempfile.TemporaryDirectory() as folder:
        run = fit(
            observations=observations,
            actions=actions,
            rewards=generator.normal(size=ROWS).astype(np.float32),
            episode_ends=np.arange(ROWS) % 8 == 7,
            continuous=kind == "baseline",
            out=Path(folder) / "run",
            quiet=True,
            **flags,
        )
        file = Path(folder) / "policy.npz"
        export(
            run.policy,
            file,
            file_format="npz",
            part="policy",
            act="greedy",
            observations=observations,
            held_out=observations,
            held_out_actions=actions[:, None],
            provenance={},
        )
        exported = load(file)
        for observation in observations[:5]:
            ours, theirs = run.policy.player().act(observation), exported.act(observation).action
            np.testing.assert_allclose(theirs, ours, atol=1e-4)
            exported.reset()


# All checks; each takes (kind, name).
CHECKS = (
    states_hold_arrays_and_training_changes_them,
    pausing_more_often_changes_nothing,
    a_resumed_training_equals_an_uninterrupted_one,
    seeds_differ,
    padded_rows_are_never_read,
    intervals_and_data_of_any_length_share_one_program,
    a_description_rebuilds_the_same_hyperparameters,
    a_whole_run_acts_and_exports,
)


def _trained(
    algorithm: Any, data: Any, key: jax.Array, *, pauses: Sequence[int] = (STEPS,), **start: Any
) -> tuple[dict[str, np.ndarray], list[tuple[int, dict[str, float]]]]:
    """(leaves of the final state, records)."""
    state, records = None, []
    for interval in engine.intervals(algorithm, data, key, pauses=pauses, **start):
        state = interval.state
        records.append((interval.step, interval.metrics))
    return named_leaves(state), records


def _require_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)
