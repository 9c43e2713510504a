"""The result of a fine-tuning as text."""

from collections.abc import Mapping
from typing import Any

from saqrl.training.summary import score_words, summary_text


def finetuned_text(result: Mapping[str, Any]) -> str:
    """The score before and after, how much was played, and how well codes cover the actions."""
    told = result["finetune"]
    lines = [summary_text(result)]
    if told["before"] is not None:
        lines.append(f"before: {score_words(told['before'])}")
    lines.append(
        f"played: {told['environment_steps']:,} environment steps in {told['episodes']:,} episodes "
        f"({told['environment_steps_per_second']:,.0f}/s with {told['updates']:,} updates)"
    )
    codes = told["codes"]
    if codes["last"] is not None:
        away = [
            f"{100 * codes[when]['code_error']:.1f} %" for when in ("recorded", "first", "last")
        ]
        lines.append(
            f"distance to the nearest code, in % of half an action's range: {away[0]} for "
            f"recorded decisions, {away[1]} for the first played, {away[2]} for the last; "
            f"{100 * codes['last']['uncovered']:.0f} % of the last are farther away than 95 "
            "% of the recorded"
        )
        if "added" in codes:
            lines.append(
                f"codes: {codes['added']} opened ({codes['executed']} played since), "
                f"{codes['retired']} retired, {codes['live']} at the end"
            )
    return "\n".join(lines)
