"""Codes train an agent; an actor leaves the room.

A discrete agent never sees a continuous action: it reads `CodedTransitions` and gives an `Actor`,
which scores the codes of a state. That is what makes every expectation, constraint and penalty an
exact sum (`operators`). An agent is a frozen dataclass of hyperparameters with three pure methods;
a new one is a file with such a class and a line in `saqrl.registry`, or, in a package of one's own,
a call of `saqrl.register` or an entry point.
"""

from typing import Any, Protocol

import equinox as eqx
from jaxtyping import Array, Float, Int

from saqrl import nn
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


class Actor(Protocol):
    """What is left of an agent after training: a score for every code of one state."""

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        """Unnormalised log-probabilities; the policy takes their argmax or samples them."""
        ...


class Agent(nn.Algorithm[CodedTransitions], Protocol):
    """Hyperparameters of a discrete agent, with pure methods."""

    discount: float

    def actor(self, state: Any) -> Actor:
        """The policy that the state stands for."""
        ...
