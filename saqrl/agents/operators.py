"""Exact expectations over codes: every equation that the agents share, for one state.

Nothing here samples. The caller vmaps over the batch; only `of_code` takes one, for speed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

DISALLOWED = -1e9
"""A log-probability that no softmax notices and no subtraction turns into NaN (as -inf would)."""


def expectation(
    log_policy: Float[Array, " codes"], values: Float[Array, " codes"]
) -> Float[Array, ""]:
    """E_{k ~ pi} values[k], summed over all codes. `log_policy` is normalised."""
    return jnp.sum(jnp.exp(log_policy) * values)


def kl_divergence(
    log_policy: Float[Array, " codes"], log_prior: Float[Array, " codes"]
) -> Float[Array, ""]:
    """KL(pi || pi_b) = sum_k pi(k) (log pi(k) - log pi_b(k)), both normalised. At least 0."""
    return jnp.sum(jnp.exp(log_policy) * (log_policy - log_prior))


def entropy(log_policy: Float[Array, " codes"]) -> Float[Array, ""]:
    """-sum_k pi(k) log pi(k), in nats."""
    return -jnp.sum(jnp.exp(log_policy) * log_policy)


def conservative_gap(q: Float[Array, " codes"], code: Int[Array, ""]) -> Float[Array, ""]:
    """How far the soft maximum of Q over all codes lies above Q of the data's code.

    logsumexp(q) - q[code] > 0; its gradient in q is softmax(q) - onehot(code). Nothing is sampled.
    Source: Kumar et al. 2020 (arXiv 2006.04779), eq. 4.
    """
    return jax.nn.logsumexp(q) - q[code]


def of_code(
    values: Float[Array, "*batch codes"], codes: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """values[..., codes]: what the data's codes are worth."""
    return jnp.take_along_axis(values, codes[..., None], axis=-1)[..., 0]


def allowed_codes(log_prior: Float[Array, " codes"], *, threshold: float) -> Bool[Array, " codes"]:
    """Codes that the data supports: pi_b(k) >= min(threshold, max_j pi_b(j)).

    The minimum keeps at least one code; threshold 0 allows all. Source: SAQ (arXiv 2310.11731).
    """
    prior = jnp.exp(log_prior)
    return prior >= jnp.minimum(threshold, prior.max())


def mask_codes(
    values: Float[Array, " codes"], allowed: Bool[Array, " codes"]
) -> Float[Array, " codes"]:
    """`values` where allowed, far below everything else where not."""
    return jnp.where(allowed, values, DISALLOWED)


def reweighted_prior(
    log_prior: Float[Array, " codes"],
    q: Float[Array, " codes"],
    *,
    temperature: float,
    floor: float,
) -> Float[Array, " codes"]:
    """Log of pi(k) proportional to pi_b(k) exp(Q(k) / temperature), normalised exactly.

    log pi_b is clipped below at `floor` first. The state's value cancels in the normalisation.
    Source: the solution of the KL-constrained problem (Peng et al. 2019, arXiv 1910.00177, eq. 8;
    IQL's extraction, arXiv 2110.06169, eq. 7, without its regression).
    """
    return jax.nn.log_softmax(jnp.maximum(log_prior, floor) + q / temperature)
