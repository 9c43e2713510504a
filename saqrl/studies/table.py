"""Rows of what runs scored: kept in a file as a grid goes on, or collected from run folders."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from saqrl.arrays import write_atomically
from saqrl.datasets.naming import distinct_names
from saqrl.studies.methods import Method
from saqrl.training.evaluation import measure_of
from saqrl.training.flags import FLAGS
from saqrl.training.run_folder import read_config, read_history, read_result
from saqrl.training.settings import Settings
from saqrl.training.stages import plain_cloning
from saqrl.training.train import saved_settings

TABLE = "table.jsonl"
# What the field of an evaluation is called in a table.
MEASURES = {
    "normalized_score": "D4RL score",
    "max_reward_mean": "highest reward, %",
    "success_rate": "success, %",
    "return_mean": "return",
}
# Measures that lie on one scale from 0 to about 100, so that tasks can be averaged.
COMPARABLE = frozenset(MEASURES.values()) - {"return"}

# Settings by which runs are told apart rather than by others that differ too.
TOLD_FIRST = ("chunk", "history", "members", "quantizer.codes", "agent.steps")
# Settings that change neither what a policy learns nor how it acts, and those that rows name.
_BESIDE_THE_TRAINING = frozenset(
    (
        *("dataset", "env", "baseline"),
        *("eval_episodes", "eval_first", "eval_every", "keep_every", "log_every", "stream_rows"),
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


def row_of(path: Path, stage: str = "agent") -> dict[str, Any]:
    """What a finished run folder scored, as a row of the table, without its place in a grid.

    stage: agent, or the baseline that it trained beside. ValueError where it was evaluated in no
    environment.
    """
    result, config = read_result(path), read_config(path)
    records = [r for r in read_history(path, "evaluations") if r["stage"] == stage]
    if not records:
        raise ValueError(f"{path} was not evaluated in an environment: run it again with --env")
    measure, scale = measure_of(result["env"], records[-1])
    curve = [(record["step"], scale * record[measure]) for record in records]
    report = (result["quantizer"] or {}) if stage == "agent" else {}
    alone = stage != "agent"
    return {
        "measure": MEASURES[measure],
        "score": curve[-1][1],
        "final": curve[-1][1],
        "best": max(score for _, score in curve),
        "episodes": result["episodes"],
        "curve": curve,
        "act": records[-1]["act"] if alone else result["act"],
        "dataset": result["dataset"],
        "env": result["env"],
        "gradient_steps": curve[-1][0] if alone else result["gradient_steps"],
        "steps_beside": {} if alone else _steps_beside(path),
        "wall_seconds": result["seconds"].get(stage, 0.0) if alone else result["wall_seconds"],
        "quantizer": {
            name: report[name]
            for name in ("error_per_deviation", "perplexity", "prior_accuracy", "measured_on")
            if name in report
        },
        "shared": config.get("shared", []),
        "versions": config["versions"],
    }


def _steps_beside(path: Path) -> dict[str, int]:
    """Gradient steps of the stages before the agent, by stage."""
    steps = {record["stage"]: record["step"] for record in read_history(path, "metrics")}
    return {stage: steps[stage] for stage in ("quantizer", "prior") if stage in steps}


def collect_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the finished runs anywhere below a folder that no grid made, and of their baselines.

    Runs of one agent on one data set that were trained otherwise are different methods, named by
    as much of what differs as tells them apart; `differs` holds all of it. A run that is there
    twice counts once. One that was played nowhere has its held-out figures and says so as `error`.
    """
    found = [each for path in _finished(folder) for each in _trained_in(path)]
    named = distinct_names([each.spec for each in found])
    for spec in dict.fromkeys(each.spec for each in found):
        here = [each for each in found if each.spec == spec]
        chunks = {each.settings.features.chunk for each in here}
        task = named[spec]
        if len(chunks) == 1 and (chunk := chunks.pop()) > 1:
            task += f"-chunk{chunk}"
        for method in dict.fromkeys(each.method for each in here):
            distinct: dict[str, _Found] = {}
            for each in here:
                if each.method == method:
                    distinct.setdefault(each.identity, each)
            runs = list(distinct.values())
            always = ("chunk",) if len(chunks) > 1 else ()
            differing, short = _told_apart([each.trained for each in runs], always)
            for each in runs:
                values = ", ".join(f"{name}={each.trained.get(name)}" for name in short)
                label = f"{method} ({values})" if values else method
                row = identity(task, label, each.settings) | each.held_out
                row["run"] = str(each.path)
                row["differs"] = {name: each.trained.get(name) for name in differing}
                try:
                    yield row | row_of(each.path, each.stage)
                except ValueError as error:
                    yield row | {"error": str(error), "unscored": True}


class _Found(NamedTuple):
    path: Path
    stage: str
    settings: Settings
    spec: str
    trained: dict[str, Any]
    held_out: dict[str, Any]

    @property
    def method(self) -> str:
        return Method(self.settings.actions, self.settings.agent_name).name

    @property
    def identity(self) -> str:
        """Equal of runs that are one and the same."""
        return json.dumps([self.settings.seed, sorted(self.trained.items())], default=str)


def _finished(folder: Path) -> list[Path]:
    return [result.parent for result in sorted(folder.rglob("result.json"))]


def _trained_in(path: Path) -> Iterator[_Found]:
    """What a run trained: its agent, and plain BC where that was trained beside."""
    result, settings = read_result(path), saved_settings(path)
    spec = result["dataset"] or result["env"] or path.name
    yield _Found(path, "agent", settings, spec, _trained_as(settings), _held_out(result))
    if beside := result.get("baseline"):
        plain: Any = plain_cloning(settings.agent)
        evaluation = replace(settings.evaluation, act=plain.default_act, act_temperature=1.0)
        settings = replace(
            settings, actions="continuous", agent=plain, members=1, evaluation=evaluation
        )
        yield _Found(path, "baseline", settings, spec, _trained_as(settings), _held_out(beside))


def _held_out(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result.get(name) for name in ("held_out_skill", "held_out_action_error")}


def _told_apart(
    ways: Sequence[Mapping[str, Any]], always: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The names of settings that differ, and the few of them that tell all ways apart."""
    names = dict.fromkeys((*TOLD_FIRST, *(name for way in ways for name in way)))
    differing = [n for n in names if len({str(way.get(n)) for way in ways}) > 1]

    def groups(chosen: Sequence[str]) -> int:
        return len({tuple(str(way.get(name)) for name in chosen) for way in ways})

    short = list(always)
    for name in differing:
        if groups([*short, name]) > groups(short):
            short.append(name)
    return differing, short


def _trained_as(settings: Settings) -> dict[str, Any]:
    """What decides how a policy comes out and acts, but for data and seed: flag -> value."""
    owners = ("agent", "quantizer", "prior") if settings.quantized else ("agent",)
    parts = {owner: getattr(settings, owner) for owner in owners}
    parts["dataset"] = settings.data.reading
    return {
        "members": settings.members,
        **{
            flag: getattr(getattr(settings, record), name)
            for flag, (record, name, _) in FLAGS.items()
            if flag not in _BESIDE_THE_TRAINING
        },
        **{f"{owner}.{name}": v for owner, part in parts.items() for name, v in vars(part).items()},
    }
