"""`saqrl quantize`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import DatasetSpec, parse, split_dotted
from saqrl.datasets import ReadOptions
from saqrl.datasets.errors import listing
from saqrl.datasets.options import DEFAULT
from saqrl.datasets.scaling import Scale
from saqrl.environments.packages import import_packages
from saqrl.registry import QUANTIZERS, closest
from saqrl.training.flags import typed
from saqrl.training.progress import Reporter

# Fields of the quantizers that flags of the command's own set.
OWN_FLAGS = ("codes", "steps", "patience", "batch_size", "hidden")


# Settings that flags of the same name change.
CHANGES = (
    "feature_deviation",
    "observation_scale",
    "held_out",
    "chunk",
    "history",
    "angles",
    "env",
    "seed",
)


@dataclass
class Quantize:
    """Compare quantizers and codebook sizes: how well codes reproduce a dataset's actions."""

    dataset: DatasetSpec
    """SPEC: format:path or a path; a mixture is 'A + 2*B', or --dataset A --dataset 2*B"""
    quantizer: tuple[str, ...] = ("vqvae",)
    """quantizers to compare: vqvae, vqvae-unconditioned, residual, fsq, kmeans, bins, candidates"""
    codes: tuple[int, ...] = (16, 32, 64, 128, 256)
    """codebook sizes"""
    preset: str = "default"
    """preset to start from, as in saqrl train (list: saqrl presets)"""
    out: str | None = None
    """new folder for pictures, README.md, index.html and quantize.json"""
    steps: int | None = None
    """gradient steps of each quantizer; default: the preset's"""
    prior_steps: int = 4_000
    """gradient steps of the behaviour prior"""
    patience: int | None = None
    """stop if the held-out error has not fallen by 1 % for N steps; 0: never; default: the
    preset's"""
    batch_size: int | None = None
    """batch size of the quantizers; default: the preset's"""
    hidden: tuple[int, ...] | None = None
    """widths of the quantizers' hidden layers; default: the preset's"""
    feature_deviation: float | None = None
    """standard deviation of the networks' inputs; smaller gives smoother networks; default: the
    preset's"""
    observation_scale: Scale | None = None
    """columns: scale each to the same deviation; common: one factor, for shared units; none;
    default: the preset's"""
    held_out: float | None = None
    """share of the episodes held out to measure errors, if the file has no split; default: 0.2"""
    chunk: int | None = None
    """consecutive actions per code; default: the preset's"""
    history: int | None = None
    """number of last observations that the networks get; default: the preset's"""
    replay: int = 3
    """recorded episodes to replay through the codes, if the simulator state is in the file; 0:
    none"""
    beside: tuple[str, ...] = ()
    """SPECs of other data to compare: their errors with the suggested quantizer and size are
    reported too, for example of narrow next to diverse data"""
    angles: tuple[int, ...] | None = None
    """observation columns that are angles in radians; default: the preset's"""
    episodes: int | None = None
    """use only the first N episodes; default: the preset's"""
    env: str | None = None
    """environment id to replay in; default: from the preset or the dataset"""
    options: ReadOptions = DEFAULT
    seed: int = 0
    """random seed of split, networks and batches"""
    json: bool = False
    """last line of stdout: the comparison as JSON"""


def main(arguments: Sequence[str]) -> int:
    words, dotted = split_dotted(arguments, ("quantizer",))
    asked = parse(Quantize, words)
    from saqrl.studies.codebooks.advice import best_suggested, suggested, summarize
    from saqrl.studies.codebooks.material import Material, fitting_sizes, gather, settings_of
    from saqrl.studies.codebooks.page import write_page
    from saqrl.studies.codebooks.replay import replay_each
    from saqrl.studies.codebooks.study import examine_all, examine_beside
    from saqrl.training.data import load_data

    out = None if asked.out is None else Path(asked.out)
    _check(asked, out)
    changes = {name: getattr(asked, name) for name in CHANGES}
    settings = settings_of(asked.preset, **changes, data_episodes=asked.episodes)
    quantizer_fields = _given_fields(asked, dotted)
    reporter = Reporter()

    def read(spec: str) -> Material:
        data = load_data(settings, dataset=spec, options=asked.options)
        return gather(data, preset=asked.preset, **changes)

    material = read(asked.dataset)
    others = {spec: read(spec) for spec in asked.beside}
    if not material.held_out:
        say(f"note: errors are measured on {material.measured_on}")
    codes, too_many = fitting_sizes(material, asked.codes)
    notes = [too_many] if too_many else []
    for note in notes:
        say(f"note: {note}")
    examinations, left_out = examine_all(
        material,
        quantizers=asked.quantizer,
        codes=codes,
        prior_steps=asked.prior_steps,
        reporter=reporter,
        preset=asked.preset,
        **quantizer_fields,
    )
    summary: dict[str, Any] = {
        "dataset": asked.dataset,
        "reading": vars(asked.options),
        "preset": asked.preset,
    }
    summary |= summarize(material, examinations, left_out, notes)
    beside = examine_beside(
        others,
        best_suggested(examinations, summary).hyperparameters,
        prior_steps=asked.prior_steps,
        reporter=reporter,
    )
    summary["beside"] = [
        {"dataset": spec, "measured_on": other.measured_on, **examination.record}
        for spec, (other, examination) in beside.items()
    ]
    if asked.replay:
        summary["replay"] = replay_each(
            material, suggested(examinations, summary), episodes=asked.replay, reporter=reporter
        )
    summary["wall_seconds"] = round(reporter.elapsed, 2)
    _tell(summary)
    if out is not None:
        write_page(out, material, examinations, summary, beside)
        say(f"page: {out / 'index.html'}")
    if asked.json:
        print_json(summary)
    return 0


def _given_fields(asked: Quantize, dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the quantizers that were given; ValueError for one that none of them has."""
    given = {}
    for flag, value in dotted.items():
        name = flag.partition(".")[2].replace("-", "_")
        owners = [q for q in QUANTIZERS if name in {f.name for f in fields(QUANTIZERS.load(q))}]
        if not owners:
            known = {f.name for q in QUANTIZERS for f in fields(QUANTIZERS.load(q))}
            raise ValueError(f"--{flag}: no quantizer has such a field; {closest(name, known)}")
        if not set(owners) & set(asked.quantizer):
            raise ValueError(
                f"--{flag}: {listing(asked.quantizer)} has no such field, but "
                f"{listing(owners)} has: remove the flag, or compare one of these"
            )
        given[name] = typed(flag, get_type_hints(QUANTIZERS.load(owners[0]))[name], value)
    own = {name: getattr(asked, name) for name in OWN_FLAGS if name != "codes"}
    return {**given, **own}


def _check(asked: Quantize, out: Path | None) -> None:
    """ValueError or ImportError before any work is done."""
    if asked.held_out is not None and asked.held_out <= 0:
        raise ValueError(
            f"held-out is {asked.held_out}; errors are measured on held-out episodes: choose a "
            "share such as 0.2"
        )
    for name in ("chunk", "history", "prior_steps", "steps", "batch_size"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise ValueError(f"{name.replace('_', '-')} is {value}; it must be at least 1")
    for name, value in (("replay", asked.replay), ("patience", asked.patience)):
        if value is not None and value < 0:
            raise ValueError(f"{name} is {value}; it must be 0 or more")
    if asked.feature_deviation is not None and asked.feature_deviation <= 0:
        raise ValueError(f"feature-deviation is {asked.feature_deviation}; it must be above 0")
    if min(asked.codes, default=0) < 2:
        raise ValueError(f"codes are {asked.codes}; each must be at least 2")
    if out is not None:
        if out.exists():
            raise ValueError(f"{out} exists already: choose another --out")
        import_packages("--out", ("matplotlib",), extra="plots")


def _tell(summary: dict[str, Any]) -> None:
    """The table and what it says, on standard error."""
    from saqrl.studies.codebooks.page import HEADER, sentences, table
    from saqrl.studies.page import to_columns

    say()
    say(to_columns(HEADER, table(summary)))
    say()
    for text in sentences(summary):
        say(text)
