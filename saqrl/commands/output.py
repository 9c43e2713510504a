"""What every command prints at its end: one JSON object, or words for a person."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from saqrl.records import printable


def print_json(record: Mapping[str, Any]) -> None:
    """The last line of standard output; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_finite(record)), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def say(message: str = "") -> None:
    """A line for a person, on standard error, where progress goes too."""
    print(printable(message), file=sys.stderr, flush=True)
