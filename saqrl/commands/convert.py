"""`saqrl convert`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import DatasetSpec, Word, parse
from saqrl.datasets import DatasetError, ReadOptions, Transitions, load_dataset
from saqrl.datasets.errors import counted
from saqrl.datasets.formats.writers import (
    check_destination,
    convert,
    convert_each,
    first_difference,
    first_difference_of_parts,
    format_of,
    save_arrays,
)
from saqrl.datasets.mixture import parts_of
from saqrl.datasets.options import DEFAULT


@dataclass
class Convert:
    """Write a dataset in another format; read back, it is the same bit for bit."""

    dataset: DatasetSpec
    """SPEC: format:path or a path; a mixture is 'A + 2*B', or --dataset A --dataset 2*B"""
    out: Word
    """new file (npz, d4rl, robomimic) or folder (minari, lerobot, mapped)"""
    format: Literal["npz", "d4rl", "minari", "robomimic", "lerobot", "mapped"] | None = None
    """format of OUT; default: from its suffix, if that is unambiguous"""
    env: str | None = None
    """environment id to record; for OGBench files the task to compute rewards for"""
    coded: str | None = None
    """run folder: write its codes instead of the actions, as npz for discrete RL libraries"""
    options: ReadOptions = DEFAULT
    json: bool = False
    """last line of stdout: what was written as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Convert, arguments)
    out = Path(asked.out)
    if asked.coded is not None:
        return _convert_coded(asked, out)
    target = asked.format or format_of(out)
    if target is None:
        raise DatasetError(
            f"{out}: the name does not determine the format; pass --format npz, d4rl, "
            "minari, robomimic, lerobot or mapped"
        )
    parts = parts_of(asked.dataset)
    if target == "mapped" and len(parts) > 1 and all(weight == 1 for weight, _ in parts):

        def logs() -> Iterator[Transitions]:
            """One at a time: together they may be larger than memory."""
            for _, spec in parts:
                yield load_dataset(spec, environment=asked.env, options=asked.options)

        convert_each(logs(), out)
        transitions = load_dataset(f"mapped:{out}")
        difference = first_difference_of_parts(logs(), transitions)
    else:
        transitions = load_dataset(asked.dataset, environment=asked.env, options=asked.options)
        convert(transitions, out, target)
        difference = first_difference(transitions, load_dataset(f"{target}:{out}"))
    if difference is not None:
        raise DatasetError(
            f"{out}: after reading the file back, {difference} differs from what was "
            "written; this is a bug in saqrl: do not use the file"
        )
    if transitions.held_out is not None:
        count = counted(transitions.held_out.num_episodes, "held-out episode")
        say(f"note: {count} not converted; convert them with a SPEC of their own")
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
    from saqrl.policy.storage import load_policy
    from saqrl.training.coded import coded_trajectories
    from saqrl.training.data import load_training_data
    from saqrl.training.train import saved_settings

    check_destination(out)
    run = Path(str(asked.coded))
    settings, policy = saved_settings(run), load_policy(run / "policy")
    # Nothing said: what the run was trained on.
    options = None if asked.options == DEFAULT else asked.options
    data = load_training_data(
        run, settings, policy, dataset=asked.dataset, options=options, same=False
    )
    arrays = coded_trajectories(data, settings, policy)
    save_arrays(out, arrays)
    codes, ends = arrays["actions"], arrays["terminals"] + arrays["timeouts"]
    say(f"{out}: {counted(int(ends.sum()), 'episode')}, {counted(len(codes), 'decision')}")
    if asked.json:
        print_json({"out": str(out), "episodes": int(ends.sum()), "decisions": len(codes)})
    return 0
