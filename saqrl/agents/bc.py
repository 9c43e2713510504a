"""SAQ-BC: the behaviour policy pi_b(k|s), by maximum likelihood on the codes.

It is also the prior that constrains the other agents. So its network becomes the quantizer's prior,
and its actor only returns the prior.
Source: SAQ (arXiv 2310.11731), section 3: the cross-entropy of the data's codes.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import optax
from jaxtyping import Array, Float, Key

from saqrl import nn
from saqrl.agents import CodedTransitions

State = nn.TrainState[nn.MLP]


@dataclass(frozen=True)
class BC(nn.Training):
    """Behaviour cloning on codes."""

    steps: int = 10_000
    weight_decay: float = 1e-4
    discount: float = 0.99
    """Not used by the loss: every agent has the discount of its coded transitions."""

    default_act = "sample"
    # Acting is now set for every agent by this flag.
    retired: ClassVar[dict[str, str]] = {"temperature": "act_temperature"}

    def init(self, key: Key[Array, ""], example: CodedTransitions) -> State:
        network = self.network(key, example.observations.shape[-1], example.num_codes)
        return nn.init_state(network, self.optimiser())

    def update(
        self, state: State, batch: CodedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        def loss(network: nn.MLP) -> tuple[Float[Array, ""], nn.Metrics]:
            logits = network(batch.observations)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.codes)
            accuracy = (logits.argmax(-1) == batch.codes).mean()
            return losses.mean(), {"cross_entropy": losses.mean(), "accuracy": accuracy}

        return nn.gradient_step(state, self.optimiser(), loss)

    def prior(self, state: State) -> nn.MLP:
        """The network f with pi_b(k|s) = softmax f(s)."""
        return state.model

    def actor(self, state: State) -> "BehaviourActor":
        return BehaviourActor()


class BehaviourActor(eqx.Module):
    """Acts with pi_b."""

    def logits(
        self, observation: Float[Array, " features"], log_prior: Float[Array, " codes"]
    ) -> Float[Array, " codes"]:
        return log_prior
