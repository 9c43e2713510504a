"""From transitions to what the networks read: features, unit action chunks, discounted rewards."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int64

from saqrl.agents import CodedTransitions
from saqrl.baselines import ContinuousTransitions
from saqrl.datasets import Transitions
from saqrl.datasets.chunks import chunk_actions, chunk_rewards
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.split import choose_episodes, thinned
from saqrl.datasets.statistics import blocks
from saqrl.nn import MLP
from saqrl.policy import Policy
from saqrl.quantizers import ActionBatch, ActionQuantizer, Codec
from saqrl.quantizers.binary import BinaryCodec
from saqrl.training.settings import RewardScale, Settings

# Fewer episodes than this are all trained on: each of them is worth more than a report.
EPISODES_FOR_HELD_OUT = 10
# Rows that go through a network at once when a whole dataset does.
BLOCK = 4096
# Rows of a log that a policy's actions are compared with.
ERROR_ROWS = 10_000
# Rows of a part of mapped data, where the settings do not say.
PART_ROWS = 2**18
# Rows of each side of a split of streamed data that are brought into memory.
SAMPLE_ROWS = 100_000


@dataclass(frozen=True, eq=False)
class Prepared:
    """One split of a dataset, scaled and chunked, on the host."""

    features: Float32[np.ndarray, "n features"]
    next_features: Float32[np.ndarray, "n features"]
    actions: Float32[np.ndarray, "n chunk_act"]
    rewards: Float32[np.ndarray, " n"]
    discounts: Float32[np.ndarray, " n"]
    next_actions: Float32[np.ndarray, "n chunk_act"]
    """The data's decision at `next_features`; the episode's last one at its end."""

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
            jnp.asarray(self.next_actions),
        )


def split(transitions: Transitions, settings: Settings) -> tuple[Transitions, Transitions | None]:
    """Training and held-out episodes, the file's own split where it has one.

    Few episodes are all trained on. Of data that is streamed, some episodes of each side.
    """
    training, held_out = choose(transitions, settings)
    own = transitions.held_out if settings.held_out > 0 else None
    if part_rows(transitions, settings) is not None:
        shown = thinned(transitions, held_out, rows=SAMPLE_ROWS) if held_out.size else own
        return thinned(transitions, training, rows=SAMPLE_ROWS), shown
    if not held_out.size:
        return transitions, own
    return transitions.select_episodes(training), transitions.select_episodes(held_out)


def choose(
    transitions: Transitions, settings: Settings
) -> tuple[Int64[np.ndarray, " training"], Int64[np.ndarray, " held_out"]]:
    """The numbers of the training episodes, and of those of them that are held out instead."""
    own = transitions.held_out is not None and settings.held_out > 0
    few = transitions.num_episodes < EPISODES_FOR_HELD_OUT
    fraction = 0.0 if own or few else settings.held_out
    return choose_episodes(transitions, held_out_fraction=fraction, seed=settings.seed)


def part_rows(transitions: Transitions, settings: Settings) -> int | None:
    """Rows of a part where the data is streamed; None where all of it lies on the device."""
    rows = settings.stream_rows
    if rows is None:
        rows = PART_ROWS if isinstance(transitions.observations, np.memmap) else len(transitions)
    return rows if rows < len(transitions) else None


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
        sums = [np.abs(block).sum(dtype=np.float64) for block in blocks(transitions.rewards)]
        size = float(sum(sums)) / len(transitions)
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
    actions = transitions.action_range.to_unit(chunks).reshape(len(transitions), -1)
    last = np.repeat(transitions.episode_ends - 1, transitions.episode_lengths)
    return Prepared(
        features=scaling(transitions.observations),
        next_features=scaling(transitions.next_observations[next_rows]),
        actions=actions,
        rewards=(rewards * factor).astype(np.float32),
        discounts=discounts,
        next_actions=actions[np.minimum(next_rows + 1, last)],
    )


def action_error(policy: Policy, log: Transitions) -> float:
    """Root mean square between the policy's greedy action and the log's, per state.

    As a fraction of the log's actions' own deviation, over all dimensions: 1 is what the mean
    action would miss by. Of a chunk the first action counts. At most ERROR_ROWS rows are looked at.
    """
    rows = np.unique(np.linspace(0, len(log) - 1, min(len(log), ERROR_ROWS)).astype(np.int64))
    keys = jax.random.split(jax.random.key(0), len(rows))  # greedy: none of them is drawn from
    planned = policy.plan(log.observations[rows], keys, act="greedy")[:, 0]
    acted = policy.action_range.to_unit(log.actions[rows]).astype(np.float64)
    missed = policy.action_range.to_unit(planned).astype(np.float64) - acted
    return float(np.sqrt(np.square(missed).sum(-1).mean() / total_variance(acted)))


def encode_all(codec: Codec, data: ActionBatch) -> Int[Array, " n"]:
    """The code of every transition.

    Where a gripper's value comes before the distance, all codes of a state are decoded only where
    the nearest one has the other value.
    """
    if not (isinstance(codec, BinaryCodec) and codec.binary.any_two_valued):
        return _encode_rows(codec, data)
    codes, wrong = _nearest_rows(codec, data)
    rows = np.flatnonzero(np.asarray(wrong))
    if not len(rows):
        return codes
    # Few lengths, so that few programs are compiled.
    padded = np.resize(rows, 1 << (len(rows) - 1).bit_length())
    chosen = _encode_rows(codec, jax.tree.map(lambda leaf: leaf[padded], data))
    return codes.at[rows].set(chosen[: len(rows)])


@jax.jit
def _encode_rows(codec: Codec, data: ActionBatch) -> Int[Array, " n"]:
    return jax.lax.map(
        lambda row: type(codec).encode(codec, *row),
        (data.observations, data.actions),
        batch_size=BLOCK,
    )


@jax.jit
def _nearest_rows(
    codec: BinaryCodec, data: ActionBatch
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """The codec's own choices, and where they have a wrong value of two."""

    def look(row: tuple[Array, Array]) -> tuple[Array, Array]:
        code = type(codec).nearest(codec, *row)
        decoded = type(codec).decode(codec, row[0], code)
        return code, codec.binary.wrong(decoded, row[1]) > 0

    return jax.lax.map(look, (data.observations, data.actions), batch_size=BLOCK)


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
    actions = split.actions.reshape(-1, width) * half_width
    errors = decoded.reshape(-1, width) * half_width - actions
    return {
        "error": [float(value) for value in np.sqrt(np.square(errors).mean(0))],
        "error_per_deviation": float(
            np.sqrt(np.square(errors).sum(-1).mean() / total_variance(actions))
        ),
        **code_numbers(quantizer, data.observations, codes),
    }


def total_variance(actions: Float[np.ndarray, "n act"]) -> float:
    """Variance summed over dimensions, above 0 even where nothing varies."""
    return max(float(actions.astype(np.float64).var(0).sum()), 1e-12)


def code_numbers(
    quantizer: ActionQuantizer,
    observations: Float[Array, "n features"],
    codes: Int[Array, " n"] | Int[np.ndarray, " n"],
) -> dict[str, float | int]:
    """Which codes a split's actions take, and how well the prior names them."""
    usage = np.bincount(np.asarray(codes), minlength=quantizer.num_codes)
    share = usage[usage > 0] / usage.sum()
    log_prior = np.asarray(log_prior_of(quantizer.prior, observations))
    chosen = log_prior[np.arange(len(codes)), np.asarray(codes)]
    return {
        "codes_used": len(share),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "prior_accuracy": float((log_prior.argmax(-1) == np.asarray(codes)).mean()),
        "prior_cross_entropy": float(-chosen.mean()),
    }
