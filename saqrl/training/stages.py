"""A run is a list of stages, each trained to its end: codes, their prior, the agent, a baseline."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from saqrl import agents, baselines, nn
from saqrl.agents import AGENTS, CodedTransitions
from saqrl.agents.bc import BC
from saqrl.baselines import BASELINES
from saqrl.baselines.bc import ContinuousBC
from saqrl.policy import Act, CodeController, ContinuousController, Controller, Policy
from saqrl.policy.storage import save_policy
from saqrl.quantizers import QUANTIZERS, ActionQuantizer, Codec, Prior
from saqrl.training import engine, interrupts
from saqrl.training.codebook_health import (
    codebook_notes,
    dying_note,
    has_plateaued,
    reconstruction_error,
)
from saqrl.training.codes import encode_all
from saqrl.training.features import Features
from saqrl.training.members import ensemble, states_of
from saqrl.training.preparation import Prepared
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunFolder
from saqrl.training.settings import Settings

# Seconds of work that a kill may cost at most, besides the interval that it hits.
CHECKPOINT_PERIOD = 20.0
# Metrics that the progress bar shows first.
HEADLINES = ("reconstruction", "cross_entropy", "squared_error", "bellman_error", "perplexity")
HELD_OUT_ERROR = "held_out_reconstruction"
# Metrics that grow if training explodes, and the factor over their lowest value for a warning.
LOSSES = ("reconstruction", "cross_entropy", "squared_error", "bellman_error", "value_loss")
EXPLODED = 1e4
CAUSES = (
    "likely causes: a learning rate that is too high (--agent.learning-rate, "
    "--quantizer.learning-rate), rewards or observations of extreme size (saqrl inspect)"
)


class Diverged(ArithmeticError):
    """A loss or a weight is not finite; the message names the stage and likely causes."""


class Hook:
    """An additional action at the end of an interval."""

    pause: int | None = None
    """Steps per interval, if fixed; None: any interval."""

    def after(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        """Use the state before the next interval consumes it; may add to the metrics."""

    def stops(self) -> bool:
        """Whether the stage has ended early, according to the recorded metrics."""
        return False


@dataclass(frozen=True)
class Stage:
    """One algorithm's part of a run."""

    name: str
    number: int
    """Folded into the run's key."""
    algorithm: Any
    data: Callable[[], engine.Rows | engine.Stream]
    """Training data; requested after the stages before it have ended."""
    policy: Callable[[Any], Policy] | None = None
    """The policy of its state, if it has one."""
    hooks: Sequence[Hook] = ()


class Learning:
    """The stages of a run, and what follows from the states in which they ended."""

    def __init__(self, settings: Settings, features: Features, run: RunFolder, reporter: Reporter):
        self.settings, self.features = settings, features
        self.run, self.reporter = run, reporter
        self.states: dict[str, Any] = {}

    def stages(self) -> list[Stage]:
        """In the order in which they are trained."""
        settings, agent = self.settings, self.settings.agent
        stages = []
        if settings.quantized:
            watches: list[Hook] = [HeldOutError(self), DyingCodes(self)]
            stages.append(Stage("quantizer", 0, settings.quantizer, self._actions, hooks=watches))
            if not isinstance(agent, BC):
                stages.append(Stage("prior", 1, settings.prior, self._unweighted))
            keeps = self._keeping(self._coded_policy)
            stages.append(Stage("agent", 2, self.learner, self._coded, self._coded_policy, keeps))
        else:
            stages.append(self._continuous("agent", agent, settings.members))
        if settings.evaluation.baseline:
            stages.append(self._continuous("baseline", plain_cloning(agent)))
        return stages

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages() if stage.name == name)

    @property
    def learner(self) -> Any:
        """The agent, or its ensemble."""
        return ensemble(self.settings.agent, self.settings.members)

    def ended(self, stage: Stage, state: Any) -> None:
        """A stage is done: the next ones build on its state."""
        self.states[stage.name] = state
        if stage.name == "quantizer":
            used = np.asarray(self.codes)[: self.features.count]
            for note in codebook_notes(used, self.codec.num_codes):
                self.reporter.say(f"note: {note}")

    def _keeping(self, policy: Callable[[Any], Policy]) -> list[Hook]:
        every = self.settings.output.keep_every
        steps = self.settings.agent.steps
        return [KeepPolicies(self.run.path, every, steps, policy)] if every else []

    def _continuous(self, name: str, algorithm: Any, members: int = 1) -> Stage:
        learner = ensemble(algorithm, members)
        main = name == "agent"
        ways = self.settings.evaluation
        act = (ways.act, ways.act_temperature) if main else (algorithm.default_act, 1.0)

        def policy(state: Any) -> Policy:
            described: dict[str, Any] = {"kind": "continuous", "members": members}
            described["agent"] = BASELINES.describe(algorithm)
            actors = [algorithm.actor(own) for own in states_of(learner, state)]
            controller = ContinuousController(baselines.together(actors))
            return self._policy(controller, described, *act)

        def data() -> engine.Rows | engine.Stream:
            return self.features.columns(learner, Prepared.continuous)

        return Stage(name, 3, learner, data, policy, self._keeping(policy) if main else ())

    def _actions(self) -> engine.Rows | engine.Stream:
        return self.features.columns(self.settings.quantizer, Prepared.action_batch)

    def _unweighted(self) -> engine.Rows | engine.Stream:
        """Coded transitions while the prior itself is learned."""
        return self._coded_columns(self.settings.prior, None)

    def _coded(self) -> engine.Rows | engine.Stream:
        actions = agents.reads_actions(self.settings.agent)
        return self._coded_columns(self.learner, self.prior, actions=actions)

    def _coded_columns(
        self, algorithm: Any, prior: nn.MLP | None, *, actions: bool = False
    ) -> engine.Rows | engine.Stream:
        def build(rows: Prepared) -> CodedTransitions:
            padded = rows is self.features.padded
            codes = self.codes if padded else encode_all(self.codec, rows.action_batch())
            spare = getattr(self.codec, "exists", None) is not None
            return rows.coded(codes, self.codec.num_codes, prior, spare=spare, actions=actions)

        return self.features.columns(algorithm, build)

    @cached_property
    def codec(self) -> Codec:
        """The trained codec."""
        return self.settings.quantizer.codec(self.states["quantizer"])

    @cached_property
    def codes(self) -> Int[Array, " n"]:
        """The code of every training row, computed once."""
        return encode_all(self.codec, self.features.padded.action_batch())

    @property
    def prior(self) -> nn.MLP | None:
        """The behaviour on codes that constrains all members; those of BC learn it themselves."""
        if isinstance(self.settings.agent, BC):
            return None
        return self.settings.prior.prior(self.states["prior"])

    @property
    def quantizer(self) -> ActionQuantizer:
        """The codec with its prior, once the agent has ended."""
        return ActionQuantizer(self.codec, self.prior or self._own_prior(self.states["agent"]))

    def _own_prior(self, state: Any) -> Prior:
        """The networks of BC, which are the prior of its codes."""
        clone: Any = self.settings.agent
        networks = tuple(clone.prior(own) for own in states_of(self.learner, state))
        return networks[0] if len(networks) == 1 else nn.Ensemble(networks)

    def _coded_policy(self, state: Any) -> Policy:
        """The policy of the agent's state on the codes."""
        settings, agent = self.settings, self.settings.agent
        behaviour = agent if isinstance(agent, BC) else settings.prior
        prior = self.prior or self._own_prior(state)
        clones: Any = agent
        actor: Any = agents.together([clones.actor(own) for own in states_of(self.learner, state)])
        described = {
            "kind": "quantized",
            "quantizer": QUANTIZERS.describe(settings.quantizer),
            "prior": AGENTS.describe(behaviour),
            "agent": AGENTS.describe(agent),
            "members": settings.members,
        }
        controller = CodeController(ActionQuantizer(self.codec, prior), actor)
        ways = settings.evaluation
        return self._policy(controller, described, ways.act, ways.act_temperature)

    def _policy(
        self, controller: Controller, described: dict[str, Any], act: Act, temperature: float
    ) -> Policy:
        settings, log = self.settings, self.features.log
        sizes = {
            "features": self.features.training.features.shape[1],
            "chunk_action_size": self.features.training.actions.shape[1],
        }
        return Policy(
            controller=controller,
            observation_scaling=self.features.scaling,
            action_range=log.action_range,
            observation_size=log.observations.shape[1],
            chunk=settings.features.chunk,
            action_horizon=settings.evaluation.action_horizon,
            default_act=act,
            act_temperature=temperature,
            environment=log.environment,
            description=sizes | described,
        )


def plain_cloning(agent: Any) -> ContinuousBC:
    """The baseline of an agent: continuous BC of the same size, with the same number of steps."""
    same = ("steps", "batch_size", "hidden", "precision")
    return ContinuousBC(**{name: getattr(agent, name) for name in same if hasattr(agent, name)})


class HeldOutError(Hook):
    """With patience, stops the quantizer when its held-out error stops falling."""

    def __init__(self, learning: Learning):
        self.quantizer, self.held_out = learning.settings.quantizer, learning.features.held_out
        self.run = learning.run
        if self.quantizer.patience and self.held_out is None:
            learning.reporter.say(
                "note: no episode is held out, so --quantizer.patience has no effect"
            )

    def after(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        if self.quantizer.patience and self.held_out is not None:
            error = reconstruction_error(self.quantizer.codec(state), self.held_out)
            metrics[HELD_OUT_ERROR] = error

    def stops(self) -> bool:
        if not self.quantizer.patience:
            return False
        records = [r for r in self.run.history("metrics") if HELD_OUT_ERROR in r]
        errors = [(record["step"], record[HELD_OUT_ERROR]) for record in records]
        return has_plateaued(errors, patience=self.quantizer.patience)


class DyingCodes(Hook):
    """Warns once per session if codes are no longer used."""

    def __init__(self, learning: Learning):
        self.quantizer, self.reporter = learning.settings.quantizer, learning.reporter
        self.said = False

    def after(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        codes = self.quantizer.codec(state).num_codes
        note = dying_note(metrics, step, steps=self.quantizer.steps, codes=codes)
        if note and not self.said:
            self.reporter.say(f"note: {note}")
            self.said = True


class Divergence(Hook):
    """Stops a stage if losses or weights are not finite; warns once if losses explode."""

    def __init__(self, name: str, reporter: Reporter):
        self.name, self.reporter = name, reporter
        self.lowest: dict[str, float] = {}
        self.warned = False

    def after(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong or not all_finite(state):
            what = f"{wrong[0]} is {metrics[wrong[0]]}" if wrong else "its weights are not finite"
            raise Diverged(f"{self.name} diverged at step {step}: {what}; {CAUSES}")
        for name in set(LOSSES) & metrics.keys():
            lowest = self.lowest[name] = min(metrics[name], self.lowest.get(name, metrics[name]))
            if metrics[name] > EXPLODED * max(lowest, 1.0) and not self.warned:
                self.reporter.say(
                    f"warning: {name} of {self.name} is {metrics[name]:.3g} at step {step}, "
                    f"{lowest:.3g} before: training may be diverging; {CAUSES}"
                )
                self.warned = True


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def all_finite(tree: Any) -> bool:
    """Whether a pytree contains neither NaN nor infinity."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return not leaves or bool(_all_finite(leaves))


class KeepPolicies(Hook):
    """Keeps policies of earlier steps, in policies/STEP."""

    def __init__(self, path: Path, every: int, steps: int, policy: Callable[[Any], Policy]):
        self.path, self.every, self.steps, self.policy = path, every, steps, policy
        self.pause = every

    def after(self, step: int, state: Any, metrics: dict[str, float]) -> None:
        if step % self.every == 0 and step < self.steps:
            save_policy(self.policy(state), self.path / "policies" / str(step))


def train_stage(
    stage: Stage,
    *,
    run: RunFolder,
    reporter: Reporter,
    key: Key[Array, ""],
    log_every: int,
    evaluate: Callable[[Policy, str, int], object],
    evaluate_every: int | None,
    spent: Callable[[], Mapping[str, Any]],
) -> tuple[int, Any]:
    """(step, state) at the end of the stage, trained from its checkpoint if there is one.

    If the stage has a policy, `evaluate(policy, stage, step)` is called at its evaluation steps and
    at its end. `spent` gives the times that a checkpoint records.
    """
    algorithm, key = stage.algorithm, jax.random.fold_in(key, stage.number)
    every = evaluate_every if stage.policy is not None else None
    hooks = [*stage.hooks, Divergence(stage.name, reporter)]
    pauses = [log_every, *(p for p in (every, *(hook.pause for hook in hooks)) if p)]
    data = stage.data()
    with contextlib.closing(data) if isinstance(data, engine.Stream) else contextlib.nullcontext():
        resumed = run.load_checkpoint(stage.name, lambda: engine.begin(algorithm, key, data))
        step, state = resumed or (0, engine.begin(algorithm, key, data))
        training = engine.intervals(
            algorithm, data, key, pauses=pauses, state=state, first_step=step
        )
        while step < algorithm.steps and not any(hook.stops() for hook in hooks):
            due, saved = False, time.perf_counter()
            with reporter.stage(stage.name, algorithm.steps, done=step) as update:
                for step, state, metrics in training:
                    for hook in hooks:
                        hook.after(step, state, metrics)
                    run.append("metrics", {"stage": stage.name, "step": step, **metrics})
                    due = bool(every and step % every == 0)
                    if interrupts.asked() and not due:
                        run.save_checkpoint(stage.name, step, state, spent=spent())
                    update(step, _brief(metrics))
                    if due or any(hook.stops() for hook in hooks):
                        break
                    if time.perf_counter() - saved > CHECKPOINT_PERIOD:
                        run.save_checkpoint(stage.name, step, state, spent=spent())
                        saved = time.perf_counter()
            if stage.policy is not None and (due or (every and step == algorithm.steps)):
                evaluate(stage.policy(state), stage.name, step)
            run.save_checkpoint(stage.name, step, state, spent=spent())
    return step, state


def _brief(metrics: Mapping[str, float]) -> str:
    told = [name for name in HEADLINES if name in metrics] or sorted(metrics)
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in told[:2])
