"""What runs there are below a folder, one line each; a damaged one is a line too."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saqrl.datasets.naming import dataset_name
from saqrl.studies.table import MEASURES
from saqrl.training.evaluation import measure_of
from saqrl.training.progress import time_words
from saqrl.training.run_folder import is_held, read_config, read_history, read_result
from saqrl.training.summary import score_words

COLUMNS = ("run", "data", "method", "chunk", "codes", "score", "skill", "state", "time")
# Folders below the one that is listed.
DEEPEST = 6


@dataclass(frozen=True)
class Listed:
    """One run. None is what its files do not say."""

    run: str
    state: str
    """finished, running, stopped, or damaged"""
    changed: float
    """When, in seconds since 1970."""
    step: int | None = None
    """Where it is, of the stage that it is in, while it has not finished."""
    stage: str | None = None
    data: str | None = None
    agent: str | None = None
    actions: str | None = None
    chunk: int | None = None
    codes: int | None = None
    score: str | None = None
    held_out_action_error: float | None = None
    held_out_skill: float | None = None
    seconds: float | None = None
    error: str | None = None

    def cells(self, folder: Path) -> tuple[str, ...]:
        """For COLUMNS."""
        path = Path(self.run)
        name = str(path.relative_to(folder)) if path != folder else self.run
        state = self.state
        if self.error is not None:
            state = f"damaged: {_cut(self.error)}"
        elif self.step is not None:
            state = f"{state} at step {self.step:,} of {self.stage}"
        kind = "continuous " if self.actions == "continuous" else ""
        skill = self.held_out_skill
        return (
            name,
            self.data or "",
            f"{kind}{self.agent or ''}",
            "" if self.chunk is None else str(self.chunk),
            "" if self.codes is None else str(self.codes),
            self.score or "",
            "" if skill is None else f"{100 * skill:.0f} %",
            state,
            "" if self.seconds is None else time_words(self.seconds),
        )


def listed_runs(folder: Path) -> list[Listed]:
    """The runs in and below a folder, the newest last; nothing that a file holds stops it."""
    return sorted((_listed(run) for run in _runs(folder)), key=lambda run: (run.changed, run.run))


def _runs(folder: Path) -> Iterator[Path]:
    """Folders that are runs, or were."""
    for place, folders, files in os.walk(folder):
        path = Path(place)
        depth = len(path.relative_to(folder).parts)
        if {"config.json", "result.json", "metrics.jsonl"} & {*files}:
            folders.clear()
            yield path
        elif depth >= DEEPEST:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]


def _listed(run: Path) -> Listed:
    names = ("result.json", "metrics.jsonl", "config.json")
    times = [os.lstat(run / name).st_mtime for name in names if os.path.lexists(run / name)]
    changed = max(times, default=0.0)
    try:
        asked = _asked(read_config(run)["settings"])
        if os.path.lexists(run / "result.json"):
            return Listed(str(run), "finished", changed, **asked, **_result(read_result(run)))
        last = (read_history(run, "metrics") or [{}])[-1]
        state = "running" if is_held(run) else "stopped"
        step, stage = last.get("step"), last.get("stage")
        return Listed(str(run), state, changed, step or 0, stage or "data", **asked)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        words = str(error) or type(error).__name__
        return Listed(str(run), "damaged", changed, error=words.replace(f"{run}/", ""))


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings of any version; what is of another type is not told."""
    data, agent, actions = (settings.get(name) or {} for name in ("data", "agent", "actions"))
    spec = data.get("dataset") or data.get("env")
    quantizer = settings.get("quantizer") or {}
    codes = quantizer.get("codes")
    chunk = (settings.get("features") or {}).get("chunk")
    return {
        "data": dataset_name(spec) if isinstance(spec, str) else None,
        "agent": agent.get("name") if isinstance(agent.get("name"), str) else None,
        "actions": actions if isinstance(actions, str) else None,
        "chunk": chunk if type(chunk) is int else None,
        "codes": codes if type(codes) is int and actions == "quantized" else None,
    }


def _result(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "score": _score(result),
        "held_out_action_error": result.get("held_out_action_error"),
        "held_out_skill": result.get("held_out_skill"),
        "seconds": result["wall_seconds"],
    }


def _score(result: Mapping[str, Any]) -> str | None:
    """What counts in its environment, in words."""
    if not result["env"] or result.get("return_mean") is None:
        return None
    measure, _ = measure_of(result["env"], dict.fromkeys(MEASURES) | dict(result))
    return score_words({measure: result[measure], "return_std": result.get("return_std")})


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 90 else f"{line[:87]}..."
