"""Codebook functions against brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from saqrl.quantizers import codebook as books
from saqrl.quantizers.autoencoder import VectorQuantization

# Multiples of 1/4 below 8 square and add exactly in float32, so ties are ties on both sides.
exact = st.integers(-32, 32).map(lambda quarter: quarter / 4)


@given(arrays(np.float32, (6, 3), elements=exact), arrays(np.float32, (9, 3), elements=exact))
def test_nearest_code_is_brute_force_with_the_lowest_index_on_ties(codes, vectors):
    found = books.nearest_codes(jnp.asarray(vectors), jnp.asarray(codes))
    distances = np.square(vectors[:, None].astype(np.float64) - codes[None]).sum(-1)
    np.testing.assert_array_equal(found, distances.argmin(1))


@given(st.permutations(range(6)))
def test_permuting_the_codebook_permutes_the_codes(order):
    generator = np.random.default_rng(0)
    codes, vectors = generator.normal(size=(6, 3)), generator.normal(size=(40, 3))
    order = np.array(order)
    plain = np.asarray(books.nearest_codes(jnp.asarray(vectors), jnp.asarray(codes)))
    permuted = np.asarray(books.nearest_codes(jnp.asarray(vectors), jnp.asarray(codes[order])))
    np.testing.assert_array_equal(order[permuted], plain)


def test_first_codes_find_well_separated_clusters():
    generator = np.random.default_rng(1)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    points = np.repeat(centres, 50, axis=0) + generator.normal(0, 0.1, (150, 2))
    found = books.choose_first_codes(jax.random.key(1), jnp.asarray(points), count=12)
    nearest = np.linalg.norm(np.asarray(found)[:, None] - centres[None], axis=-1)
    assert nearest.min(0).max() < 0.5  # every cluster has a code
    assert nearest.min(1).max() < 0.5  # every code lies in a cluster


def test_a_cluster_of_one_row_lies_on_it():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)) * 9, jnp.float32)
    codes = np.asarray(books.choose_first_codes(jax.random.key(0), rows, count=7))
    np.testing.assert_allclose(codes[np.lexsort(codes.T)], rows[np.lexsort(rows.T)], rtol=1e-5)
    # Without a step of k-means they are the rows and a little noise.
    first = books.choose_first_codes(jax.random.key(0), rows, count=7, iterations=0)
    apart = np.abs(np.asarray(first)[:, None] - rows).max(-1).min(1)
    assert (apart > 0).all()
    assert apart.max() < 5e-3 * float(rows.std())


def test_first_codes_are_distinct_when_there_are_fewer_rows_than_codes():
    rows = jnp.asarray([[0.0, 1.0], [2.0, 3.0], [5.0, -1.0]])
    codes = books.choose_first_codes(jax.random.key(0), rows, count=8)
    assert np.isfinite(codes).all()
    assert codes.shape == (8, 2)


def test_moving_averages_are_those_of_a_plain_loop():
    generator = np.random.default_rng(2)
    codes = generator.normal(size=(4, 2))
    book = books.start_codebook(jnp.asarray(codes))
    counts, sums = np.ones(4), codes.copy()
    for _ in range(5):
        vectors = generator.normal(size=(10, 2))
        assigned = generator.integers(0, 3, 10)  # code 3 is never chosen
        book = books.follow_assignments(
            book, jnp.asarray(vectors), jnp.asarray(assigned), decay=0.9
        )
        for code in range(4):
            chosen = vectors[assigned == code]
            counts[code] = 0.9 * counts[code] + 0.1 * len(chosen)
            sums[code] = 0.9 * sums[code] + 0.1 * chosen.sum(0)
    np.testing.assert_allclose(book.counts, counts, rtol=1e-5)
    np.testing.assert_allclose(book.codes, sums / counts[:, None], rtol=1e-4)


def test_only_long_vectors_are_shortened():
    vectors = np.random.default_rng(0).normal(size=(5, 7)) * [[0.0], [0.1], [0.5], [3], [100]]
    size = np.sqrt(np.square(vectors).mean(-1, keepdims=True))
    assert (size > 1).ravel().tolist() == [False, False, False, True, True]
    expected = np.where(size > 1, vectors / np.maximum(size, 1), vectors)
    np.testing.assert_allclose(books.bounded(jnp.asarray(vectors)), expected, rtol=1e-5)
    np.testing.assert_allclose(books.bounded(jnp.asarray(vectors[3])), expected[3], rtol=1e-5)


def test_only_unused_codes_are_revived_and_onto_vectors_of_the_batch():
    codes = jnp.asarray([[0.0, 0.0], [9.0, 9.0]])
    book = books.Codebook(codes, jnp.asarray([3.0, 0.001]), codes * jnp.asarray([[3.0], [0.001]]))
    vectors = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    revived = books.revive_unused(book, jax.random.key(0), vectors, minimum_count=0.01)
    np.testing.assert_array_equal(revived.codes[0], codes[0])
    assert any(np.array_equal(revived.codes[1], vector) for vector in vectors)
    assert revived.counts[1] == 1
    np.testing.assert_array_equal(revived.counts[0], book.counts[0])
    np.testing.assert_array_equal(revived.sums, [codes[0] * 3, revived.codes[1]])
    # Used exactly as often as is asked for is used.
    kept = books.revive_unused(book, jax.random.key(0), vectors, minimum_count=book.counts[1])
    np.testing.assert_array_equal(kept.codes, book.codes)


@pytest.mark.parametrize(("step", "revives"), [(5, True), (6, False)])
def test_a_codebook_moves_by_its_averages_and_is_revived_until_its_time_is_over(step, revives):
    """Below 0.3 of an even use (7 of 5), in the first 0.6 of ten steps."""
    training = VectorQuantization(codes=5, batch_size=7, steps=10, decay=0.5)
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)), jnp.float32)
    assigned = jnp.asarray([0, 0, 0, 1, 1, 1, 2])
    # After the batch 0.9, 0.41 and 0.43 are left of the last three: the bar is 0.42.
    book = books.Codebook(jnp.ones((5, 2)), jnp.asarray([3, 3, 0.8, 0.82, 0.86]), jnp.ones((5, 2)))
    moved = training.move(book, jax.random.key(1), vectors, assigned, step=jnp.int32(step))
    plain = books.follow_assignments(book, vectors, assigned, decay=0.5)
    unused = np.array([False, False, False, revives, False])
    np.testing.assert_array_equal(moved.codes[~unused], plain.codes[~unused])
    np.testing.assert_array_equal(moved.counts[~unused], plain.counts[~unused])
    assert (moved.counts[unused] == books.FRESH_COUNT).all()
    never = dataclasses.replace(training, revive_below=0.0)
    kept = never.move(book, jax.random.key(1), vectors, assigned, step=jnp.int32(step))
    np.testing.assert_array_equal(kept.codes, plain.codes)


def test_codes_count_as_used_from_one_use_in_ten_thousand_on():
    found = books.usage_metrics(jnp.asarray([9_997.0, 2.0, 1.0, 0.5]))
    assert found["codes_used"] == 2
    assert found["codes_used"].dtype == jnp.float32
    assert books.usage_metrics(jnp.zeros(3))["codes_used"] == 0


def test_usage_is_a_moving_average_of_the_batchs_counts():
    usage = books.follow_usage(jnp.asarray([4.0, 0.0, 2.0]), jnp.asarray([0, 2, 2, 2]), decay=0.75)
    np.testing.assert_allclose(usage, [3 + 0.25, 0, 1.5 + 0.75])
    usual = books.follow_usage(jnp.asarray([100.0]), jnp.asarray([0]))
    np.testing.assert_allclose(usual, [99.01], rtol=1e-6)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(any))
def test_perplexity_lies_between_one_and_the_codes_used(usage):
    value = float(books.perplexity(jnp.asarray(usage, jnp.float32)))
    assert 1 - 1e-4 <= value <= np.count_nonzero(usage) + 1e-3


@given(st.lists(st.floats(1, 50), min_size=2, max_size=8))
def test_perplexity_is_the_exponential_of_the_entropy(usage):
    share = np.array(usage) / sum(usage)
    found = books.perplexity(jnp.asarray(usage, jnp.float32))
    np.testing.assert_allclose(found, np.exp(-(share * np.log(share)).sum()), rtol=1e-4)


def test_perplexity_of_even_use_is_the_number_of_codes():
    np.testing.assert_allclose(books.perplexity(jnp.full(7, 3.0)), 7, rtol=1e-5)
