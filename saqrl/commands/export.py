"""`saqrl export`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import Word, parse
from saqrl.datasets import Transitions
from saqrl.datasets.chunks import chunk_actions
from saqrl.datasets.windows import windows
from saqrl.registry import Act
from saqrl.training.summary import act_words

# Rows of the held-out episodes that the written file is compared on.
COMPARED = 512


@dataclass
class Export:
    """Write a run's policy as one file that needs no JAX: raw observation in, action out."""

    run: Word
    """run folder"""
    out: str
    """file to write"""
    format: Literal["onnx", "npz"] | None = None
    """onnx (needs onnxruntime) or npz (needs only NumPy); default: from the suffix of --out"""
    step: int | None = None
    """gradient step of the policy, for runs with --keep-every; default: the last"""
    act: Act | None = None
    """greedy, sample (noise is an input of the graph) or mean; default: as in the run"""
    act_temperature: float | None = None
    """temperature of sample and mean; below 1: closer to greedy; default: as in the run"""
    part: Literal["policy", "encoder", "decoder"] = "policy"
    """the whole policy, or only the encoder or decoder of its quantizer"""
    dataset: str | None = None
    """SPEC of the run's data, if they were moved"""
    json: bool = False
    """last line of stdout: the result as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Export, arguments)
    from saqrl.deploy.export import export
    from saqrl.policy.storage import load_policy
    from saqrl.training.data import load_training_data, training_spec
    from saqrl.training.preparation import split
    from saqrl.training.run_folder import policy_folder, read_config
    from saqrl.training.train import saved_settings

    path, out = Path(asked.run), Path(asked.out)
    file_format = asked.format or out.suffix.removeprefix(".")
    if file_format not in ("onnx", "npz"):
        raise ValueError(f"--out {out} has neither suffix .onnx nor .npz: add --format onnx or npz")
    versions = read_config(path).get("versions", {})
    settings, policy = saved_settings(path), load_policy(policy_folder(path, asked.step))
    policy = policy.acting(asked.act, asked.act_temperature)
    way = {"act": policy.default_act, "act_temperature": policy.act_temperature}
    spec = asked.dataset or training_spec(path, settings)
    data = load_training_data(path, settings, policy, dataset=spec)
    training, held_out = split(data, settings)
    compared = held_out or training
    rows = np.sort(
        np.random.default_rng(0).permutation(len(compared))[: min(COMPARED, len(compared))]
    )
    verification = export(
        policy,
        out,
        file_format=file_format,  # type: ignore[arg-type]
        part=asked.part,
        act=policy.default_act,
        observations=windows(training, policy.history),
        held_out=windows(compared, policy.history, rows),
        held_out_actions=_chunks(compared, settings.features.chunk)[rows],
        provenance={
            "run": path.resolve().name,
            "dataset": Path(spec.partition(":")[2] or spec).name,
            "seed": settings.seed,
            "step": asked.step,
            "control_rate_hz": data.control_rate,
            "trained_with": versions,
        },
    )
    size = out.stat().st_size
    ties = f", {verification.ties} ties between codes" if verification.ties else ""
    say(
        f"{out}: {asked.part} ({act_words(way)}), {size / 1024:,.0f} KiB; differs from the policy "
        f"by at most {verification.largest_difference:.1e} on {verification.observations} "
        f"{'held-out' if held_out else 'training'} observations{ties}"
    )
    if asked.part == "policy":
        say(f"next: saqrl serve {out}   or   saqrl.deploy.runtime.load({str(out)!r})")
    if asked.json:
        record: dict[str, Any] = {
            "out": str(out),
            "format": file_format,
            "part": asked.part,
            **way,
            "bytes": size,
            "observations": verification.observations,
            "largest_difference": verification.largest_difference,
            "ties": verification.ties,
        }
        print_json(record)
    return 0


def _chunks(transitions: Transitions, chunk: int) -> np.ndarray:
    return chunk_actions(transitions, chunk).reshape(len(transitions), chunk, -1)
