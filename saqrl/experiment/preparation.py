"""From transitions to what the networks read: features, unit action chunks, discounted rewards."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int64

from saqrl.agents import CodedTransitions
from saqrl.baselines import ContinuousTransitions
from saqrl.datasets import Transitions
from saqrl.datasets.chunks import chunk_actions, chunk_rewards
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.split import split_episodes
from saqrl.experiment.settings import RewardScale, Settings
from saqrl.nn import MLP
from saqrl.quantizers import ActionBatch, ActionQuantizer, Codec

# Fewer episodes than this are all trained on: each of them is worth more than a report.
EPISODES_FOR_HELD_OUT = 10
# Rows that go through a network at once when a whole dataset does.
BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Prepared:
    """One split of a dataset, scaled and chunked, on the host."""

    features: Float32[np.ndarray, "n features"]
    next_features: Float32[np.ndarray, "n features"]
    actions: Float32[np.ndarray, "n chunk_act"]
    rewards: Float32[np.ndarray, " n"]
    discounts: Float32[np.ndarray, " n"]
    following: Int64[np.ndarray, " n"]
    """The row of the data's decision at `next_features`; the episode's last row at its end."""

    def action_batch(self) -> ActionBatch:
        return ActionBatch(jnp.asarray(self.features), jnp.asarray(self.actions))

    def coded(self, codes: Int[Array, " n"], num_codes: int, prior: MLP | None) -> CodedTransitions:
        """The discrete data set; with a prior, its log-probabilities are computed here, once."""
        features, following = jnp.asarray(self.features), jnp.asarray(self.next_features)
        return CodedTransitions(
            features,
            codes,
            jnp.asarray(self.rewards),
            following,
            jnp.asarray(self.discounts),
            None if prior is None else log_prior_of(prior, features),
            None if prior is None else log_prior_of(prior, following),
            num_codes,
        )

    def continuous(self) -> ContinuousTransitions:
        return ContinuousTransitions(
            jnp.asarray(self.features),
            jnp.asarray(self.actions),
            jnp.asarray(self.rewards),
            jnp.asarray(self.next_features),
            jnp.asarray(self.discounts),
            jnp.asarray(self.actions[self.following]),
        )


def split(transitions: Transitions, settings: Settings) -> tuple[Transitions, Transitions | None]:
    """Training and held-out episodes, the file's own split where it has one.

    Few episodes are all trained on.
    """
    if transitions.held_out is not None and settings.held_out > 0:
        return transitions, transitions.held_out
    if transitions.num_episodes < EPISODES_FOR_HELD_OUT:
        return transitions, None
    return split_episodes(transitions, held_out_fraction=settings.held_out, seed=settings.seed)


def fit_scaling(transitions: Transitions, settings: Settings) -> ObservationScaling:
    return ObservationScaling.fit(
        transitions.observations,
        angles=transitions.angles,
        scale=settings.observation_scale,
        deviation=settings.feature_deviation,
    )


def reward_factor(transitions: Transitions, scale: RewardScale) -> float:
    """What rewards are multiplied by.

    unit: the mean size of a reward becomes 0.1, values then are of order 10 at discount 0.99;
    return-range: returns span 1000, as IQL does for locomotion (arXiv 2110.06169, appendix B).
    """
    if scale == "unit":
        size = float(np.abs(transitions.rewards).mean(dtype=np.float64))
        return 0.1 / size if size > 0 else 1.0
    if scale == "return-range":
        span = float(np.ptp(transitions.episode_returns))
        return 1000 / span if span > 0 else 1.0
    return 1.0


def prepare(
    transitions: Transitions, settings: Settings, scaling: ObservationScaling, factor: float
) -> Prepared:
    """Scale and chunk one split."""
    rewards, next_rows, discounts = chunk_rewards(
        transitions, horizon=settings.chunk, discount=settings.agent.discount
    )
    chunks = chunk_actions(transitions, settings.chunk).reshape(
        len(transitions), settings.chunk, -1
    )
    last = np.repeat(transitions.episode_ends - 1, transitions.episode_lengths)
    return Prepared(
        features=scaling(transitions.observations),
        next_features=scaling(transitions.next_observations[next_rows]),
        actions=transitions.action_range.to_unit(chunks).reshape(len(transitions), -1),
        rewards=(rewards * factor).astype(np.float32),
        discounts=discounts,
        following=np.minimum(next_rows + 1, last),
    )


@jax.jit
def encode_all(codec: Codec, data: ActionBatch) -> Int[Array, " n"]:
    """The code of every transition."""
    return jax.lax.map(
        lambda row: type(codec).encode(codec, *row),
        (data.observations, data.actions),
        batch_size=BLOCK,
    )


@jax.jit
def decode_all(
    codec: Codec, observations: Float[Array, "n features"], codes: Int[Array, " n"]
) -> Float[Array, "n chunk_act"]:
    """The action that each code stands for in its state."""
    return jax.lax.map(
        lambda row: type(codec).decode(codec, *row), (observations, codes), batch_size=BLOCK
    )


@jax.jit
def log_prior_of(prior: MLP, observations: Float[Array, "n features"]) -> Float[Array, "n codes"]:
    """Log pi_b(k|s) of every state."""
    return jax.lax.map(
        lambda observation: jax.nn.log_softmax(prior(observation)), observations, batch_size=BLOCK
    )


def quantizer_report(
    quantizer: ActionQuantizer, split: Prepared, half_width: Float32[np.ndarray, " act"]
) -> dict[str, object]:
    """How well the codes stand for the actions of a split.

    Errors are root mean squares per action dimension in the environment's units, over all steps
    of a chunk; prior accuracy is how often the most probable code is the action's own.
    """
    data = split.action_batch()
    codes = encode_all(quantizer.codec, data)
    decoded = np.asarray(decode_all(quantizer.codec, data.observations, codes))
    width = len(half_width)
    errors = (decoded - split.actions).reshape(-1, width) * half_width
    spread = split.actions.reshape(-1, width).std(0) * half_width
    usage = np.bincount(np.asarray(codes), minlength=quantizer.num_codes)
    share = usage[usage > 0] / usage.sum()
    log_prior = np.asarray(log_prior_of(quantizer.prior, data.observations))
    chosen = log_prior[np.arange(len(codes)), np.asarray(codes)]
    rms = np.sqrt(np.square(errors).mean(0))
    return {
        "error": [float(value) for value in rms],
        "error_per_deviation": float(
            np.sqrt(np.square(errors).sum() / max(np.square(spread).sum() * len(errors), 1e-12))
        ),
        "codes_used": int((usage > 0).sum()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "prior_accuracy": float((log_prior.argmax(-1) == np.asarray(codes)).mean()),
        "prior_cross_entropy": float(-chosen.mean()),
    }
