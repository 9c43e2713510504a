"""A policy that explores: codes sampled by their probability, and noise on decoded actions.

Its starts are not those of evaluations: `rollout.EVALUATION_SEEDS`.
"""

from dataclasses import dataclass, fields
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from saqrl.policy import Act, Policy
from saqrl.policy.rollout import EVALUATION_SEEDS

# Folded into a decision's key for its noise; the code is drawn by the key itself.
NOISE_FOLD = 1
# Between the starts of one seed and of the next; a prime, so that seeds share few.
STRIDE = 7919


@dataclass(frozen=True, eq=False, repr=False)
class Exploring(Policy):
    """A policy with Gaussian noise on its actions."""

    noise: float = 0.0
    """Its deviation, as a share of half an action's range."""

    @classmethod
    def of(cls, policy: Policy, *, temperature: float, noise: float) -> "Exploring":
        own = {each.name: getattr(policy, each.name) for each in fields(Policy)}
        return cls(**own | {"act_temperature": temperature}, noise=noise)

    def plan(
        self, observations: Float[np.ndarray, "n history*obs"], keys: Key[Array, " n"], *, act: Act
    ) -> Float32[np.ndarray, "n chunk act"]:
        """As the policy plans, with noise; actions stay inside of the data's range."""
        chunks = super().plan(observations, keys, act=act)
        if not self.noise:
            return chunks
        drawn = np.asarray(_noise(keys, shape=chunks.shape[1:]))
        unit = self.action_range.to_unit(chunks) + np.float32(self.noise) * drawn
        return self.action_range.from_unit(unit)


@partial(jax.jit, static_argnames="shape")
def _noise(keys: Key[Array, " n"], *, shape: tuple[int, ...]) -> Float[Array, "n chunk act"]:
    draw = partial(jax.random.normal, shape=shape)
    return jax.vmap(lambda key: draw(jax.random.fold_in(key, NOISE_FOLD)))(keys)


def exploring_seed(seed: int, first: int, count: int) -> int:
    """The seed with which `Arena.play` plays the episodes first, ..., first + count - 1.

    Their environment seeds are below EVALUATION_SEEDS, where those of evaluations begin.
    """
    return (seed * STRIDE + first) % (EVALUATION_SEEDS - count) - EVALUATION_SEEDS
