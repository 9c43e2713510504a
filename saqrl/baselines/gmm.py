"""BC-GMM: behaviour cloning with a mixture of Gaussians.

Source: Mandlekar et al. 2021 (arXiv 2108.03298), appendix on BC-GMM. As there, the Gaussians are
not squashed, their means pass through tanh, the deviation is at least 1e-4, and evaluation is
nearly without noise: a component is sampled by its weight, and its mean is played.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.baselines import ContinuousTransitions
from saqrl.baselines.bc import Cloning
from saqrl.baselines.distributions import mixture_log_density

MIN_DEVIATION = 1e-4


class Mixture(eqx.Module):
    """Logits, means and deviations of the components from one network."""

    network: nn.MLP
    components: int = eqx.field(static=True)

    def __call__(
        self, observations: Float[Array, "*batch features"]
    ) -> tuple[
        Float[Array, "*batch components"],
        Float[Array, "*batch components act"],
        Float[Array, "*batch components act"],
    ]:
        outputs = self.network(observations)
        logits, rest = outputs[..., : self.components], outputs[..., self.components :]
        means, spreads = jnp.split(rest.reshape(*rest.shape[:-1], self.components, -1), 2, axis=-1)
        return logits, jnp.tanh(means), jax.nn.softplus(spreads) + MIN_DEVIATION


@dataclass(frozen=True)
class GMM(Cloning):
    """Maximum likelihood of a mixture of diagonal Gaussians."""

    components: int = 5

    default_act = "sample"

    def model(self, key: Key[Array, ""], inputs: int, act: int) -> Mixture:
        network = self.network(key, inputs, self.components * (1 + 2 * act))
        return Mixture(network, self.components)

    def loss(self, model: Mixture, batch: ContinuousTransitions) -> tuple[Array, nn.Metrics]:
        parameters = model(batch.observations)
        likelihood = jax.vmap(mixture_log_density)(batch.actions, *parameters).mean()
        return -likelihood, {"log_likelihood": likelihood}

    def actor(self, state: nn.TrainState[Mixture]) -> "MixtureActor":
        return MixtureActor(state.model)


class MixtureActor(eqx.Module):
    """Greedy: the mean of the most probable component; else of one sampled by its weight."""

    mixture: Mixture

    def act(
        self, observation: Float[Array, " features"], key: Key[Array, ""], *, greedy: bool
    ) -> Float[Array, " act"]:
        logits, means, _ = self.mixture(observation)
        return means[jnp.argmax(logits) if greedy else jax.random.categorical(key, logits)]
