"""Densities of continuous actions, for one example; the caller vmaps.

A tanh-Gaussian is the tanh of a diagonal Gaussian; the mixture's Gaussians are not squashed.
Log-densities are summed over the action's dimensions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOG_2PI = 1.8378770664093453
# Actions may be on the bounds, where a tanh-Gaussian of reach 1 has no density; they are moved
# inside by the same amount as in the code of IQL's authors (arXiv 2110.06169).
INSIDE = 1 - 1e-5


def gaussian_log_density(
    value: Float[Array, " act"], mean: Float[Array, " act"], log_deviation: Float[Array, " act"]
) -> Float[Array, ""]:
    """Log N(value; mean, exp(log_deviation)^2), diagonal."""
    standard = (value - mean) * jnp.exp(-log_deviation)
    return -(0.5 * jnp.square(standard) + log_deviation + 0.5 * LOG_2PI).sum(-1)


def log_tanh_slope(value: Float[Array, " act"]) -> Float[Array, " act"]:
    """Log d tanh(u)/du = log(1 - tanh(u)^2), finite for every u.

    1 - tanh^2 = 4 / (e^u + e^-u)^2, so its log is 2 (log 2 - u - softplus(-2u)): the naive form
    is log 0 from |u| = 9 on in float32.
    """
    return 2 * (jnp.log(2.0) - value - jax.nn.softplus(-2 * value))


def unsquash(action: Float[Array, " act"]) -> Float[Array, " act"]:
    """The u with tanh(u) = action; actions beyond +-(1 - 1e-5) are moved there first."""
    return jnp.arctanh(jnp.clip(action, -INSIDE, INSIDE))


def tanh_gaussian_log_density(
    action: Float[Array, " act"],
    mean: Float[Array, " act"],
    log_deviation: Float[Array, " act"],
    *,
    reach: float = 1.0,
) -> Float[Array, ""]:
    """Log-density of reach tanh(u), u ~ N(mean, exp(log_deviation)^2), at `action` in [-1, 1].

    Source: Haarnoja et al. 2018 (arXiv 1801.01290), eq. 21, for a reach of 1; a reach is a factor
    of da/du.
    """
    value = unsquash(action / reach)
    slope = jnp.log(reach) + log_tanh_slope(value)
    return gaussian_log_density(value, mean, log_deviation) - slope.sum(-1)


def gaussian_sample(
    noise: Float[Array, " act"], mean: Float[Array, " act"], log_deviation: Float[Array, " act"]
) -> Float[Array, " act"]:
    """A sample from standard normal noise, differentiable in the mean and the deviation."""
    return mean + jnp.exp(log_deviation) * noise


def tanh_gaussian_sample(
    noise: Float[Array, " act"], mean: Float[Array, " act"], log_deviation: Float[Array, " act"]
) -> tuple[Float[Array, " act"], Float[Array, ""]]:
    """An action from standard normal noise, with its log-density, computed without arctanh."""
    value = gaussian_sample(noise, mean, log_deviation)
    density = gaussian_log_density(value, mean, log_deviation) - log_tanh_slope(value).sum(-1)
    return jnp.tanh(value), density


def mixture_log_density(
    action: Float[Array, " act"],
    logits: Float[Array, " components"],
    means: Float[Array, "components act"],
    deviations: Float[Array, "components act"],
) -> Float[Array, ""]:
    """Log sum_c softmax(logits)_c N(action; means_c, deviations_c^2)."""
    per_component = jax.vmap(gaussian_log_density, (None, 0, 0))(action, means, jnp.log(deviations))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + per_component)


def importance_logsumexp(
    values: Float[Array, " samples"], log_densities: Float[Array, " samples"]
) -> Float[Array, ""]:
    """Log of the estimate mean_i exp(values_i) / density_i of the integral of exp(value).

    Each sample may come from its own proposal; the mean inside the log is unbiased.
    Source: Kumar et al. 2020 (arXiv 2006.04779), appendix F.
    """
    return jax.nn.logsumexp(values - log_densities) - jnp.log(values.shape[-1])
