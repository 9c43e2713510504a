"""`saqrl presets`."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from saqrl.commands.output import print_json
from saqrl.commands.parser import parse
from saqrl.training.presets import PRESETS, Preset


@dataclass
class Presets:
    """Named starting points, with the data they are for and the scores to expect."""

    json: bool = False
    """last line of stdout: the presets as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Presets, arguments)
    text = "\n\n".join(_describe(name, preset) for name, preset in PRESETS.items())
    print(text, file=sys.stderr if asked.json else sys.stdout)
    if asked.json:
        print_json({name: asdict(preset) for name, preset in PRESETS.items()})
    return 0


def _describe(name: str, preset: Preset) -> str:
    """The name and its summary, then what is known of it, a line each."""
    expected = ", ".join(f"{method} {score}" for method, score in preset.expected.items())
    rows = {
        "data": preset.data,
        "score": preset.protocol,
        "expected": expected,
        "source": preset.source,
    }
    lines = [f"  {label + ':':<10}{text}" for label, text in rows.items() if text]
    return "\n".join([f"{name}: {preset.summary}", *lines])
