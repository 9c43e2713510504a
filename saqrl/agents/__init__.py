"""Codes train an agent; an actor leaves the room.

A discrete agent chooses among codes: it reads `CodedTransitions` and gives an `Actor`, which scores
the codes of a state. That is what makes every expectation, constraint and penalty an exact sum
(`operators`). Continuous actions are seen only by one that says `reads_actions`, to value codes by
what they decode to. An agent is a frozen dataclass of hyperparameters with three pure methods;
a new one is a file with such a class and a line in `saqrl.registry`, or, in a package of one's own,
a call of `saqrl.register` or an entry point.
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

    `discounts` is discount^m (1 - terminated) for the m steps that a row spans, so the target of
    every agent reads rewards + discounts * value(next_observations). The behaviour's
    log-probabilities do not change while an agent learns and are computed once; they are None
    while the behaviour itself is learned.
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
    """Whether some rows are no codes: to those the behaviour gives operators.DISALLOWED."""
    actions: Float[Array, "n act"] | None = None
    """What was done; only for an agent that says `reads_actions = True`."""

    def existing(
        self, values: Float[Array, "*heads n codes"], log_prior: Float[Array, "n codes"] | None
    ) -> Float[Array, "*heads n codes"]:
        """`values` of codes, far below everything else of rows that are none."""
        if not self.spare or log_prior is None:
            return values
        return operators.existing(values, log_prior)


class Actor(Protocol):
    """What is left of an agent after training: a score for every code of one state."""

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        """Unnormalised log-probabilities; the policy takes their argmax or samples them."""
        ...


@runtime_checkable
class ActionActor(Protocol):
    """An actor that wants to know what each code decodes to in the state."""

    def logits_of(
        self,
        observation: Float[Array, " features"],
        log_prior: Float[Array, " codes"],
        actions: Float[Array, "codes act"],
    ) -> Float[Array, " codes"]:
        """As `Actor.logits`; `actions` are the decoded ones."""
        ...


Decoded = Callable[[], Float[Array, "codes act"]]
"""Decodes all codes of a state, for who asks."""


def logits(
    actor: Actor | ActionActor,
    observation: Float[Array, " features"],
    log_prior: Float[Array, " codes"],
    decoded: Decoded,
) -> Float[Array, " codes"]:
    """The actor's unnormalised log-probabilities, whichever kind it is."""
    if isinstance(actor, ActionActor):
        return actor.logits_of(observation, log_prior, decoded())
    return actor.logits(observation, log_prior)


class Members(eqx.Module):
    """Actors of several agents that act as one: their probabilities are averaged.

    pi(k|s) = (1/N) sum_m softmax(logits_m / T). To draw a code from it is to draw a member for each
    decision and then one of that member's codes: one rule serves both.
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
        """Log pi(k|s), normalised. `log_priors` are the members' own, or one that they share."""
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
        """The policy that the state stands for."""
        ...


def reads_actions(agent: Any) -> bool:
    """Whether its transitions hold the actions beside their codes."""
    return bool(getattr(agent, "reads_actions", False))
