"""`saqrl train`."""

import statistics
import sys
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import Parser, add_fields, joined_specs, split_dotted
from saqrl.registry import AGENTS, BASELINES, QUANTIZERS
from saqrl.training.flags import ALIASES, FLAGS, OWNERS, typed
from saqrl.training.presets import settings_from
from saqrl.training.settings import Data, Evaluation, Features, Output, Settings
from saqrl.training.summary import score_words, summary_text

DESCRIPTION = """\
Learn a policy from logged data, in one run folder. Settings that you do not give are chosen from
the data, and the reasons are printed. Without arguments: collect demonstrations of a cube task,
train, compare with regression. Every hyperparameter is a flag (--agent.alpha 1): see --help-all."""
EXAMPLES = (
    "saqrl train --dataset my_log.npz                # demonstrations without rewards",
    "saqrl train --dataset my_log.hdf5 --agent iql   # a log with rewards",
    "saqrl train --dataset my_log.npz --chunk 8 --env ID",
    "saqrl train --out runs/my_log-iql-seed0 --resume",
)


@dataclass
class Method:
    """What is trained."""

    preset: str | None = None
    """preset to start from (list: saqrl presets)"""
    agent: str | None = None
    """AGENTS"""
    quantizer: str | None = None
    """QUANTIZERS"""
    actions: Literal["quantized", "continuous"] | None = None
    """quantized (codes), or continuous"""
    recipe: Literal["auto", "plain"] | None = None
    """auto (chosen from the data) or plain (fixed defaults)"""
    steps: int | None = None
    """gradient steps of the agent"""
    quantizer_steps: int | None = None
    """gradient steps of the quantizer"""
    members: int = 1
    """agents in an ensemble that shares one quantizer"""
    seed: int = 0
    """seed of networks, batches, split and collection"""


@dataclass
class Own:
    """Where the run is and what is told of it."""

    out: str | None = None
    """run folder; default: runs/DATA-AGENT-SEED"""
    resume: bool = False
    """resume the run in the run folder"""
    seeds: int | None = None
    """train N seeds, from --seed on, each in OUT/seedN"""
    loggers: tuple[Literal["tensorboard", "wandb", "csv"], ...] = ()
    """log to tensorboard, wandb or csv too"""
    json: bool = False
    """last line of stdout: the result as JSON"""
    help_all: bool = False
    """list all hyperparameters too"""


def train_parser() -> Parser:
    """The flags that every training has."""
    parser = Parser("train", DESCRIPTION, EXAMPLES)
    names = {record: _names(record) for record in (Data, Features, Evaluation, Output)}
    add_fields(parser.add_argument_group("data"), Data, names=names[Data])
    method = parser.add_argument_group("method")
    add_fields(method, Method)
    # What the recipe chooses has no default to tell.
    chosen = dict.fromkeys(("chunk", "feature_deviation"))
    add_fields(method, Features, names=names[Features], shown=chosen)
    evaluation = parser.add_argument_group("evaluation")
    shown = dict.fromkeys(("act", "act_temperature", "action_horizon", "select"))
    add_fields(evaluation, Evaluation, names=names[Evaluation], shown=shown)
    for alias, name in ALIASES.items():
        parser.add_argument(f"--{alias}", dest=name, default=SUPPRESS, help=SUPPRESS)
    output = parser.add_argument_group("output")
    add_fields(output, Own)
    add_fields(output, Output)
    for action in parser._actions:
        if action.help in ("AGENTS", "QUANTIZERS"):
            only = ", ".join(name for name in BASELINES if name not in AGENTS)
            names_of = {"AGENTS": f"{', '.join(AGENTS)}; continuous only: {only}"}
            action.help = names_of.get(action.help, ", ".join(QUANTIZERS))
    return parser


def _names(record: type) -> dict[str, str]:
    return {field: flag for flag, (_, field, _) in FLAGS.items() if _owner(flag) is record}


def _owner(flag: str) -> type:
    return Settings.RECORDS[FLAGS[flag][0]]


def main(arguments: Sequence[str]) -> int:
    own, flags = read_words(arguments)
    if own.help_all:
        return _help_all(flags)
    settings, resume = read_flags(own, flags)
    from saqrl.studies.run_page import leave_page
    from saqrl.training.begin import begun
    from saqrl.training.progress import Reporter
    from saqrl.training.run_folder import refuse_existing
    from saqrl.training.train import RUNS, default_out, train, train_seeds

    reporter, data = Reporter(), None
    recipe: Sequence[Any] = ()
    if not resume:
        if own.out and not own.seeds:
            refuse_existing(Path(own.out))
        folder = Path(own.out).parent if own.out else RUNS
        settings, data, recipe = begun(settings, flags, folder, reporter)
    out = Path(own.out) if own.out else default_out(settings, own.seeds or 1)
    seeds = _seeds(own, settings, out)
    runs = [out] if seeds is None else [out / f"seed{seed}" for seed in seeds]
    film = {run: not (run / "result.json").is_file() for run in runs}
    if seeds is not None:
        summaries = train_seeds(
            settings,
            out,
            seeds=seeds,
            data=data,
            recipe=recipe,
            resume=resume,
            reporter=reporter,
            loggers=own.loggers,
        )
        for run in runs:
            leave_page(run, data, reporter, film=film[run])
        _tell_seeds(summaries, out)
        record: dict[str, Any] = {"out": str(out), "seeds": seeds, "runs": summaries}
    else:
        record = train(
            settings,
            out,
            data=data,
            recipe=recipe,
            resume=resume,
            reporter=reporter,
            loggers=own.loggers,
        )
        page = leave_page(out, data, reporter, film=film[out])
        say(f"\n{summary_text(record)}")
        if page is not None:
            say(f"page: {page}  (saqrl view {out} opens it)")
    if own.json:
        print_json(record)
    return 0


def read_words(arguments: Sequence[str]) -> tuple[Own, dict[str, Any]]:
    """The command's own flags, and those of the settings as they were typed."""
    rest, flags = split_dotted(arguments, OWNERS)
    said = train_parser().parse(rest)
    if "dataset" in said:
        said["dataset"] = joined_specs(None, said["dataset"])
        if not said["dataset"]:
            raise ValueError("--dataset: no SPEC after it; pass FORMAT:PATH or a path")
    values = {
        f.name: typed(f.name, f.type, said.pop(f.name)) for f in fields(Own) if f.name in said
    }
    return Own(**values), said | flags


def read_flags(own: Own, flags: Mapping[str, Any]) -> tuple[Settings, bool]:
    """The settings that the flags make, and whether a run folder is there to go on with.

    ValueError where they do not fit together, or to the run that is resumed.
    """
    if not (own.resume and own.out):
        return settings_from(flags), False
    from saqrl.training.begin import resumed
    from saqrl.training.train import saved_settings

    if Path(own.out).exists():
        run = _first_run(Path(own.out))
        saved = saved_settings(run)
        if ":" in (saved.data.env or "") and "env" not in flags:
            raise ValueError(
                f"--resume: the run's environment is {saved.data.env}, and a module is "
                f"imported only if you name it: add --env {saved.data.env}"
            )
        return resumed(run, flags), True
    if not any(name in flags for name in ("dataset", "env", "preset")):
        raise ValueError(
            f"--resume: there is no run folder {own.out}: correct --out, or start a new run "
            "with --dataset, --env or --preset"
        )
    return settings_from(flags), False


def _help_all(flags: Mapping[str, Any]) -> int:
    """The help, and every hyperparameter with its default as the command stands."""
    settings = settings_from(flags)
    parser = train_parser()
    for owner, described in (
        ("agent", settings.agent),
        ("quantizer", settings.quantizer),
        ("prior", settings.prior),
    ):
        group = parser.add_argument_group(f"{owner}: {type(described).__name__}")
        add_fields(group, type(described), prefix=f"{owner}.", shown=vars(described))
    reading = settings.data.reading
    group = parser.add_argument_group("which parts of the data set are read")
    add_fields(group, type(reading), prefix="dataset.")
    parser.print_help()
    return 0


def _first_run(out: Path) -> Path:
    """The run folder itself, or that of the first of the seeds of one command."""
    from saqrl.training.run_folder import read_config
    from saqrl.training.train import saved_settings

    if (out / "config.json").exists():
        return out
    runs = [config.parent for config in out.glob("seed*/config.json")]
    runs = [run for run in runs if "seeds" in read_config(run)]
    return min(runs, key=lambda run: saved_settings(run).seed) if runs else out


def _seeds(own: Own, settings: Settings, out: Path) -> list[int] | None:
    """The seeds of the command; None for a single run in a folder of its own."""
    from saqrl.training.run_folder import read_config

    if own.seeds is not None and own.seeds < 1:
        raise ValueError(f"seeds is {own.seeds}; it must be at least 1")
    if own.resume and _first_run(out) != out:
        begun = read_config(_first_run(out))["seeds"]
        if own.seeds not in (None, len(begun)):
            raise ValueError(
                f"--resume: {out} was started with {len(begun)} seeds, not {own.seeds}: "
                "remove --seeds, or choose another --out"
            )
        return list(begun)
    if own.resume and own.seeds and (out / "config.json").exists():
        raise ValueError(f"--resume: {out} is the run of a single seed: remove --seeds")
    if own.seeds is None:
        return None
    return list(range(settings.seed, settings.seed + own.seeds))


def _tell_seeds(summaries: Sequence[dict[str, Any]], out: Path) -> None:
    """The scores of every seed, and of all of them together."""
    say()
    for summary in summaries:
        say(f"seed {summary['seed']}: {score_words(summary)}")
    if summaries[0]["env"]:
        from saqrl.studies.table import MEASURES
        from saqrl.training.evaluation import measure_of

        measure, scale = measure_of(summaries[0]["env"], summaries[0])
        scores = [scale * summary[measure] for summary in summaries]
        say(
            f"{MEASURES[measure]} over {len(scores)} seeds: mean {statistics.fmean(scores):.1f}, "
            f"lowest {min(scores):.1f}, highest {max(scores):.1f}"
        )
    say(f"time: {sum(summary['wall_seconds'] for summary in summaries):.0f} s")
    say(f"next: saqrl report {out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
