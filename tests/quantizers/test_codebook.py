"""Codebook functions against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from saqrl.quantizers import codebook as books

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


def test_only_unused_codes_are_revived_and_onto_vectors_of_the_batch():
    codes = jnp.asarray([[0.0, 0.0], [9.0, 9.0]])
    book = books.Codebook(codes, jnp.asarray([3.0, 0.001]), codes * jnp.asarray([[3.0], [0.001]]))
    vectors = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    revived = books.revive_unused(book, jax.random.key(0), vectors, minimum_count=0.01)
    np.testing.assert_array_equal(revived.codes[0], codes[0])
    assert any(np.array_equal(revived.codes[1], vector) for vector in vectors)
    assert revived.counts[1] == 1


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(any))
def test_perplexity_lies_between_one_and_the_codes_used(usage):
    value = float(books.perplexity(jnp.asarray(usage, jnp.float32)))
    assert 1 - 1e-4 <= value <= np.count_nonzero(usage) + 1e-3


def test_perplexity_of_even_use_is_the_number_of_codes():
    np.testing.assert_allclose(books.perplexity(jnp.full(7, 3.0)), 7, rtol=1e-5)
