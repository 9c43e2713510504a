"""`saqrl inspect`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from saqrl.commands.output import print_json
from saqrl.datasets import load_dataset
from saqrl.datasets.audit import audit
from saqrl.datasets.audit_text import render


@dataclass
class Inspect:
    """What is in a dataset, and what is wrong with it."""

    dataset: Annotated[str, tyro.conf.Positional]
    """SPEC: format:path or a path"""
    angles: tuple[int, ...] = ()
    """observation columns that are known to be angles in radians"""
    json: bool = False
    """last line of stdout: the findings as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = tyro.cli(
        Inspect,
        args=list(arguments),
        prog="saqrl inspect",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    findings = audit(load_dataset(asked.dataset, angles=asked.angles))
    Console(stderr=asked.json, highlight=False).print(render(findings))
    if asked.json:
        print_json(findings.to_json())
    return 0
