"""`saqrl train`."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from saqrl.commands.output import print_json, say, score_words
from saqrl.commands.reading import with_one_dataset
from saqrl.datasets.naming import dataset_name
from saqrl.quantizers import QUANTIZERS
from saqrl.studies.compare import MEASURES, measure_of
from saqrl.training.presets import MAIN_JOB, PRESETS, build_settings
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import read_config
from saqrl.training.settings import Settings, first_difference, with_steps
from saqrl.training.train import saved_settings, train, train_seeds

# Settings that the command line names otherwise, or not at all.
_NESTED = ("agent", "quantizer", "prior", "reading")
# What a nested record is called where that is not its field's name.
_PREFIX = {"reading": "dataset"}


def main(arguments: Sequence[str]) -> int:
    asked, settings = read_flags(arguments)
    out = Path(asked.out) if asked.out else default_out(settings, asked.seeds or 1)
    seeds = _seeds(asked, settings, out)
    if seeds is not None:
        summaries = train_seeds(
            settings,
            out,
            seeds=seeds,
            resume=asked.resume and out.exists(),
            reporter=Reporter(),
            loggers=asked.loggers,
        )
        _tell_seeds(summaries, out)
        if asked.json:
            print_json({"out": str(out), "seeds": seeds, "runs": summaries})
        return 0
    summary = train(
        settings,
        out,
        resume=asked.resume and out.exists(),
        reporter=Reporter(),
        loggers=asked.loggers,
    )
    _tell(summary)
    if asked.json:
        print_json(summary)
    return 0


def read_flags(arguments: Sequence[str]) -> tuple[Any, Settings]:
    """What the flags of `saqrl train` say, and the settings that they make.

    ValueError where they do not fit together or to the run that is resumed; flags that cannot be
    parsed at all are told on standard error and raise SystemExit.
    """
    words = with_one_dataset(arguments)
    chosen = _choices(words)
    resumed = None
    if "--resume" in words and chosen["out"]:
        if Path(chosen["out"]).exists():
            resumed = saved_settings(_first_run(Path(chosen["out"])))
        elif not any(chosen[name] for name in ("dataset", "env", "preset")):
            raise ValueError(
                f"--resume: there is no run folder {chosen['out']}: correct --out, or say what to "
                "train with --dataset, --env or --preset"
            )
    base = _base_settings(chosen, resumed)
    asked = _parse(words, base)
    settings = _settings_of(asked, base)
    if asked.preset and settings.dataset is None and (data := PRESETS[asked.preset].data):
        raise ValueError(f"preset {asked.preset!r} needs --dataset: {data}")
    if resumed is not None and (difference := first_difference(resumed, settings)):
        raise ValueError(f"--resume: {difference}: drop that flag, or name another --out")
    return asked, settings


def _first_run(out: Path) -> Path:
    """The run folder itself, or that of the first of the seeds that share a program."""
    if (out / "config.json").exists():
        return out
    runs = [config.parent for config in out.glob("seed*/config.json")]
    runs = [run for run in runs if "seeds" in read_config(run)]
    if not runs:
        return out
    return min(runs, key=lambda run: saved_settings(run).seed)


def _seeds(asked: Any, settings: Settings, out: Path) -> list[int] | None:
    """The seeds that share a program; None for a single run in a folder of its own."""
    if asked.seeds is not None and asked.seeds < 1:
        raise ValueError(f"seeds is {asked.seeds}; at least 1")
    if asked.resume and _first_run(out) != out:
        begun = read_config(_first_run(out))["seeds"]
        if asked.seeds not in (None, len(begun)):
            raise ValueError(
                f"--resume: {out} was begun with {len(begun)} seeds, this asks for {asked.seeds}: "
                "drop that flag, or name another --out"
            )
        return list(begun)
    if asked.resume and asked.seeds and (out / "config.json").exists():
        raise ValueError(f"--resume: {out} is the run of one seed: drop --seeds")
    if asked.seeds is None:
        return None
    return list(range(settings.seed, settings.seed + asked.seeds))


def default_out(settings: Settings, seeds: int = 1) -> Path:
    """runs/DATA-AGENT-SEED, from what the run is about."""
    data = dataset_name(settings.dataset or settings.env or "data")
    kind = "" if settings.actions == "quantized" else "continuous-"
    chunk = f"-chunk{settings.chunk}" if settings.chunk > 1 else ""
    first = settings.seed
    which = f"seed{first}" if seeds == 1 else f"seeds{first}-{first + seeds - 1}"
    name = f"{data}-{kind}{settings.agent_name}{chunk}-{which}"
    return Path("runs") / name.replace("/", "-")


def _choices(words: Sequence[str]) -> dict[str, str | None]:
    """The flags that decide which other flags there are, read before the rest is parsed."""
    found: dict[str, str | None] = dict.fromkeys(
        ("preset", "agent", "quantizer", "actions", "out", "dataset", "env")
    )
    for position, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in found:
            following = words[position + 1] if position + 1 < len(words) else ""
            found[name] = value if equals else following
    return found


def _base_settings(chosen: dict[str, str | None], resumed: Settings | None) -> Settings:
    """What the flags change: a saved run, a preset, or the main job where nothing is named."""
    if resumed is not None:
        saved = {"agent": resumed.agent_name, "quantizer": QUANTIZERS.name_of(resumed.quantizer)}
        for name, value in saved.items():
            if chosen[name] not in (None, value):
                raise ValueError(
                    f"--resume: {name} is {value!r} in the run and {chosen[name]!r} here: drop "
                    "that flag, or name another --out"
                )
        return resumed
    main_job = chosen["dataset"] is None and chosen["env"] is None
    return build_settings(
        chosen["preset"] or (MAIN_JOB if main_job else "default"),
        agent=chosen["agent"],
        quantizer=chosen["quantizer"] or "vqvae",
        actions=chosen["actions"] or "quantized",
    )


def _parse(words: Sequence[str], base: Settings) -> Any:
    """The command line as a record with the fields of the settings beside train's own."""

    def flag(help: str, **more: Any) -> Any:
        return tyro.conf.arg(help=help, **more)

    own = [
        ("preset", Annotated[str | None, flag("named starting point: see saqrl presets")], None),
        (
            "agent",
            Annotated[str, flag("bc, cql, iql, brac; continuous only: gaussian, gmm, rebrac")],
            base.agent_name,
        ),
        (
            "quantizer",
            Annotated[str, flag(", ".join(QUANTIZERS))],
            QUANTIZERS.name_of(base.quantizer),
        ),
        ("steps", Annotated[int | None, flag("gradient steps of the agent")], None),
        (
            "quantizer_steps",
            Annotated[int | None, flag("gradient steps of the quantizer")],
            None,
        ),
        (
            "seeds",
            Annotated[
                int | None,
                flag("train so many seeds in one program, from --seed on: run folders OUT/seedN"),
            ],
            None,
        ),
        ("out", Annotated[str | None, flag("run folder; default runs/DATA-AGENT-SEED")], None),
        ("resume", Annotated[bool, flag("go on with the run folder")], False),
        (
            "loggers",
            Annotated[
                tuple[Literal["tensorboard", "wandb", "csv"], ...],
                flag("write the histories for these too, beside the JSON lines"),
            ],
            (),
        ),
        ("json", Annotated[bool, flag("last line of stdout: the result as JSON")], False),
        ("execute", Annotated[int | None, flag("actions of a chunk to play; default all")], None),
        ("act", Annotated[Literal["greedy", "sample"], flag("how to choose codes")], base.act),
    ]
    taken = {name for name, *_ in own} | set(_NESTED)
    plain = [
        (f.name, Annotated[cast(Any, f.type), flag(_HELP.get(f.name, ""))], getattr(base, f.name))
        for f in fields(Settings)
        if f.name not in taken
    ]
    nested = [
        (
            f"{name}_fields",
            Annotated[
                cast(Any, type(getattr(base, name))), tyro.conf.arg(name=_PREFIX.get(name, name))
            ],
            getattr(base, name),
        )
        for name in _NESTED
    ]
    arguments = make_dataclass(
        "train",
        [
            (name, kind, field(default_factory=lambda default=default: default))  # type: ignore[misc]
            for name, kind, default in (*own, *plain, *nested)
        ],
    )
    return tyro.cli(
        arguments,
        args=words,
        prog="saqrl train",
        description="Learn a policy from logged data: quantizer, agent, evaluation, in one run "
        "folder. Without arguments: collect demonstrations of a cube task, train and compare. "
        "The defaults below are those of the command as it stands: with --dataset, --preset or "
        "--agent before --help they are other ones.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _settings_of(asked: Any, base: Settings) -> Settings:
    """The settings that the parsed flags make of the base."""
    nested = {name: getattr(asked, f"{name}_fields") for name in _NESTED}
    plain = {
        f.name: getattr(asked, f.name)
        for f in fields(Settings)
        if f.name not in (*_NESTED, "execute")
    }
    execute = asked.execute
    if (
        execute is None
    ):  # the saved or preset one where the chunk is as it was, else the whole chunk
        execute = base.execute if plain["chunk"] == base.chunk else plain["chunk"]
    settings = replace(base, **nested, **plain, execute=execute)
    return with_steps(settings, steps=asked.steps, quantizer_steps=asked.quantizer_steps)


def _tell(summary: dict[str, Any]) -> None:
    """The end of a run for a person: the score, where the time went, what to do next."""
    say()
    name = f"SAQ-{summary['agent'].upper()}" if summary["actions"] == "quantized" else None
    label = name or f"continuous {summary['agent']}"
    say(f"{label}: {score_words(summary)}  ({summary['episodes']} episodes, {summary['act']})")
    if baseline := summary.get("baseline"):
        say(f"continuous BC on the same data: {score_words(baseline)}")
    if (error := summary["held_out_action_error"]) is not None:
        beside = (summary.get("baseline") or {}).get("held_out_action_error")
        plain = "" if beside is None else f" (continuous BC {100 * beside:.0f} %)"
        say(
            f"greedy actions on held-out episodes: off by {100 * error:.0f} %{plain} of the "
            "actions' deviation"
        )
    if report := summary.get("quantizer"):
        say(
            f"codes: {report['codes_used']} used, perplexity {report['perplexity']:.0f}, error "
            f"{100 * report['error_per_deviation']:.0f} % of the actions' deviation on "
            f"{report['measured_on']}"
        )
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in summary["seconds"].items())
    say(f"time: {summary['wall_seconds']:.0f} s ({took})")
    say(f"run: {summary['run']}")
    if summary["env"]:
        say(f"next: saqrl evaluate {summary['run']} --episodes 100 --video episode.mp4")


def _tell_seeds(summaries: Sequence[dict[str, Any]], out: Path) -> None:
    """The scores of every seed, and of all of them together."""
    say()
    for summary in summaries:
        say(f"seed {summary['seed']}: {score_words(summary)}")
    if summaries[0]["env"]:
        measure, scale = measure_of(summaries[0]["env"], summaries[0])
        scores = [scale * summary[measure] for summary in summaries]
        say(
            f"{MEASURES[measure]} over {len(scores)} seeds: mean {statistics.fmean(scores):.1f}, "
            f"lowest {min(scores):.1f}, highest {max(scores):.1f}"
        )
    took = summaries[0]
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in took["seconds"].items())
    say(f"time: {took['wall_seconds']:.0f} s ({stages})")
    say(f"next: saqrl report {out}")


_HELP = {
    "actions": "quantized, or the continuous counterpart",
    "dataset": "SPEC: format:path or a path; several, each with a weight if wanted, are a mixture: "
    "--dataset A 2*B, or the flag again; without it demonstrations are collected from --env",
    "env": "environment id to evaluate in; default: the one that the dataset names",
    "demonstrations": "episodes to collect where no dataset is given",
    "angles": "observation columns in radians, seen as cosine and sine",
    "observation_scale": "columns: each to one deviation; common: one factor, for shared units; "
    "none",
    "feature_deviation": "of the networks' inputs; smaller is smoother",
    "reward_scale": "unit: mean size 0.1; return-range: returns span 1000; none",
    "chunk": "consecutive actions that one code stands for",
    "data_episodes": "use only the first so many episodes",
    "held_out": "share of the episodes kept for the quantizer's report",
    "seed": "of the initial networks and batches, and of what is collected",
    "eval_episodes": "episodes of an evaluation",
    "eval_every": "agent steps between evaluations; default: only at the end",
    "keep_every": "agent steps between policies kept beside the last, to choose among them with "
    "saqrl report --offline",
    "log_every": "steps between lines of metrics.jsonl",
    "stream_rows": "rows on the device at a time where the data has more; default: all, of mapped "
    "data 2**18",
    "baseline": "plain continuous BC on the same data, trained and evaluated beside",
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
