"""The whole path once: transitions, codes, agent, policy, scores, in one run folder."""

import errno
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saqrl.agents import AGENTS
from saqrl.agents.bc import BC
from saqrl.arrays import write_atomically
from saqrl.baselines import BASELINES
from saqrl.baselines.bc import ContinuousBC
from saqrl.datasets import EnvironmentSpec, Transitions, load_dataset
from saqrl.datasets.scaling import ObservationScaling
from saqrl.experiment import engine
from saqrl.experiment.codebooks import codebook_notes, has_plateaued, reconstruction_error
from saqrl.experiment.evaluation import NO_SCORE, check_environment, evaluate, open_arena
from saqrl.experiment.loggers import open_loggers
from saqrl.experiment.preparation import (
    Prepared,
    encode_all,
    fit_scaling,
    prepare,
    quantizer_report,
    reward_factor,
    split,
)
from saqrl.experiment.progress import Reporter
from saqrl.experiment.run import Run, read_config, read_result, refuse_existing
from saqrl.experiment.settings import Settings
from saqrl.experiment.versions import versions
from saqrl.policy import CodeController, ContinuousController, Controller, Policy
from saqrl.policy.storage import save_policy
from saqrl.quantizers import QUANTIZERS, ActionQuantizer

# Seconds of work that a kill may cost at most, besides the interval that it hits.
CHECKPOINT_PERIOD = 20.0
DEMONSTRATIONS = "demonstrations.npz"
# Metrics that the progress bar shows first.
HEADLINES = ("reconstruction", "cross_entropy", "squared_error", "bellman_error", "perplexity")


def train(
    settings: Settings,
    out: Path,
    *,
    resume: bool,
    reporter: Reporter,
    loggers: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the settings in the folder `out` and return the summary that result.json holds.

    A run that has finished is left as it is. `loggers` names what else the histories are written
    to; those that a resumed run has used go on.

    ValueError, FileNotFoundError or ImportError where the settings, the data or the environment
    do not fit together; a new folder is removed again then. OSError where the disk is full: what
    the run has done stays, to be resumed.
    """
    if resume and (out / "result.json").is_file():
        reporter.say(f"{out} has finished already: this is its result")
        return read_result(out)
    follow = open_loggers(loggers, out)
    config = {"settings": settings.to_json(), "versions": versions(settings.env)}
    collects = settings.dataset is None
    if not resume:
        refuse_existing(out)
    if resume:
        run = Run.open(out, reporter.say)
        _say_other_versions(read_config(out)["versions"], config["versions"], reporter)
    else:
        if not collects:  # read the data before anything is written
            data = _load(settings, reporter)
        run = Run.create(out, config)
    try:
        run.tell(follow)
        if collects:
            settings = replace(settings, dataset=_collect(settings, run, reporter))
        if resume or collects:
            data = _load(settings, reporter)
        return _Training(settings, data, run, reporter).run_all()
    except (ValueError, FileNotFoundError, ImportError):
        if not resume:
            run.discard()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"no space left; free some, then go on with: saqrl train --out {out} --resume"
        raise OSError(error.errno, text, error.filename or str(out)) from error
    finally:
        run.close()


def _say_other_versions(
    then: Mapping[str, str], now: Mapping[str, str], reporter: Reporter
) -> None:
    """The same numbers to the last bit are promised only where the same libraries go on."""
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name]:
            reporter.say(
                f"note: the run was begun with {name} {then[name]}, this is {now[name]}: it goes "
                "on, but its numbers may differ from an uninterrupted run's"
            )


def saved_settings(path: Path) -> Settings:
    """The settings of a run folder; RunError or ValueError where there are none to read."""
    return Settings.from_json(read_config(path)["settings"])


class _Training:
    """One pass through the stages; what is on disk already is not done again."""

    def __init__(self, settings: Settings, data: Transitions, run: Run, reporter: Reporter):
        self.settings, self.data, self.run, self.reporter = settings, data, run, reporter
        self.key = jax.random.key(settings.seed)
        self.gradient_steps: dict[str, int] = {}
        self.scaling: ObservationScaling = fit_scaling(data, settings)
        factor = reward_factor(data, settings.reward_scale)
        training, held_out = split(data, settings)
        self.training: Prepared = prepare(training, settings, self.scaling, factor)
        self.held_out: Prepared | None = None
        if held_out is not None:
            self.held_out = prepare(held_out, settings, self.scaling, factor)
        codes = settings.quantizer.codes
        if settings.actions == "quantized" and codes > len(training):
            raise ValueError(
                f"quantizer.codes is {codes} but there are only {len(training)} transitions to "
                f"train on: choose at most {len(training)} codes"
            )
        if self.environment is not None:
            check_environment(self.environment, data)
            self.arena = open_arena(self.environment)

    @property
    def environment(self) -> EnvironmentSpec | None:
        return self.data.environment

    def run_all(self) -> dict[str, Any]:
        quantized = self.settings.actions == "quantized"
        policy = self._quantized() if quantized else self._continuous(self.settings.agent, "agent")
        save_policy(policy, self.run.path / "policy")
        scores = self._final_scores(policy, "agent")
        summary = {
            "run": str(self.run.path),
            "agent": self.settings.agent_name,
            "actions": self.settings.actions,
            "dataset": self.settings.dataset,
            "env": self.environment and self.environment.id,
            "seed": self.settings.seed,
            **scores,
            "gradient_steps": sum(self.gradient_steps.values()),
        }
        if self.settings.baseline:
            plain = ContinuousBC(steps=self.settings.agent.steps)
            scores = self._final_scores(self._continuous(plain, "baseline"), "baseline")
            summary["baseline"] = {"agent": "bc", "actions": "continuous", **scores}
        summary["quantizer"] = self._report() if quantized else None
        summary["seconds"] = {name: round(s, 2) for name, s in self.reporter.seconds.items()}
        summary["wall_seconds"] = round(self.reporter.elapsed, 2)
        write_atomically(self.run.path / "result.json", json.dumps(summary, indent=2).encode())
        return summary

    def _quantized(self) -> Policy:
        settings = self.settings
        if settings.quantizer.patience and self.held_out is None:
            self.reporter.say("note: too few episodes to hold any out, so patience has no effect")
        state = self._stage("quantizer", settings.quantizer, self.training.action_batch(), 0)
        codec = settings.quantizer.codec(state)
        codes = encode_all(codec, self.training.action_batch())
        for note in codebook_notes(np.asarray(codes), codec.num_codes):
            self.reporter.say(f"note: {note}")
        bc = settings.agent if isinstance(settings.agent, BC) else None
        coded = self.training.coded(codes, codec.num_codes, None)
        if bc is None:
            prior = settings.prior.prior(self._stage("prior", settings.prior, coded, 1))
            quantizer = ActionQuantizer(codec, prior)
            coded = self.training.coded(codes, codec.num_codes, prior)

            def policy_of(state: Any) -> Policy:
                actor = settings.agent.actor(state)
                return self._policy(CodeController(quantizer, actor))  # type: ignore[arg-type]
        else:

            def policy_of(state: Any) -> Policy:
                quantizer = ActionQuantizer(codec, bc.prior(state))
                return self._policy(CodeController(quantizer, bc.actor(state)))

        policy = policy_of(self._stage("agent", settings.agent, coded, 2, policy_of))
        assert isinstance(policy.controller, CodeController)
        self.quantizer = policy.controller.quantizer
        return policy

    def _continuous(self, agent: Any, stage: str) -> Policy:
        def policy_of(state: Any) -> Policy:
            return self._policy(ContinuousController(agent.actor(state)), agent)

        data = self.training.continuous()
        return policy_of(self._stage(stage, agent, data, 3, policy_of))

    def _policy(self, controller: Controller, baseline: Any = None) -> Policy:
        settings = self.settings
        described: dict[str, Any] = {
            "features": self.training.features.shape[1],
            "chunk_action_size": self.training.actions.shape[1],
        }
        if baseline is None:
            described |= {
                "kind": "quantized",
                "quantizer": QUANTIZERS.describe(settings.quantizer),
                "prior": AGENTS.describe(
                    settings.agent if isinstance(settings.agent, BC) else settings.prior
                ),
                "agent": AGENTS.describe(settings.agent),
            }
        else:
            described |= {"kind": "continuous", "agent": BASELINES.describe(baseline)}
        return Policy(
            controller=controller,
            observation_scaling=self.scaling,
            action_range=self.data.action_range,
            observation_size=self.data.observations.shape[1],
            chunk=settings.chunk,
            execute=settings.execute,
            default_act=(
                settings.act if baseline in (None, settings.agent) else baseline.default_act
            ),
            environment=self.environment,
            description=described,
        )

    def _stage(
        self, name: str, algorithm: Any, data: Any, number: int, policy_of: Any = None
    ) -> Any:
        """Train one algorithm to its end, from its checkpoint if there is one."""
        key = jax.random.fold_in(self.key, number)
        resumed = self.run.load_checkpoint(name, lambda: engine.initialise(algorithm, key, data))
        first, state = resumed or (0, None)
        every = self.settings.eval_every
        evaluates = policy_of is not None and every is not None and self.environment is not None
        pauses = [self.settings.log_every, *([every] if evaluates and every else [])]
        saved = time.perf_counter()
        training = engine.intervals(
            algorithm, data, key, pauses=pauses, state=state, first_step=first
        )
        while first < algorithm.steps and not self._learned(name):
            with self.reporter.stage(name, algorithm.steps, done=first) as update:
                for first, state, metrics in training:
                    metrics |= self._held_out_error(name, state)
                    self.run.append("metrics", {"stage": name, "step": first, **metrics})
                    update(first, _brief(metrics))
                    due = evaluates and every is not None and first % every == 0
                    if due or self._learned(name):
                        break
                    if time.perf_counter() - saved > CHECKPOINT_PERIOD:
                        self.run.save_checkpoint(name, first, state)
                        saved = time.perf_counter()
            if evaluates and (first == algorithm.steps or (every and first % every == 0)):
                self._evaluate(policy_of(state), name, first)
            self.run.save_checkpoint(name, first, state)
            saved = time.perf_counter()
        self.gradient_steps[name] = first
        return state

    def _held_out_error(self, stage: str, state: Any) -> dict[str, float]:
        """Of the quantizer, where a patience asks for it."""
        quantizer = self.settings.quantizer
        if stage != "quantizer" or not quantizer.patience or self.held_out is None:
            return {}
        error = reconstruction_error(quantizer.codec(state), self.held_out)
        return {"held_out_reconstruction": error}

    def _learned(self, stage: str) -> bool:
        """Whether the quantizer's held-out error, as recorded, has stopped falling."""
        patience = self.settings.quantizer.patience
        if stage != "quantizer" or not patience:
            return False
        name = "held_out_reconstruction"
        records = [r for r in self.run.history("metrics") if r["stage"] == stage and name in r]
        return has_plateaued([(r["step"], r[name]) for r in records], patience=patience)

    def _evaluate(self, policy: Policy, stage: str, step: int) -> dict[str, Any]:
        assert self.environment is not None
        record = evaluate(
            policy,
            self.arena,
            self.environment.id,
            episodes=self.settings.eval_episodes,
            act=policy.default_act,
            seed=0,
            reporter=self.reporter,
        )
        record = {"stage": stage, "step": step, **record}
        self.run.append("evaluations", record)
        return record

    def _final_scores(self, policy: Policy, stage: str) -> dict[str, Any]:
        """The last evaluation's scores, made now unless the stage has made them.

        Where there were three or more, the means over the last three stand beside them, as the
        evaluation protocol wants it; a best evaluation is never reported.
        """
        if self.environment is None:
            return {"act": policy.default_act, "episodes": 0, **NO_SCORE}
        steps = self.gradient_steps[stage]
        seen = [r for r in self.run.history("evaluations") if r["stage"] == stage]
        if not seen or seen[-1]["step"] != steps:
            seen.append(self._evaluate(policy, stage, steps))
        scores = {k: v for k, v in seen[-1].items() if k not in ("stage", "step")}
        if len(seen) >= 3:
            scores["mean_of_last_three"] = {
                name: float(np.mean([record[name] for record in seen[-3:]]))
                for name in NO_SCORE
                if seen[-1][name] is not None
            }
        return scores

    def _report(self) -> dict[str, Any]:
        """Of the quantizer, on held-out episodes where there are some."""
        shown = self.held_out or self.training
        report = quantizer_report(self.quantizer, shown, self.data.action_range.half_width)
        where = "held-out episodes" if self.held_out else "training episodes (too few to hold out)"
        return {"measured_on": where, **report}


def _load(settings: Settings, reporter: Reporter) -> Transitions:
    assert settings.dataset is not None
    with reporter.stage("data", 1, unit="file") as update:
        data = load_dataset(
            settings.dataset,
            angles=settings.angles,
            episodes=settings.data_episodes,
            environment=settings.env,
            options=settings.reading,
        )
        update(1, "")
    for note in data.provenance.get("notes", ()):  # type: ignore[attr-defined]
        reporter.say(f"note: {note}")
    return data


def _collect(settings: Settings, run: Run, reporter: Reporter) -> str:
    """The SPEC of demonstrations made by the scripted expert of `env`, in the run's folder."""
    from saqrl.datasets.collect import collect, save

    assert settings.env is not None
    path = run.path / DEMONSTRATIONS
    if not path.exists():
        count = settings.demonstrations
        with reporter.stage("collect", count, unit="demonstrations") as update:
            arrays = collect(
                settings.env,
                style="expert",
                episodes=count,
                seed=settings.seed,
                progress=lambda done, total: update(done, ""),
            )
            save(path, arrays)
    return f"npz:{path}"


def _brief(metrics: Mapping[str, float]) -> str:
    told = [name for name in HEADLINES if name in metrics] or sorted(metrics)
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in told[:2])
