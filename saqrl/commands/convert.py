"""`saqrl convert`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from saqrl.commands.output import print_json, say
from saqrl.datasets import DatasetError, ReadOptions, load_dataset
from saqrl.datasets.collect import check_destination, save
from saqrl.datasets.convert import convert, first_difference, format_of
from saqrl.datasets.errors import counted


@dataclass
class Convert:
    """Write a dataset in another format; read back, it is the same bit for bit."""

    dataset: Annotated[str, tyro.conf.Positional]
    """SPEC: format:path or a path"""
    out: Annotated[str, tyro.conf.Positional]
    """new file (npz, d4rl, robomimic) or folder (minari, lerobot)"""
    format: Literal["npz", "d4rl", "minari", "robomimic", "lerobot"] | None = None
    """format of OUT; default: by its suffix where that says it"""
    env: str | None = None
    """environment id to record; for OGBench's files the task whose rewards are made"""
    coded: str | None = None
    """run folder: write its codes in place of the actions, as npz for libraries of discrete RL"""
    options: Annotated[ReadOptions, tyro.conf.arg(name="dataset")] = field(
        default_factory=ReadOptions
    )
    json: bool = False
    """last line of stdout: what was written as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = tyro.cli(
        Convert,
        args=list(arguments),
        prog="saqrl convert",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    out = Path(asked.out)
    if asked.coded is not None:
        return _convert_coded(asked, out)
    target = asked.format or format_of(out)
    if target is None:
        raise DatasetError(
            f"{out}: say which format to write: --format npz, d4rl, minari, robomimic or lerobot"
        )
    transitions = load_dataset(asked.dataset, environment=asked.env, options=asked.options)
    convert(transitions, out, target)
    difference = first_difference(transitions, load_dataset(f"{target}:{out}"))
    if difference is not None:
        raise DatasetError(
            f"{out}: read back, {difference} are not what was written; this is a defect of saqrl: "
            "do not use the file"
        )
    if transitions.held_out is not None:
        count = counted(transitions.held_out.num_episodes, "held-out episode")
        say(f"note: {count} are not in it; convert them by a SPEC of their own")
    size = sum(f.stat().st_size for f in (out.rglob("*") if out.is_dir() else [out]) if f.is_file())
    steps = counted(len(transitions), "step")
    say(
        f"{target}:{out}  {counted(transitions.num_episodes, 'episode')}, {steps}, "
        f"{size / 1e6:.1f} MB, read back: the same"
    )
    if asked.json:
        print_json(
            {
                "out": str(out),
                "format": target,
                "episodes": transitions.num_episodes,
                "steps": len(transitions),
                "bytes": size,
            }
        )
    return 0


def _convert_coded(asked: Convert, out: Path) -> int:
    """Observations, codes, rewards and ends, as d3rlpy's MDPDataset takes them."""
    from saqrl.experiment.coded import coded_trajectories
    from saqrl.experiment.train import saved_settings
    from saqrl.policy.storage import load_policy

    check_destination(out)
    run = Path(str(asked.coded))
    arrays = coded_trajectories(
        saved_settings(run), load_policy(run / "policy"), asked.dataset, options=asked.options
    )
    save(out, arrays)
    codes, ends = arrays["actions"], arrays["terminals"] + arrays["timeouts"]
    say(f"{out}: {counted(int(ends.sum()), 'episode')}, {counted(len(codes), 'decision')}")
    if asked.json:
        print_json({"out": str(out), "episodes": int(ends.sum()), "decisions": len(codes)})
    return 0
