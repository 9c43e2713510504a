"""The whole path once: transitions, codes, agent, policy, scores, in one run folder."""

import contextlib
import errno
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saqrl.agents import AGENTS, CodedTransitions
from saqrl.agents.bc import BC
from saqrl.arrays import write_atomically
from saqrl.baselines import BASELINES
from saqrl.baselines.bc import ContinuousBC
from saqrl.datasets import EnvironmentSpec, Transitions, load_dataset
from saqrl.datasets.scaling import ObservationScaling
from saqrl.nn import MLP, CriticTraining
from saqrl.policy import CodeController, ContinuousController, Controller, Policy
from saqrl.policy.storage import save_policy
from saqrl.quantizers import QUANTIZERS, ActionQuantizer
from saqrl.training import engine
from saqrl.training.codebook_health import (
    codebook_notes,
    dying_note,
    has_plateaued,
    reconstruction_error,
)
from saqrl.training.evaluation import (
    NO_SCORE,
    Evaluation,
    check_environment,
    evaluate_together,
    open_arena,
)
from saqrl.training.features import (
    Prepared,
    action_error,
    encode_all,
    fit_scaling,
    part_rows,
    prepare,
    quantizer_report,
    reward_factor,
    split,
)
from saqrl.training.loggers import open_loggers
from saqrl.training.memory import require_memory
from saqrl.training.progress import Beside, Reporter
from saqrl.training.run_folder import Run, read_config, read_result, refuse_existing
from saqrl.training.settings import Settings
from saqrl.training.stream import Parts
from saqrl.training.versions import versions

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
    run = _run(settings, out, resume, reporter, loggers, _Loader(reporter))
    return drive([run], reporter)[0]


def train_seeds(
    settings: Settings,
    out: Path,
    *,
    seeds: Sequence[int],
    resume: bool,
    reporter: Reporter,
    loggers: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The same settings with several seeds in one program: runs OUT/seedN and their summaries.

    Each run is the one that its seed alone would have made (`engine.Cohort` says to what
    tolerance). Raises as `train` does, and ValueError where so many do not fit into memory.
    """
    if not resume and any(out.glob("[!.]*")):  # what was killed before its first seed is empty
        refuse_existing(out)
    loader = _Loader(reporter, copies=len(seeds))
    runs: list[Generator[Request, Any, dict[str, Any]]] = []
    folders = {seed: out / f"seed{seed}" for seed in seeds}
    # One shows its stages for all: they do the same things at the same time.
    going_on = [seed for seed in seeds if not (folders[seed] / "result.json").is_file()]
    shown = (going_on or seeds)[0]
    for seed, folder in folders.items():
        told = reporter if seed == shown else Beside(reporter, f"seed {seed}")
        own = replace(settings, seed=seed)
        resumes = resume and folder.exists()
        runs.append(_run(own, folder, resumes, told, loggers, loader, seeds))
    return drive(runs, reporter)


Request = engine.Advance | Evaluation


def drive(
    trainings: Sequence[Generator[Request, Any, dict[str, Any]]], reporter: Reporter
) -> list[dict[str, Any]]:
    """Run trainings to their ends side by side, answering their equal requests together.

    Those that are behind are answered first, so that seeds which were cut, or learned their codes,
    at different steps come together again. What goes wrong is raised inside every one of them, so
    that each leaves its folder in order.
    """
    cohort = engine.Cohort()
    results: dict[int, dict[str, Any]] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(trainings)))
    waiting: dict[int, Request] = {}
    try:
        while answers:
            for number, answer in answers.items():
                try:
                    waiting[number] = trainings[number].send(answer)
                except StopIteration as done:
                    results[number] = done.value
            steps = _hindmost(waiting)
            plays = {n: asked for n, asked in waiting.items() if isinstance(asked, Evaluation)}
            answers = dict(zip(steps, cohort.advance(list(steps.values())), strict=True))
            played = evaluate_together(list(plays.values()), reporter)
            answers |= dict(zip(plays, played, strict=True))
            waiting = {n: asked for n, asked in waiting.items() if n not in answers}
    except BaseException as error:
        for training in reversed(trainings):  # the first has made the folder around them all
            with contextlib.suppress(BaseException):
                training.throw(error)
        raise
    return [results[number] for number in range(len(trainings))]


def _hindmost(waiting: Mapping[int, Request]) -> dict[int, engine.Advance]:
    """Of those that wait to train the same algorithm, the ones with the fewest steps."""
    asked = {n: waiting[n] for n in sorted(waiting)}
    steps = {n: request for n, request in asked.items() if isinstance(request, engine.Advance)}
    least: dict[engine.Algorithm, int] = {}
    for request in steps.values():
        step = request.first_step
        least[request.algorithm] = min(step, least.get(request.algorithm, step))
    return {n: each for n, each in steps.items() if each.first_step == least[each.algorithm]}


class _Loader:
    """Reads the data of runs that differ in their seed only once."""

    def __init__(self, reporter: Reporter, copies: int = 1):
        self._reporter, self._copies = reporter, copies
        self._known: dict[str | None, Transitions] = {}

    def __call__(self, settings: Settings) -> Transitions:
        name = settings.dataset
        if name not in self._known:
            data = _load(settings, self._reporter)
            require_memory(settings, data, copies=self._copies)
            self._known[name] = data
        return self._known[name]


def _run(
    settings: Settings,
    out: Path,
    resume: bool,
    reporter: Reporter,
    loggers: Sequence[str],
    load: Callable[[Settings], Transitions],
    seeds: Sequence[int] | None = None,
) -> Generator[Request, Any, dict[str, Any]]:
    """`train`, as a generator of what it wants to be computed."""
    if resume and (out / "result.json").is_file():
        reporter.say(f"{out} has finished already: this is its result")
        return read_result(out)
    follow = open_loggers(loggers, out)
    config: dict[str, Any] = {
        "settings": settings.to_json(),
        "versions": versions(settings.env),
    }
    if seeds is not None:
        config["seeds"] = list(seeds)
    collects = settings.dataset is None
    if resume:
        _say_other_versions(read_config(out)["versions"], config["versions"], reporter)
        run = Run.open(out, reporter.say)
    else:
        refuse_existing(out)
        if not collects:  # read the data before anything is written
            data = load(settings)
        run = Run.create(out, config)
    try:
        run.tell(follow)
        if collects:
            settings = replace(settings, dataset=_collect(settings, run, reporter))
        if resume or collects:
            data = load(settings)
        training = _Training(settings, data, run, reporter)
        try:
            return (yield from training.run_all())
        finally:
            training.close()
    except (ValueError, FileNotFoundError, ImportError):
        if not resume:
            run.discard()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        whole = out if seeds is None else out.parent
        text = f"no space left; free some, then go on with: saqrl train --out {whole} --resume"
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
        self.warned_of_codes = False
        self.scaling: ObservationScaling = fit_scaling(data, settings)
        factor = reward_factor(data, settings.reward_scale)
        training, held_out = split(data, settings)
        self.held_out_log = held_out
        self.training: Prepared = prepare(training, settings, self.scaling, factor)
        self.held_out: Prepared | None = None
        if held_out is not None:
            self.held_out = prepare(held_out, settings, self.scaling, factor)
        rows = part_rows(data, settings)
        self.parts = (
            None if rows is None else Parts(data, settings, self.scaling, factor, rows=rows)
        )
        codes = settings.quantizer.codes
        if settings.actions == "quantized" and codes > len(training):
            raise ValueError(
                f"quantizer.codes is {codes} but there are only {len(training)} transitions to "
                f"train on: choose at most {len(training)} codes"
            )
        if self.environment is not None:
            check_environment(self.environment, data)
            self.arena = open_arena(self.environment)

    def close(self) -> None:
        """Let go of the simulators."""
        if self.environment is not None:
            self.arena.close()

    @property
    def environment(self) -> EnvironmentSpec | None:
        return self.data.environment

    def run_all(self) -> Generator[Request, Any, dict[str, Any]]:
        quantized = self.settings.actions == "quantized"
        if quantized:
            policy = yield from self._quantized()
        else:
            policy = yield from self._continuous(self.settings.agent, "agent")
        save_policy(policy, self.run.path / "policy")
        scores = yield from self._final_scores(policy, "agent")
        summary = {
            "run": str(self.run.path),
            "agent": self.settings.agent_name,
            "actions": self.settings.actions,
            "dataset": self.settings.dataset,
            "env": self.environment and self.environment.id,
            "seed": self.settings.seed,
            **scores,
            **self._action_error(policy),
            "gradient_steps": sum(self.gradient_steps.values()),
        }
        if self.settings.baseline:
            agent: Any = self.settings.agent
            plain = ContinuousBC(
                steps=agent.steps,
                batch_size=agent.batch_size,
                hidden=agent.hidden,
                precision=agent.precision,
            )
            cloned = yield from self._continuous(plain, "baseline")
            scores = yield from self._final_scores(cloned, "baseline")
            scores |= self._action_error(cloned)
            summary["baseline"] = {"agent": "bc", "actions": "continuous", **scores}
        summary["quantizer"] = self._report() if quantized else None
        summary |= self._spent()
        write_atomically(self.run.path / "result.json", json.dumps(summary, indent=2).encode())
        return summary

    def _quantized(self) -> Generator[Request, Any, Policy]:
        settings = self.settings
        if settings.quantizer.patience and self.held_out is None:
            self.reporter.say("note: no episode is held out, so patience has no effect")
        state = yield from self._stage(
            "quantizer",
            settings.quantizer,
            self._data(settings.quantizer, Prepared.action_batch),  # held by nobody afterwards
            0,
        )
        codec = settings.quantizer.codec(state)
        codes = encode_all(codec, self.training.action_batch())
        for note in codebook_notes(np.asarray(codes), codec.num_codes):
            self.reporter.say(f"note: {note}")

        def coded(algorithm: Any, prior: MLP | None) -> Any:
            def build(rows: Prepared) -> CodedTransitions:
                known = codes if rows is self.training else encode_all(codec, rows.action_batch())
                return rows.coded(known, codec.num_codes, prior)

            return self._data(algorithm, build)

        bc = settings.agent if isinstance(settings.agent, BC) else None
        if bc is None:
            learned = yield from self._stage(
                "prior", settings.prior, coded(settings.prior, None), 1
            )
            prior = settings.prior.prior(learned)
            quantizer = ActionQuantizer(codec, prior)
            data = coded(settings.agent, prior)

            def policy_of(state: Any) -> Policy:
                actor = settings.agent.actor(state)
                return self._policy(CodeController(quantizer, actor))  # type: ignore[arg-type]
        else:
            data = coded(bc, None)

            def policy_of(state: Any) -> Policy:
                quantizer = ActionQuantizer(codec, bc.prior(state))
                return self._policy(CodeController(quantizer, bc.actor(state)))

        policy = policy_of((yield from self._stage("agent", settings.agent, data, 2, policy_of)))
        assert isinstance(policy.controller, CodeController)
        self.quantizer = policy.controller.quantizer
        return policy

    def _continuous(self, agent: Any, stage: str) -> Generator[Request, Any, Policy]:
        def policy_of(state: Any) -> Policy:
            return self._policy(ContinuousController(agent.actor(state)), agent)

        data = self._data(agent, Prepared.continuous)
        return policy_of((yield from self._stage(stage, agent, data, 3, policy_of)))

    def _data(self, algorithm: Any, build: Callable[[Prepared], Any]) -> Any:
        """What an algorithm trains on: all rows at once, or part after part."""
        return self.parts.stream(algorithm, build) if self.parts else build(self.training)

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
    ) -> Generator[Request, Any, Any]:
        """Train one algorithm to its end, from its checkpoint if there is one."""
        streamed = isinstance(data, engine.Stream)
        with contextlib.closing(data) if streamed else contextlib.nullcontext():
            step, state = yield from self._steps(name, algorithm, data, number, policy_of)
        self.gradient_steps[name] = step
        return state

    def _steps(
        self, name: str, algorithm: Any, data: Any, number: int, policy_of: Any
    ) -> Generator[Request, Any, tuple[int, Any]]:
        """(step, state) where the stage ends."""
        key = jax.random.fold_in(self.key, number)
        resumed = self.run.load_checkpoint(name, lambda: engine.begin(algorithm, key, data))
        step, state = resumed or (0, engine.begin(algorithm, key, data))
        every = self.settings.eval_every
        evaluates = policy_of is not None and every is not None and self.environment is not None
        keep = self.settings.keep_every if name == "agent" else None
        pauses = [self.settings.log_every, *([every] if evaluates and every else [])]
        pauses += [keep] if keep else []
        saved = time.perf_counter()
        while step < algorithm.steps and not self._learned(name):
            with self.reporter.stage(name, algorithm.steps, done=step) as update:
                due = False
                while step < algorithm.steps and not due and not self._learned(name):
                    end = engine.next_pause(step, algorithm.steps, pauses)
                    step, state, metrics = yield from engine.steps(
                        algorithm, state, data, key, step, end
                    )
                    metrics |= self._held_out_error(name, state)
                    self.run.append("metrics", {"stage": name, "step": step, **metrics})
                    update(step, _brief(metrics))
                    self._warn_of_dying_codes(name, metrics, step, state)
                    if keep and step % keep == 0 and step < algorithm.steps:
                        save_policy(policy_of(state), self.run.path / "policies" / str(step))
                    due = bool(evaluates and every and step % every == 0)
                    if not due and time.perf_counter() - saved > CHECKPOINT_PERIOD:
                        self.run.save_checkpoint(name, step, state, spent=self._spent())
                        saved = time.perf_counter()
            if due or (evaluates and step == algorithm.steps):
                yield from self._evaluate(policy_of(state), name, step)
            self.run.save_checkpoint(name, step, state, spent=self._spent())
            saved = time.perf_counter()
        return step, state

    def _warn_of_dying_codes(
        self, stage: str, metrics: dict[str, Any], step: int, state: Any
    ) -> None:
        """Once a session."""
        quantizer = self.settings.quantizer
        if stage != "quantizer" or self.warned_of_codes:
            return
        codes = quantizer.codec(state).num_codes
        note = dying_note(metrics, step, steps=quantizer.steps, codes=codes)
        if note:
            self.reporter.say(f"note: {note}")
            self.warned_of_codes = True

    def _spent(self) -> dict[str, Any]:
        """Seconds by stage and in all; of sessions before this one, those up to where it began."""
        before, session = self.run.spent, self.reporter.spent
        stages = dict(before.get("seconds", {}))
        stages |= {name: round(stages.get(name, 0) + s, 2) for name, s in session.items()}
        wall = before.get("wall_seconds", 0) + self.reporter.elapsed
        return {"seconds": stages, "wall_seconds": round(wall, 2)}

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

    def _evaluate(
        self, policy: Policy, stage: str, step: int
    ) -> Generator[Request, Any, dict[str, Any]]:
        assert self.environment is not None
        episodes, act = self.settings.eval_episodes, policy.default_act
        record = yield Evaluation(policy, self.arena, self.environment.id, episodes, act, seed=0)
        record = {"stage": stage, "step": step, **record}
        self.run.append("evaluations", record)
        return record

    def _final_scores(self, policy: Policy, stage: str) -> Generator[Request, Any, dict[str, Any]]:
        """The last evaluation's scores, made now unless the stage has made them.

        Where there were three or more, the means over the last three stand beside them, as the
        evaluation protocol wants it; a best evaluation is never reported.
        """
        if self.environment is None:
            return {"act": policy.default_act, "episodes": 0, **NO_SCORE}
        steps = self.gradient_steps[stage]
        seen = [r for r in self.run.history("evaluations") if r["stage"] == stage]
        if not seen or seen[-1]["step"] != steps:
            seen.append((yield from self._evaluate(policy, stage, steps)))
        scores = {k: v for k, v in seen[-1].items() if k not in ("stage", "step")}
        if len(seen) >= 3:
            scores["mean_of_last_three"] = {
                name: float(np.mean([record[name] for record in seen[-3:]]))
                for name in NO_SCORE
                if seen[-1][name] is not None
            }
        return scores

    def _action_error(self, policy: Policy) -> dict[str, float | None]:
        """How far greedy actions lie from the held-out data's; None where nothing is held out."""
        log = self.held_out_log
        error = None if log is None else action_error(policy, log)
        return {"held_out_action_error": error}

    def _report(self) -> dict[str, Any]:
        """Of the quantizer, on held-out episodes where there are some."""
        shown = self.held_out or self.training
        report = quantizer_report(self.quantizer, shown, self.data.action_range.half_width)
        where = "held-out episodes" if self.held_out else "training episodes (none is held out)"
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
    if isinstance(settings.agent, CriticTraining) and not data.has_rewards:
        raise ValueError(
            f"{settings.dataset} has no rewards, from which {settings.agent_name} learns: train "
            "--agent bc, or, where every episode ends in success, say so with "
            "--dataset.rewards success-at-end"
        )
    return data


def _collect(settings: Settings, run: Run, reporter: Reporter) -> str:
    """The SPEC of demonstrations made by the scripted expert of `env`, in the run's folder."""
    from saqrl.datasets.formats.writers import save_arrays
    from saqrl.environments.oracles.collect import collect

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
            save_arrays(path, arrays)
    return f"npz:{path}"


def _brief(metrics: Mapping[str, float]) -> str:
    told = [name for name in HEADLINES if name in metrics] or sorted(metrics)
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in told[:2])
