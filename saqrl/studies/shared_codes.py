"""A run that begins with another's finished quantizer: its first stages are copied, not trained.

That is exactly what a resumed run would find, so it changes no bit of what follows.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from saqrl.agents.bc import BC
from saqrl.arrays import read_arrays, write_arrays, write_atomically
from saqrl.training.run_folder import RunFolder, read_config
from saqrl.training.settings import Settings
from saqrl.training.versions import versions


def share_codes(settings: Settings, folder: Path, others: Iterable[tuple[Settings, Path]]) -> None:
    """Begin a run folder with the finished quantizer (and prior) of an equal run, if any.

    Equal: the same versions and every setting that codes depend on. config.json names the stages
    that were copied as `shared`.
    """
    if not settings.quantized:
        return
    config = {"settings": settings.to_json(), "versions": versions(settings.data.env)}
    common = [(stages_in_common(settings, theirs), path) for theirs, path in others]
    for stages, source in sorted(common, key=lambda pair: -len(pair[0])):
        if not stages or not (source / "result.json").exists():
            continue
        if read_config(source)["versions"] == config["versions"]:
            record = {"shared": list(stages), "data": read_config(source).get("data")}
            run = RunFolder.create(folder, config | record)
            try:
                _copy(stages, source, run)
            finally:
                run.close()
            return


def stages_in_common(ours: Settings, theirs: Settings) -> tuple[str, ...]:
    """The stages with which two runs begin alike."""
    if not theirs.quantized or _before_the_codes(ours) != _before_the_codes(theirs):
        return ()
    clones = isinstance(ours.agent, BC) or isinstance(theirs.agent, BC)  # these have no prior
    return ("quantizer",) if clones or ours.prior != theirs.prior else ("quantizer", "prior")


def _before_the_codes(settings: Settings) -> tuple[Any, ...]:
    """What the quantizer and the prior depend on."""
    features = replace(settings.features, reward_scale="none")
    return settings.quantizer, settings.data, features, settings.seed, settings.output.log_every


def _copy(stages: Iterable[str], source: Path, run: RunFolder) -> None:
    """The last checkpoint of each stage as one of the run's, and the histories up to the last."""
    settings = read_config(run.path)["settings"]
    for stage in stages:
        newest = max((source / "checkpoints").glob(f"[0-9]*-{stage}.ckpt"))
        leaves, header = read_arrays(newest)
        for history, size in header["sizes"].items():
            if size:
                lines = (source / f"{history}.jsonl").read_bytes()[:size]
                write_atomically(run.path / f"{history}.jsonl", lines)
        header = header | {"settings": settings, "spent": {}}
        write_arrays(run.path / "checkpoints" / newest.name, leaves, header)
