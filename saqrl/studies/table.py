"""Rows of what runs scored: kept in a file as a grid goes on, or collected from run folders."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saqrl.arrays import write_atomically
from saqrl.datasets.naming import distinct_names
from saqrl.studies.methods import Method
from saqrl.training.flags import FLAGS
from saqrl.training.run_folder import read_config, read_history, read_result
from saqrl.training.settings import Settings
from saqrl.training.train import saved_settings

TABLE = "table.jsonl"
# A score is the mean over this many last evaluations.
LAST_EVALUATIONS = 3
# What the field of an evaluation is called in a table.
MEASURES = {
    "normalized_score": "D4RL score",
    "max_reward_mean": "highest reward, %",
    "success_rate": "success, %",
    "return_mean": "return",
}
# Measures that lie on one scale from 0 to about 100, so that tasks can be averaged.
COMPARABLE = frozenset(MEASURES.values()) - {"return"}


# Settings that change neither what a policy learns nor how it acts, and those that rows name.
_BESIDE_THE_TRAINING = frozenset(
    (
        *("dataset", "env", "chunk", "baseline"),
        *("eval_episodes", "eval_every", "keep_every", "log_every", "stream_rows"),
    )
)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The last row of every cell in the order of first appearance; a torn last line is left out."""
    if not path.exists():
        return []
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    whole, _, _ = path.read_text().rpartition("\n")
    for line in whole.splitlines():
        row = json.loads(line)
        latest[key_of(row)] = row
    return list(latest.values())


def key_of(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["task"], row["method"], row["seed"]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One line; what a killed process left of a line is dropped first."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def identity(task: str, method: str, settings: Settings) -> dict[str, Any]:
    """What tells a row from the others, and the kind of its method."""
    return {
        "task": task,
        "method": method,
        "seed": settings.seed,
        "actions": settings.actions,
        "agent": settings.agent_name,
    }


def agent_evaluations(run: Path) -> list[dict[str, Any]]:
    """A run's evaluations in their order, without those of its baseline."""
    return [r for r in read_history(run, "evaluations") if r["stage"] == "agent"]


def row_of(path: Path) -> dict[str, Any]:
    """What a finished run folder scored, as a row of the table, without its place in a grid.

    ValueError where it was evaluated in no environment.
    """
    result, config = read_result(path), read_config(path)
    records = agent_evaluations(path)
    if not records:
        raise ValueError(f"{path} was scored in no environment: name one with --env")
    measure, scale = measure_of(result["env"], records[-1])
    curve = [(record["step"], scale * record[measure]) for record in records]
    last = [score for _, score in curve[-LAST_EVALUATIONS:]]
    report = result["quantizer"] or {}
    return {
        "measure": MEASURES[measure],
        "score": sum(last) / len(last),
        "averaged": len(last),
        "final": curve[-1][1],
        "best": max(score for _, score in curve),
        "episodes": result["episodes"],
        "curve": curve,
        "act": result["act"],
        "dataset": result["dataset"],
        "env": result["env"],
        "gradient_steps": result["gradient_steps"],
        "wall_seconds": result["wall_seconds"],
        "quantizer": {
            name: report[name]
            for name in ("error_per_deviation", "perplexity", "prior_accuracy", "measured_on")
            if name in report
        },
        "shared": config.get("shared", []),
        "versions": config["versions"],
    }


def measure_of(environment_id: str, record: Mapping[str, Any]) -> tuple[str, float]:
    """The field that counts in an environment, and what makes it a percentage.

    Push-T counts the highest reward of an episode, D4RL's tasks their normalised score, others
    success where they report it, else the return.
    """
    if environment_id.startswith("gym_pusht/"):
        return "max_reward_mean", 100.0
    if record["normalized_score"] is not None:
        return "normalized_score", 1.0
    if record["success_rate"] is not None:
        return "success_rate", 100.0
    return "return_mean", 1.0


def collect_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the finished runs anywhere below a folder that no grid made.

    Runs of one agent on one data set that were trained otherwise are different methods, named by
    what differs; a run that is there twice counts once.
    """
    paths = [result.parent for result in sorted(folder.rglob("result.json"))]
    results = map(read_result, paths)
    specs = [result["dataset"] or result["env"] for result in results]
    named = distinct_names(specs)
    cells: dict[tuple[str, str], dict[str, _Found]] = {}
    for path, spec in zip(paths, specs, strict=True):
        settings = saved_settings(path)
        trained = _trained_as(settings)
        task = named[spec] + (f"-chunk{chunk}" if (chunk := settings.features.chunk) > 1 else "")
        method = Method(settings.actions, settings.agent_name).name
        same = json.dumps([settings.seed, sorted(trained.items())], default=str)
        cells.setdefault((task, method), {}).setdefault(same, _Found(path, settings, trained))
    for (task, method), runs in cells.items():
        ways = [found.trained for found in runs.values()]
        names = dict.fromkeys(name for trained in ways for name in trained)
        differing = [n for n in names if len({str(trained.get(n)) for trained in ways}) > 1]
        for path, settings, trained in runs.values():
            values = ", ".join(f"{name}={trained.get(name)}" for name in differing)
            row = identity(task, f"{method} ({values})" if values else method, settings)
            row["run"] = str(path)
            try:
                yield row | row_of(path)
            except ValueError as error:
                yield row | {"error": str(error)}


class _Found(NamedTuple):
    path: Path
    settings: Settings
    trained: dict[str, Any]


def _trained_as(settings: Settings) -> dict[str, Any]:
    """What decides how a policy comes out and acts, but for data and seed: flag -> value."""
    owners = ("agent", "quantizer", "prior") if settings.quantized else ("agent",)
    parts = {owner: getattr(settings, owner) for owner in owners}
    parts["dataset"] = settings.data.reading
    return {
        flag: getattr(getattr(settings, record), name)
        for flag, (record, name, _) in FLAGS.items()
        if flag not in _BESIDE_THE_TRAINING
    } | {f"{owner}.{name}": v for owner, part in parts.items() for name, v in vars(part).items()}
