"""Exact expectations over codes: every equation that the agents share, for one state.

Nothing here samples. The caller vmaps over the batch; only `of_code` takes a batch, for speed.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

DISALLOWED = -1e9
"""A log-probability that is 0 in every softmax; subtractions give no NaN (unlike with -inf).

In the behaviour prior it marks spare rows, which are not codes: agents do not sum over them
(`exists`).
"""


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
    """values[..., codes]: the values of the data's codes."""
    return jnp.take_along_axis(values, codes[..., None], axis=-1)[..., 0]


def exists(log_prior: Float[Array, "*batch codes"]) -> Bool[Array, "*batch codes"]:
    """Rows that are codes; the log_prior of the others is DISALLOWED."""
    return log_prior > DISALLOWED / 2


def existing(
    values: Float[Array, "*heads codes"], log_prior: Float[Array, " codes"]
) -> Float[Array, "*heads codes"]:
    """`values` of codes; for spare rows far below every other value."""
    return mask_codes(values, exists(log_prior))


def floored_prior(log_prior: Float[Array, " codes"], floor: float) -> Float[Array, " codes"]:
    """Log pi_b with lower bound `floor`, not normalised; spare rows stay DISALLOWED."""
    return existing(jnp.maximum(log_prior, floor), log_prior)


def allowed_codes(
    log_prior: Float[Array, " codes"], *, threshold: float | Float[Array, ""]
) -> Bool[Array, " codes"]:
    """Codes that the data supports: pi_b(k) >= min(threshold, max_j pi_b(j)).

    The minimum keeps at least one code; threshold 0 allows all. Source: SAQ (arXiv 2310.11731).
    """
    prior = jnp.exp(log_prior)
    return prior >= jnp.minimum(threshold, prior.max())


def nucleus(log_prior: Float[Array, " codes"], *, mass: float) -> Bool[Array, " codes"]:
    """The smallest set of most probable codes with total probability `mass`, ties included.

    A code is included if all more probable codes together have less than `mass`. Mass 1 allows all.
    Source: Holtzman et al. 2020 (arXiv 1904.09751), eq. 2, there for words.
    """
    prior = jnp.exp(log_prior)
    above = jnp.where(prior[None, :] > prior[:, None], prior[None, :], 0.0).sum(-1)
    return above < mass


@dataclass(frozen=True)
class Support:
    """Which codes of a state count as supported by the data."""

    threshold: float = 0.0
    """pi_b(k) is at least this; 0 allows all."""
    share: float = 0.0
    """pi_b(k) is at least this share of the uniform probability 1 / codes; 0 allows all."""
    mass: float = 1.0
    """And k is in the `nucleus` of this mass; 1 allows all."""

    @property
    def everything(self) -> bool:
        """Whether all codes are allowed."""
        return self.threshold == 0 and self.share == 0 and self.mass == 1

    def allowed(self, log_prior: Float[Array, " codes"]) -> Bool[Array, " codes"]:
        """The allowed codes: always at least the most probable one."""
        there, rows = exists(log_prior), log_prior.shape[-1]
        least: float | Float[Array, ""] = self.threshold
        if self.share:  # the last factor is exactly 1 without spare rows
            least = jnp.maximum(least, self.share / rows * (rows / there.sum()))
        allowed = there & allowed_codes(log_prior, threshold=least)
        return allowed & nucleus(log_prior, mass=self.mass) if self.mass < 1 else allowed

    def mask(
        self, values: Float[Array, " codes"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        """`values` of the allowed codes; for the others far below every other value."""
        return mask_codes(values, self.allowed(log_prior))


def mask_codes(
    values: Float[Array, "*heads codes"], allowed: Bool[Array, " codes"]
) -> Float[Array, "*heads codes"]:
    """`values` of allowed codes; for the others far below every other value."""
    return jnp.where(allowed, values, DISALLOWED)


def reweighted_prior(
    log_prior: Float[Array, " codes"],
    q: Float[Array, " codes"],
    *,
    temperature: float,
    floor: float,
) -> Float[Array, " codes"]:
    """Log of pi(k) proportional to pi_b(k) exp(Q(k) / temperature), normalised exactly.

    log pi_b gets the lower bound `floor` first. The state's value cancels in the normalisation.
    Source: the solution of the KL-constrained problem (Peng et al. 2019, arXiv 1910.00177, eq. 8;
    IQL's extraction, arXiv 2110.06169, eq. 7, without its regression).
    """
    return jax.nn.log_softmax(floored_prior(log_prior, floor) + q / temperature)


def regularised_value(
    log_prior: Float[Array, " codes"], q: Float[Array, " codes"], *, alpha: float, floor: float
) -> Float[Array, ""]:
    """Max over pi of E_pi Q - alpha KL(pi || pi_b) = alpha logsumexp(log pi_b + Q / alpha).

    log pi_b gets the lower bound and is normalised again; the maximum is at `reweighted_prior` with
    temperature alpha.
    Source: Wu et al. 2019 (arXiv 1911.11361), eq. 4, solved as in Haarnoja et al. 2017
    (arXiv 1702.08165), eq. 5 and 6, with pi_b in place of a uniform prior.
    """
    floored = jax.nn.log_softmax(floored_prior(log_prior, floor))
    return alpha * jax.nn.logsumexp(floored + q / alpha)


def bin_centres(low: float, high: float, bins: int) -> Float[Array, " bins"]:
    """Evenly spaced centres, the first at `low`, the last at `high`."""
    return jnp.linspace(low, high, bins)


def gaussian_histogram(
    values: Float[Array, "*batch"], *, low: float, high: float, bins: int, spread: float
) -> Float[Array, "*batch bins"]:
    """The probability of each bin under a Gaussian around each value.

    Its standard deviation is `spread` bin widths. Values below the first or above the last centre
    are clipped; the probabilities are normalised over the bins. Source: HL-Gauss (Farebrother et
    al. 2024, arXiv 2403.03950, section 3.1).
    """
    width = (high - low) / (bins - 1)
    edges = bin_centres(low - width / 2, high + width / 2, bins + 1)
    distance = (edges - jnp.clip(values, low, high)[..., None]) / (spread * width)
    below = jax.scipy.stats.norm.cdf(distance)
    mass = below[..., 1:] - below[..., :-1]
    return mass / mass.sum(-1, keepdims=True)
