"""Codebooks as pure functions: nearest code, first codes, moving averages, revival."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Initial count of a new or revived code: small, so that the first encodings assigned to it move it.
# If the minimum count to be kept is higher than this, hardly any code is kept: with up to
# revive_below x batch codes (76 for a batch of 256) almost every code is a new encoding at every
# step until revive_until, and the moving averages begin after that. The count of a uniform use was
# tried instead (docs/concepts/quantizers.md): it overfits the noise of few demonstrations.
FRESH_COUNT = 1.0
# Decay of the moving average of the codes' use, which is only reported.
USAGE_DECAY = 0.99


class Codebook(eqx.Module):
    """Code vectors with the moving averages that move them.

    `counts` is the average number of vectors that a batch assigns to each code, `sums` their
    average sum; a code is sums / counts. Source: van den Oord et al. 2017 (arXiv 1711.00937),
    appendix A.1.
    """

    codes: Float[Array, "codes size"]
    counts: Float[Array, " codes"]
    sums: Float[Array, "codes size"]
    live: Bool[Array, " codes"] | None = None
    """Rows that are codes, if others are spare; None: all are codes."""


def bounded(vectors: Float[Array, "*n size"]) -> Float[Array, "*n size"]:
    """Scale vectors with a root mean square above 1 to 1; leave the others unchanged.

    Codes that follow their encodings do not fix the scale of the encodings: if the decoder profits
    from encodings that are farther apart, both diverge.
    """
    mean_square = jnp.square(vectors).mean(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(mean_square, 1))


def nearest_code(
    vector: Float[Array, " size"],
    codes: Float[Array, "codes size"],
    live: Bool[Array, " codes"] | None = None,
) -> Int[Array, ""]:
    """argmin_j ||vector - codes[j]||^2 over the live codes, the lowest index on ties."""
    # ||v||^2 is the same for every code; leaving it out keeps the batch a matrix product.
    distances = jnp.square(codes).sum(-1) - 2 * codes @ vector
    if live is not None:
        distances = jnp.where(live, distances, jnp.inf)
    return jnp.argmin(distances).astype(jnp.int32)


def nearest_codes(
    vectors: Float[Array, "n size"],
    codes: Float[Array, "codes size"],
    live: Bool[Array, " codes"] | None = None,
) -> Int[Array, " n"]:
    """`nearest_code` of each vector."""
    return jax.vmap(nearest_code, (0, None, None))(vectors, codes, live)


def choose_first_codes(
    key: Key[Array, ""], vectors: Float[Array, "n size"], *, count: int, iterations: int = 10
) -> Float[Array, "count size"]:
    """Lloyd's k-means from distinct random rows of `vectors`; an empty cluster keeps its centre.

    With fewer rows than codes the rows are repeated with a small jitter.
    """
    rows_key, jitter_key = jax.random.split(key)
    rows = jax.random.permutation(rows_key, len(vectors))[jnp.arange(count) % len(vectors)]
    jitter = 1e-3 * vectors.std() * jax.random.normal(jitter_key, (count, vectors.shape[1]))

    def improve(centres: Float[Array, "count size"], _: None) -> tuple[Array, None]:
        member = jax.nn.one_hot(nearest_codes(vectors, centres), count)
        sizes = member.sum(0)
        means = member.T @ vectors / jnp.maximum(sizes, 1)[:, None]
        return jnp.where(sizes[:, None] > 0, means, centres), None

    centres, _ = jax.lax.scan(improve, vectors[rows] + jitter, length=iterations)
    return centres


def start_codebook(
    codes: Float[Array, "codes size"], *, live: Bool[Array, " codes"] | None = None
) -> Codebook:
    """A codebook whose moving averages give `codes`, each as if used once per batch."""
    return Codebook(codes, jnp.ones(len(codes)), codes, live)


def follow_assignments(
    codebook: Codebook,
    vectors: Float[Array, "n size"],
    assigned: Int[Array, " n"],
    *,
    decay: float,
) -> Codebook:
    """Move each code towards the mean of the vectors assigned to it."""
    member = jax.nn.one_hot(assigned, len(codebook.codes))
    counts = decay * codebook.counts + (1 - decay) * member.sum(0)
    sums = decay * codebook.sums + (1 - decay) * (member.T @ vectors)
    codes = sums / jnp.maximum(counts, 1e-6)[:, None]
    return replace(codebook, codes=codes, counts=counts, sums=sums)


def revive_unused(
    codebook: Codebook,
    key: Key[Array, ""],
    vectors: Float[Array, "n size"],
    *,
    minimum_count: float | Float[Array, ""],
) -> Codebook:
    """Move codes used less than `minimum_count` per batch onto random vectors of this batch."""
    rows = jax.random.randint(key, (len(codebook.codes),), 0, len(vectors))
    unused = codebook.counts < minimum_count
    codes = jnp.where(unused[:, None], vectors[rows], codebook.codes)
    counts = jnp.where(unused, FRESH_COUNT, codebook.counts)
    sums = jnp.where(unused[:, None], FRESH_COUNT * codes, codebook.sums)
    return replace(codebook, codes=codes, counts=counts, sums=sums)


def follow_usage(
    usage: Float[Array, " codes"], assigned: Int[Array, " n"], *, decay: float = USAGE_DECAY
) -> Float[Array, " codes"]:
    """Moving average of how often a batch uses each code."""
    return decay * usage + (1 - decay) * jnp.bincount(assigned, length=len(usage))


def usage_metrics(usage: Float[Array, " codes"]) -> dict[str, Float[Array, ""]]:
    """Perplexity, and the number of codes with more than 1 in 10,000 uses."""
    used = usage > 1e-4 * jnp.maximum(usage.sum(), 1e-12)
    return {"perplexity": perplexity(usage), "codes_used": used.sum().astype(jnp.float32)}


def perplexity(usage: Float[Array, " codes"]) -> Float[Array, ""]:
    """Exp of the usage's entropy: the effective number of codes, from 1 to all."""
    share = usage / jnp.maximum(usage.sum(), 1)
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))
