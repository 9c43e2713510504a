"""The loop: rounds of episodes and updates, with evaluations in between."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saqrl import nn
from saqrl.datasets import EnvironmentSpec, Transitions
from saqrl.policy.rollout import Arena
from saqrl.policy.storage import load_policy, save_policy
from saqrl.training import engine, interrupts
from saqrl.training.evaluation import open_arena
from saqrl.training.online.adapting import Adapting
from saqrl.training.online.address import ROBOT
from saqrl.training.online.codebook import Codebook
from saqrl.training.online.exploring import Exploring, exploring_seed
from saqrl.training.online.replay import State, as_log
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.preparation import prepare
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunError, RunFolder, policy_folder, read_config
from saqrl.training.settings import Settings
from saqrl.training.stages import CHECKPOINT_PERIOD, Divergence, Learning, train_stage
from saqrl.training.train import Session

ONLINE = "online"
# Folded into the run's key for the updates; no stage of a training has this number.
NUMBER = 4
# If no episode has ended in this many steps of all lanes, the environment never ends one.
LONGEST = 20_000
NOTHING: contextlib.nullcontext[None] = contextlib.nullcontext()


class Online(Session):
    """A session that fine-tunes another run in its environment."""

    def __init__(
        self,
        settings: Settings,
        asked: OnlineSettings,
        data: Transitions,
        run: RunFolder,
        reporter: Reporter,
        robot: Arena | None = None,
    ):
        """`robot`, if given, plays instead of an environment."""
        super().__init__(settings, data, run, reporter)
        if robot is not None:
            self.environment = EnvironmentSpec(ROBOT)
        if self.environment is None:
            raise ValueError("fine-tuning needs an environment: give one with --env")
        self.asked, self.robot = asked, robot
        self.lanes = asked.lanes if robot is None else 1
        self.begun = read_config(run.path)["finetune"]
        self.parent = Path(self.begun["parent"])
        self._require_same_scaling()
        self.learning = Learning(settings, self.features, run, reporter)
        self.agent: Any = replace(settings.agent, schedule="constant")  # type: ignore[type-var]

    def _require_same_scaling(self) -> None:
        """ValueError if an earlier version fitted the run's scaling by another rule."""
        ours, theirs = self.features.scaling, load_policy(policy_folder(self.parent))
        scaling, known = theirs.observation_scaling, self.features.log.action_range
        pairs = [(ours.mean, scaling.mean), (ours.inverse_scale, scaling.inverse_scale)]
        pairs += [(known.low, theirs.action_range.low), (known.high, theirs.action_range.high)]
        if not all(np.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in pairs):
            raise ValueError(
                f"{self.parent} was trained with another scaling of observations or actions "
                "than this version of saqrl computes from the same data: train it again"
            )

    def run_all(self) -> dict[str, Any]:
        """Train up to the last step, score the policy, write result.json and return it."""
        self.codebook = self._begun_codebook()
        if self.asked.noise is None and self.asked.codebook == "grow":
            far = "95 % of recorded actions are at most this far from their codes"
            self.reporter.say(f"noise {self.codebook.noise:.3g}: {far} (--noise)")
        with self.robot or open_arena(self.environment) as self.arena:
            agent, learned = self._values()
            state = self._play(self.codebook.begin(self._begun_constant(agent)))
            policy = self.codebook.policy(state)
            save_policy(policy, self.run.path / "policy")
            scores = self._scores(policy, ONLINE, int(state.steps))
        steps = self.begun["gradient_steps"] + learned + int(state.updates)
        summary = self._summary(scores, steps) | {"finetune": self._told(state)}
        return self._finished(summary, self.codebook.quantizer(state))

    def _begun_codebook(self) -> Codebook:
        """The codes of the parent run."""
        for stage, (theirs, prefix, *first) in self.begun["adopted"].items():
            self.run.adopt(self.parent, theirs, own=stage, prefix=prefix, first=any(first))
        self.learning.states["quantizer"] = self._kept("quantizer")
        self.learning.states["prior"] = nn.TrainState(self._kept("prior"), ())
        kind = Codebook if self.asked.codebook == "frozen" else Adapting
        return kind(self.learning, self.asked, self.agent)

    def _kept(self, name: str) -> Any:
        """The final state of a stage of the parent run; for the prior, its network."""
        stage = self.learning.stage(name)
        algorithm, data = stage.algorithm, stage.data()

        def skeleton() -> Any:
            state = engine.begin(algorithm, jax.random.key(self.settings.seed), data)
            return algorithm.prior(state) if name == "prior" else state

        with contextlib.closing(data) if isinstance(data, engine.Stream) else NOTHING:
            found = self.run.load_checkpoint(name, skeleton)
        if found is None:
            raise RunError(
                f"{self.run.path} has no {name} any more: fine-tune again with another --out"
            )
        return found[1]

    def _values(self) -> tuple[Any, int]:
        """The agent's state, and the gradient steps spent to learn it from the run's data."""
        if "agent" in self.begun["adopted"]:
            return self._kept("agent"), 0
        name, steps = self.settings.agent_name, self.asked.value_steps
        self.reporter.say(f"first, {name} learns values from the data ({steps:,} gradient steps)")
        step, state = train_stage(
            self.learning.stage("agent"),
            run=self.run,
            reporter=self.reporter,
            key=jax.random.key(self.settings.seed),
            log_every=self.settings.output.log_every,
            evaluate=self._evaluate,
            evaluate_every=None,
            spent=self._spent,
        )
        return state, step

    def _begun_constant(self, agent: Any) -> Any:
        """The agent's state; if its learning rate had decayed, with new optimiser moments."""
        if self.agent.schedule == getattr(self.settings.agent, "schedule", None):
            return agent
        parts = {"is_leaf": lambda part: isinstance(part, nn.TrainState)}
        return jax.tree.map(self._begun_anew, agent, **parts)

    def _begun_anew(self, part: Any) -> Any:
        """The state with new optimiser moments for every member."""
        if not isinstance(part, nn.TrainState):
            return part
        optimiser = self.agent.optimiser()
        if self.settings.members == 1:
            return nn.init_state(part.model, optimiser)
        return jax.vmap(lambda model: nn.init_state(model, optimiser))(part.model)

    def _play(self, state: State) -> State:
        """Play and learn up to the last environment step."""
        asked, run, period = self.asked, self.run, self.asked.evaluation_period
        if found := run.load_checkpoint(ONLINE, lambda: state):
            state = found[1]
        key = jax.random.fold_in(jax.random.key(self.settings.seed), NUMBER)
        data = self.codebook.data()
        watch = Divergence(ONLINE, self.reporter)
        with contextlib.closing(data) if isinstance(data, engine.Stream) else NOTHING:
            trainer = engine.Trainer(self.codebook.learner, data, key)
            if self._unscored(int(state.steps)):
                self._evaluate(self.codebook.policy(state), ONLINE, int(state.steps))
                self._save(state)
            while int(state.steps) < asked.steps:
                saved, due = time.perf_counter(), False
                words = {"unit": "environment steps", "done": int(state.steps)}
                with self.reporter.stage(ONLINE, asked.steps, **words) as update:  # type: ignore[arg-type]
                    while int(state.steps) < asked.steps and not due:
                        first = int(state.steps)
                        try:
                            log = self._round(state, update)
                        except BaseException:
                            self._save(state)
                            raise
                        state, metrics = self._learned(state, log, trainer)
                        steps = int(state.steps)
                        watch.after(steps, (state.agent, state.codebook), metrics)
                        run.append("metrics", {"stage": ONLINE, "step": steps, **metrics})
                        due = steps // period > first // period
                        late = time.perf_counter() - saved > CHECKPOINT_PERIOD
                        late |= self.robot is not None  # a robot's episodes are expensive
                        if not due and (late or interrupts.asked()):
                            self._save(state)
                            saved = time.perf_counter()
                if due:
                    if self.robot is not None:  # a robot's evaluation takes long
                        self._save(state)
                    self._evaluate(self.codebook.policy(state), ONLINE, int(state.steps))
                self._save(state)
        return state

    def _unscored(self, steps: int) -> bool:
        """Whether the first evaluation, or one that a kill prevented, is due."""
        scored = [r for r in self.run.history("evaluations") if r["stage"] == ONLINE]
        period = self.asked.evaluation_period
        return not scored or steps // period > scored[-1]["step"] // period

    def _save(self, state: State) -> None:
        self.run.save_checkpoint(ONLINE, int(state.steps), state, spent=self._spent())

    def _round(self, state: State, update: Callable[[int, str], None]) -> Transitions:
        """One episode per lane. ValueError if one never ends or a reward is not finite."""
        asked, policy = self.asked, self.codebook.policy(state)
        if int(state.steps) >= asked.warm_up:
            ways = {"temperature": asked.explore_temperature, "noise": self.codebook.noise}
            policy = replace(Exploring.of(policy, **ways), default_act="sample")
        first, ended, since, ticks = int(state.episodes), 0, 0, 0

        def progress(done: int) -> None:
            nonlocal ended, since, ticks
            since, ended, ticks = 0 if done > ended else since + 1, done, ticks + 1
            if since > LONGEST:
                raise ValueError(
                    f"no episode of {self._name} ended within {LONGEST:,} steps: set a limit, "
                    """for example --env-kwargs '{"max_episode_steps": 200}'"""
                )
            update(min(int(state.steps) + ticks * self.lanes, asked.steps), "")

        played = self.arena.play(
            policy,
            episodes=self.lanes,
            act=policy.default_act,
            seed=exploring_seed(self.settings.seed, first, self.lanes),
            keep_steps=True,
            progress=progress,
        )
        assert played.steps is not None
        for number, steps in enumerate(played.steps, first):
            if len(wrong := np.flatnonzero(~np.isfinite(steps.rewards))):
                raise ValueError(
                    f"{self._name} gave the reward {steps.rewards[wrong[0]]} in step "
                    f"{wrong[0]} of episode {number}: what was learned before is kept; "
                    "correct the environment, then resume"
                )
        log = as_log(played.steps, self.features.log)
        return log if played.successes is None else replace(log, successes=played.successes)

    @property
    def _name(self) -> str:
        assert self.environment is not None
        return self.environment.id

    def _learned(
        self, state: State, log: Transitions, trainer: engine.Trainer
    ) -> tuple[State, dict[str, float]]:
        """After a round: add its decisions to the replay, then run the updates that are due."""
        asked, features = self.asked, self.features
        rows = prepare(log, self.settings, features.scaling, features.factor)
        metrics = {
            "episodes": float(int(state.episodes) + log.num_episodes),
            "return_mean": float(log.episode_returns.mean()),
        }
        if log.successes is not None:
            metrics["success_rate"] = float(log.successes.mean())
        steps, episodes = state.steps + len(log), state.episodes + log.num_episodes
        state = replace(state, steps=steps, episodes=episodes)
        state, of_codes = self.codebook.after(state, rows, len(log))
        metrics |= of_codes
        done = int(state.updates)
        wanted = int(asked.updates_per_step * max(int(state.steps) - asked.warm_up, 0))
        if wanted > done:
            interval = trainer.advance(state, done, wanted)
            state, metrics = interval.state, metrics | interval.metrics
        return state, metrics

    def _told(self, state: State) -> dict[str, Any]:
        """For result.json: how much was played, and how well the codes covered new data."""
        played = [r for r in self.run.history("metrics") if r["stage"] == ONLINE]
        scored = [r for r in self.run.history("evaluations") if r["stage"] == ONLINE]
        seconds = self._spent()["seconds"].get(ONLINE, 0)
        return {
            "parent": str(self.parent),
            "codebook": self.asked.codebook,
            "environment_steps": int(state.steps),
            "episodes": int(state.episodes),
            "updates": int(state.updates),
            "environment_steps_per_second": round(int(state.steps) / max(seconds, 1e-3), 1),
            "before": scored[0] if scored else None,
            "codes": self.codebook.told(state, played),
        }
