"""From the features of one state to an action chunk, by one of three rules (`Act`).

greedy: the code with the highest score. sample: a code sampled by its probability. mean: the
expectation of the decoded action, summed over all codes. A temperature T divides the actor's
log-probabilities before they are normalised: below 1 favours the most probable codes, above 1
makes the probabilities more even.
"""

from functools import cache
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from saqrl import agents, baselines
from saqrl.quantizers import ActionQuantizer
from saqrl.registry import Act

Temperature = float | Float[Array, ""]


class Controller(Protocol):
    """From features to an action chunk in [-1, 1], for one state. A pytree of arrays."""

    def decide(
        self,
        features: Float[Array, " features"],
        key: Key[Array, ""],
        *,
        act: Act,
        temperature: Temperature,
    ) -> Float[Array, " chunk_act"]: ...


class CodeController(eqx.Module):
    """Scores the codes of this state, and plays one of them or their mean."""

    quantizer: ActionQuantizer
    actor: agents.Actor | agents.ActionActor | agents.Members

    def decide(
        self,
        features: Float[Array, " features"],
        key: Key[Array, ""],
        *,
        act: Act,
        temperature: Temperature = 1.0,
    ) -> Float[Array, " chunk_act"]:
        if act == "mean":
            probabilities = jax.nn.softmax(self.scores(features, temperature=temperature))
            return self.quantizer.mean(features, probabilities)
        code = self.choose(features, key, act=act, temperature=temperature)
        return self.quantizer.decode(features, code)

    def choose(
        self,
        features: Float[Array, " features"],
        key: Key[Array, ""],
        *,
        act: Act,
        temperature: Temperature = 1.0,
    ) -> Int[Array, ""]:
        """The code to play: the one with the highest score, or one sampled by its probability.

        With greedy, the temperature matters only for ensembles: it applies before the average.
        """
        if act == "greedy":
            tempered = temperature if isinstance(self.actor, agents.Members) else 1.0
            return jnp.argmax(self.scores(features, temperature=tempered))
        return jax.random.categorical(key, self.scores(features, temperature=temperature))

    def scores(
        self, features: Float[Array, " features"], *, temperature: Temperature = 1.0
    ) -> Float[Array, " codes"]:
        """The unnormalised log-probabilities of the codes at this temperature."""

        @cache  # once for all members
        def decoded() -> Float[Array, "codes chunk_act"]:
            return self.quantizer.decode_all(features)

        if isinstance(self.actor, agents.Members):
            priors = self.quantizer.log_priors(features)
            return self.actor.log_policy(features, priors, decoded, temperature=temperature)
        log_prior = self.quantizer.log_prior(features)
        return agents.logits(self.actor, features, log_prior, decoded) / temperature


class ContinuousController(eqx.Module):
    """A continuous actor as a controller: mean equals greedy, and the temperature has no effect.

    The greedy action is already the mean of the distribution (for a mixture, of its most probable
    component; for a squashed distribution, of the one before squashing).
    """

    actor: baselines.Actor

    def decide(
        self,
        features: Float[Array, " features"],
        key: Key[Array, ""],
        *,
        act: Act,
        temperature: Temperature = 1.0,
    ) -> Float[Array, " chunk_act"]:
        return self.actor.act(features, key, greedy=act != "sample")
