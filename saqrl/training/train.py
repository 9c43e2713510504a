"""The whole path once: transitions, codes, agent, policy, scores, in one run folder."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from saqrl.arrays import write_atomically
from saqrl.datasets import Transitions
from saqrl.datasets.audit.suspicions import suspicions
from saqrl.datasets.naming import dataset_name
from saqrl.environments.families import UnknownEnvironment
from saqrl.nn import CriticTraining
from saqrl.policy import Policy
from saqrl.policy.storage import save_policy
from saqrl.quantizers import ActionQuantizer
from saqrl.training.codebook_health import action_error, quantizer_report
from saqrl.training.data import (
    collected_style,
    data_record,
    load_data,
    require_same_data,
    training_spec,
    with_demonstrations,
)
from saqrl.training.evaluation import MEASURES, Scores, check_environment, evaluate, open_arena
from saqrl.training.features import Features
from saqrl.training.held_out_skill import held_out_skill
from saqrl.training.interrupts import resumed_by
from saqrl.training.loggers import open_loggers
from saqrl.training.memory import require_memory
from saqrl.training.progress import Reporter
from saqrl.training.recipe import Choice
from saqrl.training.run_folder import (
    RunFolder,
    read_config,
    read_result,
    refuse_existing,
    refuse_fine_tuned,
)
from saqrl.training.selection import check_selection, choose_way
from saqrl.training.settings import Settings
from saqrl.training.stages import Diverged, Learning, Stage, train_stage
from saqrl.training.versions import versions

# Where run folders lie that nobody named.
RUNS = Path("runs")


def train(
    settings: Settings,
    out: str | os.PathLike[str] | None = None,
    *,
    data: Transitions | None = None,
    recipe: Sequence[Choice] = (),
    resume: bool = False,
    reporter: Reporter | None = None,
    loggers: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Run the settings in the folder `out` and return the summary that result.json holds.

    `data` replaces the data set that the settings name; without either, demonstrations are
    collected. `recipe` is what `recipe.recommended` chose, for the record. A finished run is not
    changed. `loggers` are additional outputs of the histories; a resumed run keeps those it had.
    `seeds` are all seeds of the command that the run belongs to.

    Raises ValueError, FileNotFoundError or ImportError if the settings, the data and the
    environment do not fit together; a new folder is then removed. Raises OSError if the disk is
    full; the run keeps its progress and can be resumed.
    """
    if getattr(settings.quantizer, "spare", 0):
        raise ValueError(
            "quantizer.spare is set by saqrl finetune --codebook grow --spare-codes N: "
            "leave it 0 in training"
        )
    path = default_out(settings) if out is None else Path(out)
    reporter = reporter or Reporter()
    if resume:
        refuse_fine_tuned(path)
    if resume and (path / "result.json").is_file():
        reporter.say(f"{path} has finished already; its result:")
        return read_result(path)
    follow = open_loggers(loggers, path)
    if not resume:
        refuse_existing(path)
        if data is None:  # before anything is written
            settings = with_demonstrations(settings, path.parent, reporter)
            data = read_data(settings, reporter)
    whole = path if seeds is None else path.parent
    command = f"saqrl train --out {whole} --resume"
    record = None if data is None or resume else data_record(data, settings)
    with (
        _opened(settings, path, resume, reporter, seeds, record, recipe) as run,
        discarding(run, resume, command),
        resumed_by(command),
    ):
        run.tell(follow)
        if data is None:
            data = read_data(settings, reporter, training_spec(path, settings))
        if resume:
            require_same_data(path, data, str(settings.data.dataset))
        _require_rewards(settings, data)
        return Session(settings, data, run, reporter).run_all()


def train_seeds(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int],
    data: Transitions | None = None,
    recipe: Sequence[Choice] = (),
    resume: bool = False,
    reporter: Reporter | None = None,
    loggers: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The same settings with several seeds, one after the other: runs OUT/seedN, their summaries.

    Each is bit-exactly the run that its seed alone would give; the data are read once and the
    compiled programs are shared. Raises the same errors as `train`.
    """
    out, reporter = Path(out), reporter or Reporter()
    if not resume and any(out.glob("[!.]*")):  # what was killed before its first seed is empty
        refuse_existing(out)
    summaries = []
    for number, seed in enumerate(seeds):
        folder, own = out / f"seed{seed}", replace(settings, seed=seed)
        finished = resume and (folder / "result.json").is_file()
        reporter.say(f"seed {seed} ({number + 1} of {len(seeds)})")
        if data is None and not finished and settings.data.dataset is not None:
            data = read_data(settings, reporter)
        summaries.append(
            train(
                own,
                folder,
                data=data,
                recipe=recipe,
                resume=resume and folder.exists(),
                reporter=Reporter(quiet=reporter.console.quiet),
                loggers=loggers,
                seeds=seeds,
            )
        )
    return summaries


def default_out(settings: Settings, seeds: int = 1) -> Path:
    """runs/DATA-AGENT-SEED, from what the run is about."""
    data = dataset_name(settings.data.dataset or settings.data.env or "data")
    kind = "" if settings.quantized else "continuous-"
    chunk = f"-chunk{settings.features.chunk}" if settings.features.chunk > 1 else ""
    history = f"-history{settings.features.history}" if settings.features.history > 1 else ""
    members = f"-members{settings.members}" if settings.members > 1 else ""
    first = settings.seed
    which = f"seed{first}" if seeds == 1 else f"seeds{first}-{first + seeds - 1}"
    name = f"{data}-{kind}{settings.agent_name}{chunk}{history}{members}-{which}"
    return RUNS / name.replace("/", "-").replace(" ", "-")


def saved_settings(path: Path) -> Settings:
    """The settings of a run folder; RunError or ValueError where there are none to read."""
    try:
        return Settings.from_json(read_config(path).get("settings", {}))
    except ValueError as error:
        raise type(error)(f"{path}: {error}" if str(path) not in str(error) else error) from error


def read_data(settings: Settings, reporter: Reporter, spec: str | None = None) -> Transitions:
    """The data of a training, from `spec` where they lie elsewhere; notes are told.

    ValueError where they do not fit into memory, or lack the rewards that the agent learns from.
    """
    with reporter.stage("data", 1, unit="file") as update:
        data = load_data(settings, dataset=spec)
        update(1, "")
    for note in data.notes:
        reporter.say(f"note: {note}")
    for warning in suspicions(data):
        reporter.say(f"warning: {warning}")
    _require_rewards(settings, data)
    require_memory(settings, data)
    return data


@contextlib.contextmanager
def _opened(
    settings: Settings,
    path: Path,
    resume: bool,
    reporter: Reporter,
    seeds: Sequence[int] | None,
    data: Mapping[str, Any] | None,
    recipe: Sequence[Choice],
) -> Iterator[RunFolder]:
    config: dict[str, Any] = {
        "settings": settings.to_json(),
        "recipe": [asdict(choice) for choice in recipe],
        "versions": versions(settings.data.env),
        "data": data,
    }
    if seeds is not None:
        config["seeds"] = list(seeds)
    if resume:
        say_other_versions(read_config(path)["versions"], config["versions"], reporter)
        run = RunFolder.open(path, reporter.say)
    else:
        run = RunFolder.create(path, config)
    try:
        yield run
    finally:
        run.close()


@contextlib.contextmanager
def discarding(run: RunFolder, resume: bool, command: str) -> Iterator[None]:
    """Leave nothing behind of what was asked wrongly; `command` goes on where the disk is full."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError, Diverged):
        if not resume:
            run.discard()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"no space left on the disk; free some, then resume: {command}"
        raise OSError(error.errno, text, error.filename or str(run.path)) from error


def say_other_versions(then: Mapping[str, str], now: Mapping[str, str], reporter: Reporter) -> None:
    """The same numbers to the last bit are promised only where the same libraries go on."""
    for name in sorted(then.keys() & now.keys()):
        if then[name] != now[name]:
            reporter.say(
                f"note: the run was started with {name} {then[name]}, and this is "
                f"{now[name]}: it is resumed, but its numbers may differ from those of an "
                "uninterrupted run"
            )


def _require_rewards(settings: Settings, data: Transitions) -> None:
    if isinstance(settings.agent, CriticTraining) and not data.has_rewards:
        raise ValueError(
            f"{settings.data.dataset} has no rewards, and {settings.agent_name} needs them: "
            "use --agent bc, or, if every episode ends in success, --dataset.rewards "
            "success-at-end"
        )


class Session:
    """One pass through the stages; what is on disk already is not done again."""

    def __init__(self, settings: Settings, data: Transitions, run: RunFolder, reporter: Reporter):
        self.settings, self.run, self.reporter = settings, run, reporter
        self.environment = data.environment
        self.selection: list[dict[str, Any]] = []
        self.features = Features(data, settings)
        codes, rows = settings.quantizer.codes, self.features.count
        if settings.quantized and codes > rows:
            remedy = (
                f"use at most {rows} codes (--quantizer.codes)"
                if rows > 1
                else ("record more data")
            )
            raise ValueError(
                f"quantizer.codes is {codes} but there are only {rows} transitions to train on: "
                f"{remedy}"
            )
        if self.environment is not None:
            try:
                for warning in check_environment(self.environment, data):
                    reporter.say(warning)
            except (ImportError, UnknownEnvironment) as error:
                if settings.data.env is not None and not isinstance(error, ImportError):
                    raise  # it is misspelt
                reporter.say(
                    "warning: the run is not evaluated in an environment, only on held-out "
                    f"episodes: {error}"
                )
                self.environment = None
        if settings.evaluation.select and self.environment is None:
            raise ValueError("--select plays episodes and needs an environment: add --env")
        check_selection(settings)

    def run_all(self) -> dict[str, Any]:
        """Train every stage, score what plays, write result.json and return it."""
        settings = self.settings
        learning = Learning(settings, self.features, self.run, self.reporter)
        steps, scores = 0, {}
        with open_arena(self.environment) as self.arena:
            for stage in learning.stages():
                step, state = self._train(stage)
                learning.ended(stage, state)
                if stage.policy is not None:
                    policy, folder = stage.policy(state), stage.name
                    if stage.name == "agent":
                        policy, folder = self._selected(policy), "policy"
                    save_policy(policy, self.run.path / folder)
                    scores[stage.name] = self._scores(policy, stage.name, step)
                if stage.name != "baseline":
                    steps += step
        summary = self._summary(scores["agent"], steps)
        if self.selection:
            summary["selection"] = self.selection
        if "baseline" in scores:
            summary["baseline"] = {"agent": "bc", "actions": "continuous", **scores["baseline"]}
        return self._finished(summary, learning.quantizer if settings.quantized else None)

    def _summary(self, scores: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """What result.json says first."""
        settings = self.settings
        return {
            "run": str(self.run.path),
            "agent": settings.agent_name,
            "actions": settings.actions,
            "dataset": settings.data.dataset,
            "collected": collected_style(settings),
            "env": self.environment and self.environment.id,
            "seed": settings.seed,
            "members": settings.members,
            **scores,
            "gradient_steps": steps,
        }

    def _finished(
        self, summary: dict[str, Any], quantizer: ActionQuantizer | None
    ) -> dict[str, Any]:
        """The summary with the codes and the time, as it was written to result.json."""
        summary["quantizer"] = None if quantizer is None else self._report(quantizer)
        summary |= self._spent()
        write_atomically(self.run.path / "result.json", json.dumps(summary, indent=2).encode())
        return summary

    def _selected(self, policy: Policy) -> Policy:
        """The policy as it acts best, where episodes are given to find out."""
        episodes = self.settings.evaluation.select
        if not episodes or self.environment is None:
            return policy
        policy, self.selection = choose_way(
            policy, self.arena, self.environment.id, episodes=episodes, reporter=self.reporter
        )
        return policy

    def _train(self, stage: Stage) -> tuple[int, Any]:
        settings = self.settings
        return train_stage(
            stage,
            run=self.run,
            reporter=self.reporter,
            key=jax.random.key(settings.seed),
            log_every=settings.output.log_every,
            evaluate=self._evaluate,
            evaluate_every=settings.evaluation.every if self.environment else None,
            spent=self._spent,
        )

    def _evaluate(self, policy: Policy, stage: str, step: int) -> dict[str, Any]:
        assert self.environment is not None
        scores = evaluate(
            policy,
            self.arena,
            self.environment.id,
            episodes=self.settings.evaluation.episodes,
            act=policy.default_act,
            seed=self.settings.evaluation.first,
            reporter=self.reporter,
        )
        record = {"stage": stage, "step": step, **asdict(scores)}
        self.run.append("evaluations", record)
        return record

    def _scores(self, policy: Policy, stage: str, steps: int) -> dict[str, Any]:
        """The last evaluation's scores, made now unless the stage has made them.

        Where there were three or more, the means over the last three stand beside them; a best
        evaluation is never reported. Then how far greedy actions lie from the held-out data's, and
        how much nearer than the last command all lies that may be played.
        """
        log = self.features.held_out_log
        error = {
            "held_out_action_error": None if log is None else action_error(policy, log),
            "held_out_skill": None if log is None else held_out_skill(policy, log),
        }
        if self.environment is None:
            scores = asdict(Scores(policy.default_act, 0, policy.act_temperature))
            del scores["length_mean"]  # of an evaluation alone
            return scores | error
        seen = [r for r in self.run.history("evaluations") if r["stage"] == stage]
        if not seen or seen[-1]["step"] != steps or self.selection:
            seen.append(self._evaluate(policy, stage, steps))
        scores = {k: v for k, v in seen[-1].items() if k not in ("stage", "step")}
        if len(seen) >= 3:
            scores["mean_of_last_three"] = {
                name: float(np.mean([record[name] for record in seen[-3:]]))
                for name in MEASURES
                if all(record[name] is not None for record in seen[-3:])
            }
        return scores | error

    def _spent(self) -> dict[str, Any]:
        """Seconds by stage and in all; of sessions before this one, those up to where it began."""
        before, session = self.run.spent, self.reporter.spent
        stages = dict(before.get("seconds", {}))
        stages |= {name: round(stages.get(name, 0) + s, 2) for name, s in session.items()}
        wall = before.get("wall_seconds", 0) + self.reporter.elapsed
        return {"seconds": stages, "wall_seconds": round(wall, 2)}

    def _report(self, quantizer: ActionQuantizer) -> dict[str, Any]:
        """Of the quantizer, on held-out episodes where there are some."""
        features = self.features
        shown = features.held_out or features.training
        report = quantizer_report(quantizer, shown, features.log.action_range.half_width)
        where = (
            "held-out episodes" if features.held_out else ("training episodes (none is held out)")
        )
        return {"measured_on": where, **report}
