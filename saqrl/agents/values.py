"""Q(s, k) of every code: the shared part of the agents that learn values.

A critic is a network with one output per code (regression), or a `Classifier`, whose value is the
expectation of a distribution over bins.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.agents import operators

# Standard deviation of a target's Gaussian, in bin widths (arXiv 2403.03950, section 4.1).
SPREAD = 0.75


@dataclass(frozen=True)
class CodeValues(nn.CriticTraining):
    """Additional settings of every agent that learns Q of codes."""

    bins: int = 0
    """Number of bins if Q is learned by classification (HL-Gauss); 0: regression."""
    value_range: tuple[float, ...] = (-15.0, 15.0)
    """Lowest and highest value of the bins; rewards of mean size 0.1 and discount 0.99 give
    values of order 10."""
    deviations: float | None = None
    """Q is the critics' mean minus this many standard deviations; default: their minimum."""

    def __post_init__(self) -> None:
        if self.bins < 0 or self.bins == 1:
            raise ValueError(f"agent.bins is {self.bins}; it must be 0 (regression) or at least 2")
        if len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]:
            raise ValueError(
                f"agent.value-range is {self.value_range}; expected two numbers, the lower first"
            )

    def shares(self, state: Any) -> list[nn.MLP]:
        """Networks of the state with a softmax over codes, other than the prior."""
        return []

    def new_critics(self, key: Key[Array, ""], inputs: int, codes: int) -> nn.Ensemble:
        """As many critics as `critics` says, each a map from features to Q of every code."""
        if not self.bins:
            critics = self.ensemble(key, inputs, codes, count=self.critics)
            return replace(critics, deviations=self.deviations)
        keys = jax.random.split(key, self.critics)
        heads = tuple(self._classifier(own, inputs, codes) for own in keys)
        return nn.Ensemble(heads, self.deviations)

    def _classifier(self, key: Key[Array, ""], inputs: int, codes: int) -> "Classifier":
        if not self.hidden:
            raise ValueError("agent.bins needs at least one hidden layer")
        trunk_key, weight_key = jax.random.split(key)
        *hidden, width = self.hidden
        trunk = nn.MLP(trunk_key, inputs, tuple(hidden), width, layer_norm=self.layer_norm)
        weight = jax.nn.initializers.lecun_uniform()(weight_key, (width, self.bins))
        gates, offsets = jnp.ones((codes, width)), jnp.zeros((codes, self.bins))
        low, high = self.value_range
        return Classifier(trunk, gates, weight, offsets, low, high, self.layer_norm)

    def values_of(
        self,
        critics: nn.Ensemble,
        observations: Float[Array, "batch features"],
        codes: Int[Array, " batch"],
    ) -> Float[Array, " batch"]:
        """Pessimistic Q(s, k) of one code per row."""
        if self.bins:
            heads = [head.of_codes(observations, codes) for head in critics.heads]
            return critics.believed(jnp.stack(heads))
        return operators.of_code(critics.pessimistic(observations), codes)

    def critic_loss(
        self,
        critics: nn.Ensemble,
        observations: Float[Array, "batch features"],
        codes: Int[Array, " batch"],
        targets: Float[Array, " batch"],
        *,
        values: Float[Array, "heads batch codes"] | None = None,
    ) -> tuple[Float[Array, ""], nn.Metrics]:
        """Loss of Q of the data's codes against the targets: squared error, or cross-entropy.

        `values` is Q of all codes if the caller has it, so that the critics are evaluated once. The
        metric `bellman_error` is the squared error in both cases.
        """
        if not self.bins:
            every = critics(observations) if values is None else values
            q = jax.vmap(operators.of_code, (0, None))(every, codes)
            bellman = nn.bellman_error(q, targets)
            return bellman, {"bellman_error": bellman, "data_q": q.mean()}
        logits = jnp.stack([head.logits_of(observations, codes) for head in critics.heads])
        head = critics.heads[0]
        wanted = operators.gaussian_histogram(
            targets, low=head.low, high=head.high, bins=self.bins, spread=SPREAD
        )
        loss = optax.softmax_cross_entropy(logits, wanted).mean(-1).sum()
        q = jnp.stack([head.expectation(own) for own in logits])
        outside = ((targets < head.low) | (targets > head.high)).mean()
        metrics = {"bellman_error": nn.bellman_error(q, targets), "data_q": q.mean()}
        return loss, {**metrics, "outside_bins": outside}


class Classifier(eqx.Module):
    """Q(s, k) as the expectation of softmax over bins: (gates[k] * h(s)) @ weight + offsets[k].

    Because of the gates, a batch that needs only the data's codes (IQL) computes only their bins.
    Bins: Farebrother et al. 2024
    (arXiv 2403.03950), section 3.
    """

    trunk: nn.MLP
    gates: Float[Array, "codes width"]
    weight: Float[Array, "width bins"]
    offsets: Float[Array, "codes bins"]
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    layer_norm: bool = eqx.field(static=True)

    def __call__(self, observations: Float[Array, "*batch features"]) -> Float[Array, "*b codes"]:
        gated = self._signal(observations)[..., None, :] * self.gates
        return self.expectation(nn.multiply(gated, self.weight) + self.offsets)

    def of_codes(
        self, observations: Float[Array, "*batch features"], codes: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Q(s, k) of one code per row."""
        return self.expectation(self.logits_of(observations, codes))

    def logits_of(
        self, observations: Float[Array, "*batch features"], codes: Int[Array, "*batch"]
    ) -> Float[Array, "*batch bins"]:
        """The bins of one code per row, before the softmax."""
        gated = self._signal(observations) * self.gates[codes]
        return nn.multiply(gated, self.weight) + self.offsets[codes]

    def expectation(self, logits: Float[Array, "*batch bins"]) -> Float[Array, "*batch"]:
        """Sum over the bins of probability times centre."""
        centres = operators.bin_centres(self.low, self.high, logits.shape[-1])
        return jax.nn.softmax(logits) @ centres

    def _signal(self, observations: Float[Array, "*batch features"]) -> Float[Array, "*b width"]:
        signal = self.trunk(observations)
        return jax.nn.relu(nn.normalize(signal) if self.layer_norm else signal)


@dataclass(frozen=True)
class Supported:
    """Log of exp(Q / temperature) over the codes that the prior allows."""

    support: operators.Support
    temperature: float

    def __call__(
        self, q: Float[Array, " codes"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        return self.support.mask(q / self.temperature, log_prior)


@dataclass(frozen=True)
class Reweighted:
    """Log of pi_b exp(Q / temperature), normalised, with a lower bound of log pi_b."""

    temperature: float
    floor: float

    def __call__(
        self, q: Float[Array, " codes"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        return operators.reweighted_prior(
            log_prior, q, temperature=self.temperature, floor=self.floor
        )


class ValueActor(eqx.Module):
    """Scores codes by critics with one output per code."""

    critics: nn.Ensemble
    rule: Supported | Reweighted = eqx.field(static=True)

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        return self.rule(self.critics.pessimistic(observation), log_prior)


class ActionValueActor(eqx.Module):
    """Scores codes by critics that read the state and the code's decoded action."""

    critics: nn.Ensemble
    rule: Supported | Reweighted = eqx.field(static=True)

    def logits_of(
        self,
        observation: Float[Array, " features"],
        log_prior: Float[Array, " codes"],
        actions: Float[Array, "codes act"],
    ) -> Float[Array, " codes"]:
        seen = jnp.broadcast_to(observation, (len(actions), *observation.shape))
        q = self.critics.pessimistic(jnp.concatenate([seen, actions], axis=-1))[..., 0]
        return self.rule(q, log_prior)
