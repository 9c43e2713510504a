"""Fine-tune a quantized run in its environment: from its folder to a new run folder."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from saqrl.agents.bc import BC
from saqrl.datasets import Transitions
from saqrl.policy import Policy
from saqrl.policy.storage import load_policy
from saqrl.registry import AGENTS
from saqrl.training.data import (
    IN_MEMORY,
    NO_ENVIRONMENT,
    arranged,
    load_training_data,
    require_same_data,
)
from saqrl.training.evaluation import check_environment
from saqrl.training.interrupts import resumed_by
from saqrl.training.memory import require_memory
from saqrl.training.online.adapting import adapted
from saqrl.training.online.address import Address
from saqrl.training.online.loop import Online
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.preparation import part_rows
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import (
    RunFolder,
    policy_folder,
    read_config,
    read_result,
    refuse_existing,
)
from saqrl.training.settings import Settings
from saqrl.training.train import discarding, saved_settings, say_other_versions
from saqrl.training.versions import versions

# The agent that continues a bc run, which has no values.
FIRST_AGENT = "iql"


def default_out(parent: Path) -> Path:
    """A folder next to that of the original run."""
    return parent.with_name(f"{parent.name}-finetuned")


def finetune(
    parent: str | os.PathLike[str],
    asked: OnlineSettings,
    out: str | os.PathLike[str] | None = None,
    *,
    data: Transitions | None = None,
    dataset: str | None = None,
    robot: Address | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Fine-tune the run `parent` in the folder `out`; returns the content of result.json.

    data or dataset: the run's data, if they are in memory or have moved. robot: the address at
    which a robot connects, which plays instead of an environment.

    Raises ValueError, FileNotFoundError or ImportError if the run, its data and the environment do
    not fit together; a new folder is then removed. Raises OSError if the disk is full; the run
    keeps its progress and can be resumed.
    """
    parent, reporter = Path(parent), reporter or Reporter()
    out = default_out(parent) if out is None else Path(out)
    if resume:
        parent, asked = _begun(out, asked, robot is not None)
        if (out / "result.json").is_file():
            reporter.say(f"{out} has finished already; its result:")
            return read_result(out)
        settings = saved_settings(out)
    else:
        refuse_existing(out)
        settings = finetuned_settings(parent, asked)
        if (members := saved_settings(parent).members) != settings.members:
            reporter.say(
                f"note: {parent} is an ensemble of {members}: only its first member is fine-tuned"
            )
    if robot is not None and (asked.env or asked.env_kwargs):
        raise ValueError("--serve acts on a robot, --env in a simulator: remove one of them")
    log = _data(parent, settings, data, dataset)
    if resume:
        require_same_data(out, log, str(settings.data.dataset))
    if robot is not None:
        log = replace(log, environment=None)
    _check(parent, log, robot is not None)
    if asked.codebook != "frozen" and part_rows(log, settings) is not None:
        raise ValueError(
            f"--codebook {asked.codebook} encodes all data again and needs them in memory, "
            f"but {parent} streams its data: use --codebook frozen"
        )
    require_memory(settings, log)
    where = "" if robot is None else f" --serve {robot}"
    command = f"saqrl finetune {parent}{where} --out {out} --resume"
    with (
        _listening(robot, log, reporter) as arena,
        _opened(parent, out, settings, asked, resume, reporter, robot is not None) as run,
        discarding(run, resume, command),
        resumed_by(command),
    ):
        return Online(settings, asked, log, run, reporter, arena).run_all()


def finetuned_settings(parent: Path, asked: OnlineSettings) -> Settings:
    """The run's settings changed as requested; ValueError if it cannot be fine-tuned."""
    read_result(parent)  # it has finished
    settings = saved_settings(parent)
    if not settings.quantized:
        raise ValueError(
            f"{parent} is a continuous run, and fine-tuning needs codes: train with "
            "--actions quantized"
        )
    if isinstance(settings.agent, BC):  # of an ensemble, the first member is continued
        settings = replace(settings, members=1)
    if before := read_config(parent).get("finetune"):  # the parent was fine-tuned too
        earlier = OnlineSettings.from_json(before.get("settings", {}))
        agent: Any = replace(settings.agent, schedule="constant")  # type: ignore[type-var]
        quantizer = adapted(settings.quantizer, earlier)
        settings = replace(settings, agent=agent, quantizer=quantizer)
    adapted(settings.quantizer, asked)  # raises if it cannot be adapted as requested
    policy = load_policy(policy_folder(parent))
    evaluation = replace(
        settings.evaluation,
        act=policy.default_act,  # as it was selected, where it was
        act_temperature=policy.act_temperature,
        action_horizon=policy.action_horizon,
        episodes=asked.eval_episodes or settings.evaluation.episodes,
        select=0,
        baseline=False,
    )
    environment = {"env": asked.env} if asked.env is not None else {}
    if asked.env_kwargs is not None:
        environment["env_kwargs"] = asked.env_kwargs
    settings = replace(
        settings,
        evaluation=evaluation,
        data=replace(settings.data, **environment),  # type: ignore[arg-type]
    )
    own = settings.agent
    name = asked.agent or (FIRST_AGENT if isinstance(own, BC) else settings.agent_name)
    if name == settings.agent_name:
        return settings
    shared = ("hidden", "batch_size", "discount", "precision")
    kept = {field: getattr(own, field) for field in shared}
    if name == "iql" and (asked.codebook != "frozen" or settings.features.chunk > 1):
        kept["q_of"] = "actions"  # which outlives codes that change, and near codes share
    agent = AGENTS.load(name)(**kept, steps=asked.value_steps)
    prior = own if isinstance(own, BC) else settings.prior
    return replace(settings, agent=agent, prior=prior)


def _begun(out: Path, asked: OnlineSettings, robot: bool) -> tuple[Path, OnlineSettings]:
    """The settings of a started fine-tuning; ValueError for another run or other flags."""
    found = read_config(out).get("finetune")
    if found is None:
        raise ValueError(
            f"{out} is not a fine-tuned run: remove --resume, and choose another --out"
        )
    if bool(found.get("robot")) != robot:
        played, remedy = (
            ("in a simulator", ("remove --serve")) if robot else ("on a robot", "add --serve")
        )
        raise ValueError(f"{out} was started {played}, and --serve is for a robot: {remedy}")
    saved = OnlineSettings.from_json(found.get("settings", {}))
    return Path(str(found.get("parent"))), asked.resumed(saved)


def _data(
    parent: Path, settings: Settings, data: Transitions | None, dataset: str | None
) -> Transitions:
    if data is not None:
        return arranged(data, settings, (read_config(parent).get("data") or {}).get("sha256"))
    if dataset is None and settings.data.dataset == IN_MEMORY:
        raise ValueError(
            f"{parent} was trained on arrays in memory: pass its data with --dataset, or as "
            "`data` in Python"
        )
    policy: Policy = load_policy(policy_folder(parent))
    return load_training_data(parent, settings, policy, dataset=dataset)


@contextlib.contextmanager
def _listening(robot: Address | None, log: Transitions, reporter: Reporter) -> Iterator[Any]:
    """The arena of a robot, if one is to be waited for."""
    if robot is None:
        yield None
        return
    from saqrl.training.online.robot import robot_arena  # needs the extra serve

    with robot_arena(robot, log, reporter.say) as arena:
        yield arena


def _check(parent: Path, log: Transitions, robot: bool) -> None:
    """ValueError, before anything is written, if rewards or an environment are missing."""
    if not log.has_rewards:
        raise ValueError(
            f"the data of {parent} have no rewards, and fine-tuning needs them: train on "
            "data with rewards, or with --dataset.rewards success-at-end"
        )
    if robot:
        return  # which each of its observations proves
    if log.environment is None:
        raise ValueError(
            f"{parent} has no environment to fine-tune in: give one with --env (not "
            f"{NO_ENVIRONMENT}), or connect a robot with --serve"
        )
    check_environment(log.environment, log)


def _adopted(
    parent: Path, settings: Settings
) -> dict[str, tuple[str, str] | tuple[str, str, bool]]:
    """Stages that begin with the final state of the parent's.

    Each: its stage, the place in its state, and whether it is an ensemble's first member.
    """
    before, own = read_config(parent).get("finetune"), saved_settings(parent)
    if isinstance(own.agent, BC):  # which is the behaviour itself
        return {"quantizer": ("quantizer", ""), "prior": ("agent", ".model", own.members > 1)}
    again = before is not None
    moved = before is not None and before["settings"].get("codebook", "frozen") != "frozen"
    found: dict[str, tuple[str, str] | tuple[str, str, bool]] = {
        "quantizer": ("online", ".codebook.quantizer") if moved else ("quantizer", ""),
        "prior": ("online", ".prior") if again else ("prior", ".model"),
    }
    if settings.agent_name == own.agent_name:
        found["agent"] = ("online", ".agent") if again else ("agent", "")
    return found


@contextlib.contextmanager
def _opened(
    parent: Path,
    out: Path,
    settings: Settings,
    asked: OnlineSettings,
    resume: bool,
    reporter: Reporter,
    robot: bool,
) -> Iterator[RunFolder]:
    before, used = read_config(out if resume else parent), versions(settings.data.env)
    if resume:
        say_other_versions(before["versions"], used, reporter)
        run = RunFolder.open(out, reporter.say)
    else:
        own = {
            "settings": settings.to_json(),
            "versions": used,
            "finetune": {
                "parent": str(parent),
                "settings": asked.to_json(),
                "robot": robot,
                "adopted": _adopted(parent, settings),
                "gradient_steps": read_result(parent)["gradient_steps"],
            },
        }
        run = RunFolder.create(out, {**own, **{k: before.get(k) for k in ("recipe", "data")}})
    try:
        yield run
    finally:
        run.close()
