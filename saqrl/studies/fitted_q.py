"""The value of a policy, estimated from data: fitted Q evaluation, exact on codes.

Q(s, k) is regressed on r + g (1-d) sum_k' pi(k'|s') Qbar(s', k'); the sum over codes leaves no
sampling in the target. Of a chunk that is played in part, r and s' are those of the part: the
policy decides again after its action horizon. The value of the policy is the mean of
sum_k pi(k|s) Q(s, k) over the states in which episodes begin. Q is first fitted to the returns
that the data saw: a value that lies 1 / (1-g) steps ahead takes long to travel there by
bootstrapping, and what is left to travel then is only how the policy differs from the data.
Source: Le, Voloshin, Yue 2019 (arXiv 1903.08738), algorithm 3; for choosing among offline
policies: Paine et al. 2020 (arXiv 2007.09055).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from saqrl import nn
from saqrl.agents import operators
from saqrl.datasets import Transitions
from saqrl.policy import Act, CodeController, Policy
from saqrl.studies.statistics import Estimate, mean_interval
from saqrl.training import engine
from saqrl.training.codes import BLOCK, encode_all
from saqrl.training.preparation import prepare, reward_factor
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings


class EvaluatedTransitions(eqx.Module):
    """Coded transitions with what the policy would do next."""

    observations: Float[Array, "n features"]
    codes: Int[Array, " n"]
    rewards: Float[Array, " n"]
    next_observations: Float[Array, "n features"]
    discounts: Float[Array, " n"]
    next_log_policy: Float[Array, "n codes"]
    returns: Float[Array, " n"]
    """Discounted return of the data's episode from here on."""


class State(eqx.Module):
    critics: nn.TrainState[nn.Ensemble]
    target: nn.Ensemble
    step: Int[Array, ""]


@dataclass(frozen=True)
class FittedQ(nn.Training):
    """Fitted Q evaluation with several networks that know nothing of each other."""

    learning_rate: float = 3e-4
    layer_norm: bool = True
    critics: int = 3
    """Q networks, each with its own target; their disagreement is reported."""
    target_rate: float = 0.005
    """Rate of the target network: share of the online critics mixed in at each step."""
    warm_up: float = 0.25
    """Share of the steps that fit the data's returns."""

    def init(self, key: Key[Array, ""], example: EvaluatedTransitions) -> State:
        inputs, codes = example.observations.shape[-1], example.next_log_policy.shape[-1]
        critics = self.ensemble(key, inputs, codes, count=self.critics)
        target = jax.tree.map(jnp.copy, critics)
        return State(nn.init_state(critics, self.optimiser()), target, jnp.zeros((), jnp.int32))

    def update(
        self, state: State, batch: EvaluatedTransitions, key: Key[Array, ""]
    ) -> tuple[State, nn.Metrics]:
        targets = self.targets(state, batch)

        def loss(critics: nn.Ensemble) -> tuple[Float[Array, ""], nn.Metrics]:
            q = jax.vmap(operators.of_code, (0, None))(critics(batch.observations), batch.codes)
            error = nn.bellman_error(q, targets)
            return error, {"bellman_error": error / len(q), "data_q": q.mean()}

        critics, metrics = nn.gradient_step(state.critics, self.optimiser(), loss)
        target = nn.polyak_update(state.target, critics.model, rate=self.target_rate)
        return State(critics, target, state.step + 1), metrics

    def targets(self, state: State, batch: EvaluatedTransitions) -> Float[Array, "critics batch"]:
        """Y_i = r + g (1-d) sum_k pi(k|s') Qbar_i(s', k), of each network its own.

        In the warm-up the data's returns in their place.
        """
        values = state_values(state.target, batch.next_observations, batch.next_log_policy)
        warming = state.step < self.warm_up * self.steps
        return jnp.where(warming, batch.returns, batch.rewards + batch.discounts * values)


@dataclass(frozen=True)
class PolicyValue:
    """An estimate of a policy's value, in discounted reward as the data count it."""

    value: float
    low: float
    """95 % bootstrap interval over the initial states."""
    high: float
    spread: float
    """Standard deviation between the Q networks: uncertainty of the fit."""
    data_value: float
    """Discounted return of the data's own episodes, for comparison."""
    initial_states: int

    @property
    def interval(self) -> Estimate:
        return Estimate(self.value, self.low, self.high)


def evaluate_offline(
    data: Transitions,
    settings: Settings,
    policy: Policy,
    *,
    act: Act,
    algorithm: FittedQ,
    seed: int,
    reporter: Reporter,
) -> PolicyValue:
    """Fit Q of the policy on all of `data`; ValueError where that cannot be done."""
    _code_controller(policy)
    if not data.has_rewards:
        raise ValueError(
            "the data have no rewards, so there is no value to estimate: use data with rewards, "
            "or --dataset.rewards success-at-end in the training"
        )
    factor = reward_factor(data, settings.features.reward_scale)
    table = evaluated(data, settings, policy, act=act, factor=factor)
    seen = returns_to_go(data, discount=settings.agent.discount)
    key, state, pauses = jax.random.key(seed), None, [settings.output.log_every]
    with reporter.stage("offline evaluation", algorithm.steps) as update:
        for interval in engine.intervals(cast(Any, algorithm), table, key, pauses=pauses):
            state = interval.state
            update(interval.step, f"bellman error {interval.metrics['bellman_error']:.3g}")
    assert state is not None
    starts = table.observations[data.episode_starts]
    values = state_values(state.critics.model, starts, log_policy_of(policy, starts, act=act))
    return policy_value(np.asarray(values) / factor, seen[data.episode_starts], seed=seed)


def evaluated(
    data: Transitions, settings: Settings, policy: Policy, *, act: Act, factor: float
) -> EvaluatedTransitions:
    """Every step of `data` as a decision of the policy, of which it plays its action horizon."""
    prepared = prepare(
        data, settings, policy.observation_scaling, factor, played=policy.action_horizon
    )
    following = jnp.asarray(prepared.next_features)
    seen = returns_to_go(data, discount=settings.agent.discount)
    return EvaluatedTransitions(
        jnp.asarray(prepared.features),
        encode_all(_code_controller(policy).quantizer.codec, prepared.action_batch()),
        jnp.asarray(prepared.rewards),
        following,
        jnp.asarray(prepared.discounts),
        log_policy_of(policy, following, act=act),
        jnp.asarray(factor * seen, jnp.float32),
    )


def log_policy_of(
    policy: Policy, features: Float[Array, "n features"], *, act: Act
) -> Float[Array, "n codes"]:
    """Log pi(k|s) of how the policy acts: its softmax where it samples, else all on one code.

    That is the best scored one, or the code that stands for the mean action (nearly: the value of
    an action that no code stands for exactly is not known).
    """
    return _log_policy(_code_controller(policy), features, policy.act_temperature, act=act)


@partial(jax.jit, static_argnames="act")
def _log_policy(
    controller: CodeController,
    features: Float[Array, "n features"],
    temperature: float,
    *,
    act: Act,
) -> Float[Array, "n codes"]:
    def one(row: Float[Array, " features"]) -> Float[Array, " codes"]:
        if act == "sample":
            return jax.nn.log_softmax(controller.scores(row, temperature=temperature))
        key = jax.random.key(0)  # neither rule draws
        if act == "greedy":
            played = controller.choose(row, key, act=act)
        else:
            mean = controller.decide(row, key, act=act, temperature=temperature)
            played = controller.quantizer.encode(row, mean)
        codes = jnp.arange(controller.quantizer.num_codes)
        return jnp.where(codes == played, 0.0, operators.DISALLOWED)

    return jax.lax.map(one, features, batch_size=BLOCK)


@jax.jit
def state_values(
    critics: nn.Ensemble, features: Float[Array, "n features"], log_policy: Float[Array, "n codes"]
) -> Float[Array, "critics n"]:
    """sum_k pi(k|s) Q_i(s, k) of each network and state."""
    q = critics(features)
    return jax.vmap(jax.vmap(operators.expectation), (None, 0))(log_policy, q)


def returns_to_go(transitions: Transitions, *, discount: float) -> Float[np.ndarray, " n"]:
    """sum_i discount^i r_{t+i} from each step t to the end of its episode."""
    returns = transitions.rewards.astype(np.float64)
    longest = int(transitions.episode_lengths.max())
    # From the episodes' ends back, a step of every episode that is long enough at a time.
    for age in range(2, longest + 1):
        rows = transitions.episode_ends[transitions.episode_lengths >= age] - age
        returns[rows] += discount * returns[rows + 1]
    return returns


def policy_value(
    values: Float[np.ndarray, "critics states"],
    returns: Float[np.ndarray, " episodes"],
    *,
    seed: int,
) -> PolicyValue:
    """Mean over networks and initial states, with the percentile bootstrap over the states."""
    return PolicyValue(
        *mean_interval(values.mean(0).tolist(), seed=seed),
        spread=float(values.mean(1).std()),
        data_value=float(returns.mean()),
        initial_states=values.shape[1],
    )


def _code_controller(policy: Policy) -> CodeController:
    if not isinstance(policy.controller, CodeController):
        raise ValueError(
            "offline evaluation sums over codes and needs a quantized policy; this policy "
            "is continuous"
        )
    return policy.controller
