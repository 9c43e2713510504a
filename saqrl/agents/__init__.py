"""Discrete agents: they learn from codes and return an actor.

A discrete agent chooses among codes: it reads `CodedTransitions` and gives an `Actor`, which scores
the codes of a state. So every expectation, constraint and penalty is an exact sum (`operators`).
An agent gets continuous actions only if it sets `reads_actions`, to value codes by their decoded
actions. An agent is a frozen dataclass of hyperparameters with three pure methods; a new one is a
file with such a class and a line in `saqrl.registry`, or, in your own package, a call of
`saqrl.register` or an entry point.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saqrl import nn
from saqrl.agents import operators
from saqrl.registry import AGENTS as AGENTS


class CodedTransitions(eqx.Module):
    """Transitions after the quantizer; n-step and chunked targets need no other type.

    `discounts` is discount^m (1 - terminated) for the m steps of a row, so the target of every
    agent is rewards + discounts * value(next_observations). The behaviour's log-probabilities do
    not change while an agent learns and are computed once; they are None while the behaviour itself
    is learned.
    """

    observations: Float[Array, "n features"]
    codes: Int[Array, " n"]
    rewards: Float[Array, " n"]
    next_observations: Float[Array, "n features"]
    discounts: Float[Array, " n"]
    log_prior: Float[Array, "n codes"] | None
    next_log_prior: Float[Array, "n codes"] | None
    num_codes: int = eqx.field(static=True)
    spare: bool = eqx.field(static=True, default=False)
    """Whether some rows are spare, not codes; their log_prior is operators.DISALLOWED."""
    actions: Float[Array, "n act"] | None = None
    """The recorded actions; only for an agent with `reads_actions = True`."""

    def existing(
        self, values: Float[Array, "*heads n codes"], log_prior: Float[Array, "n codes"] | None
    ) -> Float[Array, "*heads n codes"]:
        """`values` of codes; for spare rows far below every other value."""
        if not self.spare or log_prior is None:
            return values
        return operators.existing(values, log_prior)


class Actor(Protocol):
    """The trained agent without its training state: a score for every code of one state."""

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        """Unnormalised log-probabilities; the policy takes their argmax or samples them."""
        ...


@runtime_checkable
class ActionActor(Protocol):
    """An actor that needs the decoded action of each code in the state."""

    def logits_of(
        self,
        observation: Float[Array, " features"],
        log_prior: Float[Array, " codes"],
        actions: Float[Array, "codes act"],
    ) -> Float[Array, " codes"]:
        """As `Actor.logits`; `actions` are the decoded ones."""
        ...


Decoded = Callable[[], Float[Array, "codes act"]]
"""Decodes all codes of a state when called."""


def logits(
    actor: Actor | ActionActor,
    observation: Float[Array, " features"],
    log_prior: Float[Array, " codes"],
    decoded: Decoded,
) -> Float[Array, " codes"]:
    """The unnormalised log-probabilities of either kind of actor."""
    if isinstance(actor, ActionActor):
        return actor.logits_of(observation, log_prior, decoded())
    return actor.logits(observation, log_prior)


class Members(eqx.Module):
    """Actors of an ensemble: their probabilities are averaged.

    pi(k|s) = (1/N) sum_m softmax(logits_m / T). Sampling a code from it is the same as sampling a
    member for each decision and then a code from that member.
    """

    actors: tuple[Actor | ActionActor, ...]

    def log_policy(
        self,
        observation: Float[Array, " features"],
        log_priors: Sequence[Float[Array, " codes"]],
        decoded: Decoded,
        *,
        temperature: float | Float[Array, ""],
    ) -> Float[Array, " codes"]:
        """Log pi(k|s), normalised. `log_priors`: one for each member, or one for all."""
        own = list(log_priors) * (len(self.actors) // len(log_priors))
        scores = [
            logits(actor, observation, prior, decoded) / temperature
            for actor, prior in zip(self.actors, own, strict=True)
        ]
        return nn.log_mixture(jnp.stack(scores))


def together(actors: Sequence[Actor | ActionActor]) -> Actor | ActionActor | Members:
    """One actor as it is, several as `Members`."""
    return actors[0] if len(actors) == 1 else Members(tuple(actors))


class Agent(nn.Algorithm[CodedTransitions], Protocol):
    """Hyperparameters of a discrete agent, with pure methods."""

    discount: float

    def actor(self, state: Any) -> Actor | ActionActor:
        """The policy of this state."""
        ...


def reads_actions(agent: Any) -> bool:
    """Whether its transitions contain the actions as well as their codes."""
    return bool(getattr(agent, "reads_actions", False))
