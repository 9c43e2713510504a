"""`saqrl inspect`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import DatasetSpec, parse
from saqrl.datasets import ReadOptions, load_dataset
from saqrl.datasets.audit.behaviour import Behaviour
from saqrl.datasets.audit.findings import audit
from saqrl.datasets.audit.picture import draw, require_picture_path
from saqrl.datasets.audit.text import render
from saqrl.datasets.options import DEFAULT
from saqrl.training.flags import typed_as
from saqrl.training.recipe import Choice, choices


@dataclass
class Inspect:
    """What is in a dataset, and what is wrong with it."""

    dataset: DatasetSpec
    """SPEC: format:path or a path; a mixture is 'A + 2*B', or --dataset A --dataset 2*B"""
    angles: tuple[int, ...] = ()
    """observation columns that are angles in radians"""
    env: str | None = None
    """environment id; for OGBench files the task to compute rewards for"""
    options: ReadOptions = DEFAULT
    picture: str | None = None
    """write returns, lengths and action histograms to this file (.png, .svg, .pdf)"""
    json: bool = False
    """last line of stdout: the findings as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Inspect, arguments)
    if asked.picture is not None:
        require_picture_path(Path(asked.picture))
    transitions = load_dataset(
        asked.dataset, angles=asked.angles, environment=asked.env, options=asked.options
    )
    findings = audit(transitions)
    console = Console(stderr=asked.json, highlight=False)
    console.print(render(findings))
    said = {"dataset": asked.dataset, **_different(asked)}
    measured = Behaviour(findings.persistence, findings.spread, findings.meetings)
    chosen = choices(transitions, said, measured)
    console.print(advice(chosen, said), soft_wrap=True)  # the command is one line to copy
    if asked.picture is not None:
        draw(transitions, findings, Path(asked.picture))
        say(f"picture: {asked.picture}")
    if asked.json:
        print_json({**findings.to_json(), "recipe": [asdict(choice) for choice in chosen]})
    return 0


def _different(asked: Inspect) -> dict[str, Any]:
    """The flags of `saqrl train` for what was said of the reading."""
    options = {
        f"dataset.{each.name}": value
        for each in fields(asked.options)
        if (value := getattr(asked.options, each.name)) != each.default
    }
    named = {"env": asked.env, "angles": asked.angles, **options}
    return {flag: value for flag, value in named.items() if value not in (None, ())}


def advice(chosen: Sequence[Choice], said: Mapping[str, Any]) -> Text:
    """What `saqrl train` chooses of itself, and the command."""
    words = shlex.join(word for flag in said.items() for word in typed_as(*flag))
    text = Text("\nsaqrl train chooses\n", style="bold")
    for choice in chosen:
        flag = choice.flag.replace("_", "-")
        text.append(f"  {flag} {choice.words}", style="cyan not bold")
        text.append(f"  {choice.reason}\n", style="not bold dim")
    return text.append(f"next: saqrl train {words}", style="not bold")
