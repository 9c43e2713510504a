"""`saqrl quantize`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from saqrl.commands.output import print_json, say
from saqrl.commands.reading import DatasetOptions, with_positional_dataset
from saqrl.datasets import load_dataset
from saqrl.datasets.options import DEFAULT
from saqrl.experiment.progress import Reporter
from saqrl.experiment.quantize import (
    Examination,
    Material,
    best_suggested,
    compare,
    examine_beside,
    find,
    gather,
    summarize,
)
from saqrl.experiment.quantize_page import (
    HEADER,
    replay_sentences,
    require_plots,
    sentences,
    table,
    write_page,
)
from saqrl.experiment.replay import NoReplay, replay


@dataclass
class Quantize:
    """How well codes stand for a dataset's actions: quantizers and codebook sizes compared."""

    dataset: Annotated[str, tyro.conf.Positional]
    """SPEC: format:path or a path; a mixture is 'A + 2*B', or --dataset A --dataset 2*B"""
    quantizer: tuple[str, ...] = ("vqvae",)
    """which to compare: vqvae, vqvae-unconditioned, residual, fsq, kmeans, bins, candidates"""
    codes: tuple[int, ...] = (16, 32, 64, 128, 256)
    """codebook sizes"""
    out: str | None = None
    """new folder for pictures, README.md, index.html and quantize.json"""
    steps: int | None = None
    """gradient steps of each quantizer; default: its own"""
    prior_steps: int = 4_000
    """gradient steps of the behaviour prior"""
    patience: int = 0
    """stop where the held-out error has not fallen by 1 % for so many steps; 0 never"""
    batch_size: int | None = None
    """of the quantizers; default: their own"""
    hidden: tuple[int, ...] | None = None
    """widths of the quantizers' hidden layers; default: their own"""
    held_out: float = 0.2
    """share of the episodes that errors are measured on"""
    chunk: int = 1
    """consecutive actions that one code stands for"""
    replay: int = 3
    """recorded episodes to execute again through the codes, where that is possible; 0 none"""
    beside: tuple[str, ...] = ()
    """SPECs of other data, read the same way: their errors with the suggested quantizer and size
    are told and drawn beside, as of narrow data beside diverse"""
    angles: tuple[int, ...] = ()
    """observation columns in radians, seen as cosine and sine"""
    episodes: int | None = None
    """use only the first so many episodes"""
    env: str | None = None
    """environment id to replay in; default: the one that the dataset names"""
    options: DatasetOptions = DEFAULT
    seed: int = 0
    """of the split, the networks and the batches"""
    json: bool = False
    """last line of stdout: the comparison as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = tyro.cli(
        Quantize,
        args=with_positional_dataset(arguments),
        prog="saqrl quantize",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    out = None if asked.out is None else Path(asked.out)
    _check(asked, out)
    reporter = Reporter()
    material = _gather(asked, asked.dataset)
    others = {spec: _gather(asked, spec) for spec in asked.beside}
    if not material.held_out:
        say(f"note: errors are measured on {material.measured_on}")
    examinations, left_out = compare(
        material,
        quantizers=asked.quantizer,
        codes=sorted(set(asked.codes)),
        prior_steps=asked.prior_steps,
        reporter=reporter,
        steps=asked.steps,
        patience=asked.patience,
        batch_size=asked.batch_size,
        hidden=asked.hidden,
    )
    summary: dict[str, Any] = {"dataset": asked.dataset, "reading": vars(asked.options)}
    summary |= summarize(material, examinations, left_out)
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
        summary["replay"] = _replays(material, examinations, summary, asked.replay, reporter)
    summary["wall_seconds"] = round(reporter.elapsed, 2)
    _tell(summary)
    if out is not None:
        write_page(out, material, examinations, summary, beside)
        say(f"page: {out / 'index.html'}")
    if asked.json:
        print_json(summary)
    return 0


def _gather(asked: Quantize, spec: str) -> Material:
    data = load_dataset(
        spec,
        angles=asked.angles,
        episodes=asked.episodes,
        environment=asked.env,
        options=asked.options,
    )
    return gather(data, chunk=asked.chunk, held_out=asked.held_out, seed=asked.seed)


def _check(asked: Quantize, out: Path | None) -> None:
    """ValueError or ImportError before any work is done."""
    if asked.held_out <= 0:
        raise ValueError(f"held-out is {asked.held_out}; errors need held-out episodes, say 0.2")
    for name, value in (("chunk", asked.chunk), ("prior-steps", asked.prior_steps)):
        if value < 1:
            raise ValueError(f"{name} is {value}; at least 1")
    for name, value in (("replay", asked.replay), ("patience", asked.patience)):
        if value < 0:
            raise ValueError(f"{name} is {value}; 0 or more")
    for name, given in (("steps", asked.steps), ("batch-size", asked.batch_size)):
        if given is not None and given < 1:
            raise ValueError(f"{name} is {given}; at least 1")
    if min(asked.codes, default=0) < 2:
        raise ValueError(f"codes are {asked.codes}; each at least 2")
    if out is not None:
        if out.exists():
            raise ValueError(f"{out} exists already: name another --out")
        require_plots()


def _replays(
    material: Material,
    examinations: Sequence[Examination],
    summary: dict[str, Any],
    episodes: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Of every quantizer at its suggested size: the outcome, or why there is none."""
    found: dict[str, Any] = {}
    for name, suggestion in summary["suggestions"].items():
        examination = find(examinations, name, suggestion["codes"])
        try:
            if material.settings.chunk > 1:
                raise NoReplay("a code stands for a chunk here; replay with --chunk 1")
            shown = material.shown_transitions
            outcome = replay(
                shown,
                examination.quantizer,
                material.scaling,
                episodes=min(episodes, shown.num_episodes),
                error=np.asarray(examination.record["error"]["rms"], np.float32),
                reporter=reporter,
            )
            found[name] = {"num_codes": examination.record["num_codes"], **outcome}
        except (NoReplay, ImportError) as error:
            found[name] = {"reason": str(error)}
    return found


def _tell(summary: dict[str, Any]) -> None:
    """The table and what it says, on standard error."""
    rows = [HEADER, *table(summary)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    say()
    for name, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        say("  ".join((name.ljust(widths[0]), *padded)))
    say()
    for text in (*sentences(summary), *replay_sentences(summary)):
        say(text)
