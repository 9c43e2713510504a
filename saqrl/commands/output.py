"""What every command prints at its end: one JSON object, or words for a person."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any


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
    print(message, file=sys.stderr, flush=True)


def score_words(record: Mapping[str, Any]) -> str:
    """The scores of a record that are there, the task's own measure first."""
    words = []
    if record.get("success_rate") is not None:
        words.append(f"success {100 * record['success_rate']:.0f} %")
    if record.get("normalized_score") is not None:
        words.append(f"D4RL score {record['normalized_score']:.1f}")
    if record.get("return_mean") is not None:
        words.append(f"return {record['return_mean']:.1f} +- {record['return_std']:.1f}")
    if record.get("max_reward_mean") is not None:
        words.append(f"highest reward {record['max_reward_mean']:.3f}")
    return ", ".join(words) if words else "no environment to score in"
