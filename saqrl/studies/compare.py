"""A grid of methods, data sets and seeds: each cell an ordinary run folder, one table for all.

OUT/table.jsonl          a line per finished or failed cell; the last line of a cell counts
OUT/cells/TASK/METHOD-seedN/   the run folders

A stopped grid goes on where it was, and a larger one reuses what is there. Cells that quantize
the same data in the same way with the same seed share their quantizer (and prior): the first one's
finished stages are copied, which is exactly what a resumed run would find.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from saqrl.agents import AGENTS
from saqrl.agents.bc import BC
from saqrl.arrays import read_arrays, write_arrays, write_atomically
from saqrl.baselines import BASELINES
from saqrl.datasets.naming import distinct_names
from saqrl.registry import closest
from saqrl.training.data import load_data
from saqrl.training.flags import FLAGS, changed
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import RunFolder, read_config, read_history, read_result
from saqrl.training.settings import Settings, first_difference
from saqrl.training.train import saved_settings, train
from saqrl.training.versions import versions

TABLE = "table.jsonl"
# A score is the mean over this many last evaluations.
LAST_EVALUATIONS = 3
# Settings that change neither what a policy learns nor how it acts, and those that rows name.
_BESIDE_THE_TRAINING = frozenset(
    (
        *("dataset", "env", "chunk", "baseline"),
        *("eval_episodes", "eval_every", "keep_every", "log_every", "stream_rows"),
    )
)
# A continuous agent without a counterpart on codes is given the steps of this one.
_NEXT_OF_KIN = {"gaussian": "bc", "gmm": "bc", "rebrac": "brac"}

_REGISTRIES = {"quantized": AGENTS, "continuous": BASELINES}


@dataclass(frozen=True)
class Method:
    """One way to learn from a data set: `saq-NAME` on codes, `NAME` without."""

    actions: str
    agent: str
    act: str | None = None
    """greedy or sample; None: the agent's own way."""

    @property
    def name(self) -> str:
        prefix = "saq-" if self.actions == "quantized" else ""
        return f"{prefix}{self.agent}" + (f"-{self.act}" if self.act else "")


@dataclass(frozen=True)
class Task:
    """A data set, with the preset whose settings it is learned with."""

    name: str
    dataset: str
    preset: str = "default"


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    task: str
    method: Method
    seed: int
    settings: Settings

    def folder(self, out: Path) -> Path:
        return out / "cells" / self.task / f"{self.method.name}-seed{self.seed}"

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.method.name, self.seed


def methods(agents: Sequence[str], actions: Sequence[str]) -> list[Method]:
    """Every agent with each kind of actions that it exists for, without repetitions.

    An agent is `NAME`, or `saq-NAME` for its quantized kind alone; `:greedy` or `:sample` behind it
    makes it act so. ValueError where no agent of the kinds asked for is called so.
    """
    found: dict[Method, None] = {}
    for word in agents:
        full, _, act = word.partition(":")
        if act not in ("", "greedy", "sample"):
            raise ValueError(f"agent {word!r}: after the colon comes greedy or sample")
        name = full.removeprefix("saq-")
        asked = [kind for kind in actions if name == full or kind == "quantized"]
        kinds = [kind for kind in asked if name in _REGISTRIES[kind]]
        if not kinds:
            known = {known for kind in actions for known in _REGISTRIES[kind]}
            near = closest(name, known)
            raise ValueError(f"unknown {' or '.join(actions)} agent {full!r}; {near}")
        for kind in kinds:
            found[Method(kind, name, act or None)] = None
    return list(found)


def plan(
    tasks: Sequence[Task],
    compared: Sequence[Method],
    seeds: Sequence[int],
    *,
    changes: Mapping[str, Any],
    steps: int | None = None,
    quantizer_steps: int | None = None,
    evaluations: int = 5,
    assignments: Sequence[str] = (),
) -> list[Cell]:
    """The cells, task after task and seed after seed; `changes` are fields of the settings.

    Without `steps` a continuous agent gets as many as its counterpart on codes has by default.
    """
    names = [task.name for task in tasks]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two datasets are called {repeated[0]!r}: name one as PRESET=SPEC")
    if evaluations < 1:
        raise ValueError(f"evaluations is {evaluations}; at least 1")
    cells = []
    for task in tasks:
        for seed in seeds:
            for method in compared:
                settings = build_settings(
                    task.preset, agent=method.agent, quantizer="vqvae", actions=method.actions
                )
                said = {"dataset": task.dataset, "seed": seed, "baseline": False, **changes}
                said |= _given(steps=steps or _equal_steps(task, method))
                said |= _given(quantizer_steps=quantizer_steps)
                settings = assign(changed(settings, said), assignments)
                every = -(-settings.agent.steps // evaluations)
                settings = changed(settings, {"eval_every": every})
                if method.act == settings.evaluation.act:  # its own way here: no other method
                    method = replace(method, act=None)
                if method.act:
                    settings = changed(settings, {"act": method.act})
                cells.append(Cell(task.name, method, seed, settings))
    return list({cell.key: cell for cell in cells}.values())


def _equal_steps(task: Task, method: Method) -> int | None:
    if method.actions == "quantized":
        return None
    agent = _NEXT_OF_KIN.get(method.agent, method.agent)
    return build_settings(task.preset, agent=agent, quantizer="vqvae").agent.steps


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def assign(settings: Settings, assignments: Sequence[str]) -> Settings:
    """The settings with `OWNER.FIELD=VALUE` applied, each where its owner is in play.

    OWNER is quantizer, prior, or a method: saq-iql on codes, iql without.
    ValueError names what is malformed or unknown, and the choices of a field that has a few.
    """
    method = ("saq-" if settings.quantized else "") + settings.agent_name
    owners = {"quantizer": "quantizer", "prior": "prior", method: "agent"}
    known = {"quantizer", "prior", *BASELINES, *(f"saq-{name}" for name in AGENTS)}
    for assignment in assignments:
        left, equals, text = assignment.partition("=")
        owner, dot, name = left.partition(".")
        if not (equals and dot):
            raise ValueError(f"--set {assignment}: expected OWNER.FIELD=VALUE, as in iql.tau=0.8")
        if owner not in known:
            raise ValueError(f"--set {assignment}: unknown {owner!r}; {closest(owner, known)}")
        if owner in owners:
            try:
                settings = changed(settings, {f"{owners[owner]}.{name}": text})
            except ValueError as error:
                raise ValueError(f"--set {assignment}: {error}") from error
    return settings


def run_grid(
    cells: Sequence[Cell],
    out: Path,
    reporter: Reporter,
    *,
    sharing: Sequence[Cell] = (),
) -> list[dict[str, Any]]:
    """Train what has not finished, and return the last row of every cell.

    Codes are taken from equal cells, of these and of `sharing`, where those have finished.
    A cell that fails is reported, recorded and skipped; the next call tries it again. Before
    anything is trained: ValueError where a folder holds a run with other settings or a policy could
    be scored in no environment; what `load_dataset` raises where the data cannot be read.
    """
    for cell in cells:
        _refuse_other_settings(cell, out)
    rows = {key_of(row): row for row in read_table(out / TABLE)}
    _refuse_unscored([cell for cell in cells if "error" in rows.get(cell.key, {"error": None})])
    out.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells, start=1):
        known = rows.get(cell.key)
        if known is not None and "error" not in known:
            continue
        reporter.say(f"[{number}/{len(cells)}] {cell.task}: {cell.method.name}, seed {cell.seed}")
        try:
            row = _run_cell(cell, sharing or cells, out, quiet=reporter.console.quiet)
        except Exception as error:  # whatever one cell dies of, the others are worth having
            words = " ".join(str(error).split()) or type(error).__name__
            row = _identity(cell) | {"error": f"{type(error).__name__}: {words}"}
            reporter.say(f"  failed: {words}")
        else:
            reporter.say(f"  {row['measure']} {row['score']:.1f} ({row['wall_seconds']:.0f} s)")
        _append(out / TABLE, row)
        rows[cell.key] = row
        # Every cell has its own programs; those of a hundred exhaust the process's mappings.
        jax.clear_caches()  # type: ignore[no-untyped-call]
    return [rows[cell.key] for cell in cells]


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


def row_of(path: Path) -> dict[str, Any]:
    """What a finished run folder scored, as a row of the table, without its place in a grid.

    ValueError where it was evaluated in no environment.
    """
    result, config = read_result(path), read_config(path)
    records = [r for r in read_history(path, "evaluations") if r["stage"] == "agent"]
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


# What the field of an evaluation is called in a table.
MEASURES = {
    "normalized_score": "D4RL score",
    "max_reward_mean": "highest reward, %",
    "success_rate": "success, %",
    "return_mean": "return",
}
# Measures that lie on one scale from 0 to about 100, so that tasks can be averaged.
COMPARABLE = frozenset(MEASURES.values()) - {"return"}


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


def _run_cell(cell: Cell, cells: Sequence[Cell], out: Path, *, quiet: bool) -> dict[str, Any]:
    folder = cell.folder(out)
    if not (folder / "result.json").exists():
        if not folder.exists():
            share_codes(cell, cells, out)
        train(cell.settings, folder, resume=folder.exists(), reporter=Reporter(quiet=quiet))
    return _identity(cell) | row_of(folder) | {"run": str(folder.relative_to(out))}


def share_codes(cell: Cell, cells: Sequence[Cell], out: Path) -> None:
    """Begin the cell's folder with the finished quantizer (and prior) of an equal cell, if any.

    Equal: the same versions and every setting that codes depend on. config.json names the stages
    that were copied as `shared`.
    """
    if not cell.settings.quantized:
        return
    found = {"settings": cell.settings.to_json(), "versions": versions(cell.settings.data.env)}
    common = [
        (other.folder(out), _stages_in_common(cell.settings, other.settings)) for other in cells
    ]
    for folder, stages in sorted(common, key=lambda pair: -len(pair[1])):
        if not stages or not (folder / "result.json").exists():
            continue
        if read_config(folder)["versions"] != found["versions"]:
            continue
        newest = [max((folder / "checkpoints").glob(f"[0-9]*-{stage}.ckpt")) for stage in stages]
        sizes = read_arrays(newest[-1])[1]["sizes"]
        run = RunFolder.create(cell.folder(out), found | {"shared": list(stages)})
        try:
            for history, size in sizes.items():
                if size:
                    source = folder / f"{history}.jsonl"
                    write_atomically(run.path / source.name, source.read_bytes()[:size])
            for path in newest:
                leaves, header = read_arrays(path)
                header = header | {"settings": found["settings"], "spent": {}}
                write_arrays(run.path / "checkpoints" / path.name, leaves, header)
        finally:
            run.close()
        return


def _stages_in_common(ours: Settings, theirs: Settings) -> tuple[str, ...]:
    if not theirs.quantized or _before_the_codes(ours) != _before_the_codes(theirs):
        return ()
    clones = isinstance(ours.agent, BC) or isinstance(theirs.agent, BC)  # these have no prior
    return ("quantizer",) if clones or ours.prior != theirs.prior else ("quantizer", "prior")


def _before_the_codes(settings: Settings) -> tuple[Any, ...]:
    """What the quantizer and the prior depend on."""
    features = replace(settings.features, reward_scale="none")
    return settings.quantizer, settings.data, features, settings.seed, settings.output.log_every


def _refuse_other_settings(cell: Cell, out: Path) -> None:
    folder = cell.folder(out)
    if (folder / "config.json").exists():
        difference = first_difference(saved_settings(folder), cell.settings)
        if difference:
            raise ValueError(f"{folder}: {difference}: name another --out, or remove that folder")


def _refuse_unscored(cells: Sequence[Cell]) -> None:
    """Of all cells with the same data one is looked at: reading is what tells the environment."""
    unnamed = [cell.settings for cell in cells if cell.settings.data.env is None]
    for settings in {s.data: s for s in unnamed}.values():
        data = load_data(settings)
        if data.environment is None:
            raise ValueError(
                f"{settings.data.dataset} names no environment, and methods are compared by their "
                "scores in one: name it with --env ID, or give a preset that has one as "
                "PRESET=SPEC (saqrl presets)"
            )


def _identity(cell: Cell) -> dict[str, Any]:
    return {
        "task": cell.task,
        "method": cell.method.name,
        "seed": cell.seed,
        "actions": cell.method.actions,
        "agent": cell.method.agent,
    }


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """One line; what a killed process left of a line is dropped first."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        write_atomically(path, content[: content.rfind(b"\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def collect_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the finished runs anywhere below a folder that no grid made.

    Runs of one agent on one data set that were trained otherwise are different methods, named by
    what differs; a run that is there twice counts once.
    """
    paths = [result.parent for result in sorted(folder.rglob("result.json"))]
    runs = [(path, saved_settings(path), read_result(path)) for path in paths]
    specs = [result["dataset"] or result["env"] for _, _, result in runs]
    named = distinct_names(specs)
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    known = set()
    for (path, settings, _), spec in zip(runs, specs, strict=True):
        task = named[spec] + (f"-chunk{chunk}" if (chunk := settings.features.chunk) > 1 else "")
        method = Method(settings.actions, settings.agent_name).name
        trained = _trained_as(settings)
        identity = json.dumps([spec, settings.seed, sorted(trained.items())], default=str)
        if identity in known:
            continue
        known.add(identity)
        cells.setdefault((task, method), []).append(
            {
                "path": path,
                "trained": trained,
                "row": {
                    "task": task,
                    "method": method,
                    "seed": settings.seed,
                    "actions": settings.actions,
                    "agent": settings.agent_name,
                    "run": str(path),
                },
            }
        )
    for cell in cells.values():
        names = dict.fromkeys(name for run in cell for name in run["trained"])
        differing = [n for n in names if len({str(run["trained"].get(n)) for run in cell}) > 1]
        for run in cell:
            row, values = run["row"], [f"{n}={run['trained'].get(n)}" for n in differing]
            if values:
                row["method"] += f" ({', '.join(values)})"
            try:
                yield row | row_of(run["path"])
            except ValueError as error:
                yield row | {"error": str(error)}


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
