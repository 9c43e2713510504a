"""Gaussian policies, and what is left of them after training."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines.distributions import gaussian_sample

# Bounds of the log-deviation before the tanh; below e^-5 the likelihood only chases duplicates.
LOG_DEVIATION_MIN, LOG_DEVIATION_MAX = -5.0, 2.0


class GaussianPolicy(eqx.Module):
    """Mean and log-deviation from one network; a tanh-Gaussian with them is the policy."""

    network: nn.MLP

    def __init__(self, key: Key[Array, ""], inputs: int, hidden: tuple[int, ...], act: int):
        self.network = nn.MLP(key, inputs, hidden, 2 * act)

    def __call__(
        self, observations: Float[Array, "*batch features"]
    ) -> tuple[Float[Array, "*batch act"], Float[Array, "*batch act"]]:
        mean, log_deviation = jnp.split(self.network(observations), 2, axis=-1)
        return mean, jnp.clip(log_deviation, LOG_DEVIATION_MIN, LOG_DEVIATION_MAX)


class TanhGaussianActor(eqx.Module):
    """Greedy: tanh of the mean, which is the distribution's median."""

    policy: GaussianPolicy

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        mean, log_deviation = self.policy(observation)
        if greedy:
            return jnp.tanh(mean)
        noise = jax.random.normal(key, mean.shape)
        return jnp.tanh(gaussian_sample(noise, mean, log_deviation))
