"""Gaussian policies and their actor."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines.distributions import gaussian_sample

# Bounds of the log-deviation before the tanh; below e^-5 the likelihood only fits duplicates.
LOG_DEVIATION_MIN, LOG_DEVIATION_MAX = -5.0, 2.0
# Factor on the tanh of a tanh-Gaussian that is fitted to data. Logged actions are often clipped, so
# many are exactly on the bounds (a sixth of door-expert's). A plain tanh reaches these only at
# infinity, and the mean diverges.
REACH = 1.1


def check_reach(reach: float) -> None:
    if not reach >= 1:
        raise ValueError(
            f"agent.reach is {reach}; it must be at least 1, because actions are in [-1, 1]"
        )


class GaussianPolicy(eqx.Module):
    """Mean and log-deviation of a tanh-Gaussian policy, from one network."""

    network: nn.MLP

    def __call__(
        self, observations: Float[Array, "*batch features"]
    ) -> tuple[Float[Array, "*batch act"], Float[Array, "*batch act"]]:
        mean, log_deviation = jnp.split(self.network(observations), 2, axis=-1)
        return mean, jnp.clip(log_deviation, LOG_DEVIATION_MIN, LOG_DEVIATION_MAX)


class TanhGaussianActor(eqx.Module):
    """Greedy: reach times the tanh of the mean, which is the distribution's median.

    Clipped to [-1, 1], because a reach above 1 can exceed it.
    """

    policy: GaussianPolicy
    reach: float = eqx.field(static=True, default=1.0)

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        mean, log_deviation = self.policy(observation)
        if not greedy:
            mean = gaussian_sample(jax.random.normal(key, mean.shape), mean, log_deviation)
        return squash(mean, reach=self.reach)


def squash(value: Float[Array, "*batch act"], *, reach: float) -> Float[Array, "*batch act"]:
    """The action that the robot gets for u = `value`: reach tanh(u), clipped to [-1, 1]."""
    return jnp.clip(reach * jnp.tanh(value), -1, 1)
