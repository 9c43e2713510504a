"""What a run is asked to do: frozen records, written to config.json and read back.

A field's docstring is its help, its name the flag of `saqrl train` (or `flag` in its metadata).
Nothing here imports JAX: help is instant.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from saqrl.datasets.options import DEFAULT, ReadOptions
from saqrl.datasets.scaling import Scale
from saqrl.records import NULL, among, require, require_types, shown, whole
from saqrl.registry import (
    AGENTS,
    BASELINES,
    LARGEST_ENSEMBLE,
    QUANTIZERS,
    Act,
    Registry,
    closest,
    require_temperature,
)

if TYPE_CHECKING:
    from saqrl.agents import Agent
    from saqrl.agents.bc import BC
    from saqrl.baselines import Baseline
    from saqrl.quantizers import Quantizer

Actions = Literal["quantized", "continuous"]
RewardScale = Literal["unit", "return-range", "none"]

# Of the records as they are written; another number is another version's.
VERSION = 2


def _named(flag: str, default: Any) -> Any:
    """A field whose flag has a longer name than the field."""
    return field(default=default, metadata={"flag": flag})


def flag_of(field: Field[Any]) -> str:
    """The name of a field on the command line, with underscores."""
    return str(field.metadata.get("flag", field.name))


def _require_at_least_one(record: Any, *names: str) -> None:
    for described in fields(record):
        value = getattr(record, described.name)
        if described.name in names and value is not None and value < 1:
            raise ValueError(
                f"{flag_of(described).replace('_', '-')} is {value}; it must be at least 1"
            )


def parsed_keywords(text: str | None) -> dict[str, Any]:
    """The keyword arguments of an environment; ValueError where the text is no JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"env-kwargs is {text!r}; expected a JSON object ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"env-kwargs is {text!r}; expected a JSON object such as '{{\"size\": 2}}'"
        )
    return found


@dataclass(frozen=True)
class Data:
    """Which data, and which of it."""

    dataset: str | None = None
    """FORMAT:PATH or a path; several are mixed: A 2*B; default: demonstrations are collected in
    --env"""
    env: str | None = None
    """environment to evaluate in: Gymnasium id, module:Id, none"""
    env_kwargs: str | None = None
    """keyword arguments of the environment, as a JSON object"""
    demonstrations: int = 30
    """episodes to collect if no dataset is given"""
    style: Literal["expert", "human"] = "expert"
    """collect expert (alike) or human (varied) data"""
    episodes: int | None = _named("data_episodes", None)
    """use only the first N episodes"""
    best: float = _named("data_best", 1.0)
    """share of the episodes to use: highest returns"""
    angles: tuple[int, ...] = ()
    """observation columns that are angles in radians"""
    held_out: float = 0.1
    """share of the episodes that is held out from training; none if that is less than one
    episode"""
    stream_rows: int | None = None
    """rows of data on the device at a time"""
    reading: ReadOptions = DEFAULT
    """Which parts of the dataset are read."""

    def __post_init__(self) -> None:
        _require_at_least_one(self, "demonstrations", "stream_rows")
        parsed_keywords(self.env_kwargs)
        if not 0 < self.best <= 1:
            raise ValueError(f"data-best is {self.best:g}; it must be above 0 and at most 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held-out is {self.held_out}: the share of held-out episodes must be at "
                "least 0 and less than 1"
            )


@dataclass(frozen=True)
class Features:
    """How data reaches the networks."""

    chunk: int = 1
    """consecutive actions per code"""
    history: int = 1
    """number of last observations that the networks get"""
    observation_scale: Scale = "columns"
    """scaling: columns, common (one factor), none"""
    feature_deviation: float = 0.1
    """deviation of the networks' inputs; small: smooth"""
    reward_scale: RewardScale = "unit"
    """unit (mean size 0.1), return-range (1000), none"""

    def __post_init__(self) -> None:
        _require_at_least_one(self, "chunk", "history")
        if not self.feature_deviation > 0:
            raise ValueError(f"feature-deviation is {self.feature_deviation}; it must be above 0")


@dataclass(frozen=True)
class Evaluation:
    """How the policy acts, and how it is judged."""

    act: Act = "greedy"
    """greedy, sample or mean; default: chosen from the data"""
    act_temperature: float = 1.0
    """for sample and mean; below 1: closer to greedy"""
    action_horizon: int = 1
    """actions of a chunk to execute; default: all"""
    episodes: int = _named("eval_episodes", 50)
    """episodes of an evaluation"""
    first: int = _named("eval_first", 0)
    """number of the first episode; sets initial states"""
    every: int | None = _named("eval_every", None)
    """gradient steps of the agent between evaluations"""
    select: int = 0
    """episodes played to choose how to act"""
    baseline: bool = False
    """also train and evaluate continuous BC on the same data"""

    def __post_init__(self) -> None:
        _require_at_least_one(self, "action_horizon", "episodes", "every")
        for name in ("select", "first"):
            if (given := getattr(self, name)) < 0:
                raise ValueError(f"{name} is {given}; it must be 0 or more")
        require_temperature(self.act_temperature)


@dataclass(frozen=True)
class Output:
    """What a run writes on its way."""

    log_every: int = 500
    """steps between lines of metrics.jsonl"""
    keep_every: int | None = None
    """agent steps between policies to keep"""

    def __post_init__(self) -> None:
        _require_at_least_one(self, "log_every", "keep_every")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run."""

    agent: "Agent | Baseline"
    quantizer: "Quantizer"
    prior: "BC"
    """Training of the behaviour prior for agents other than bc."""
    actions: Actions = "quantized"
    """quantized, or continuous for the counterpart"""
    seed: int = 0
    """seed of networks, batches and collected data"""
    members: int = 1
    """agents in an ensemble that shares one quantizer"""
    data: Data = Data()
    features: Features = Features()
    evaluation: Evaluation = Evaluation()
    output: Output = Output()

    RECORDS: ClassVar[Mapping[str, type]] = {
        "data": Data,
        "features": Features,
        "evaluation": Evaluation,
        "output": Output,
    }

    def __post_init__(self) -> None:
        chunk, horizon = self.features.chunk, self.evaluation.action_horizon
        if horizon > chunk:
            raise ValueError(
                f"action-horizon {horizon} is more than chunk {chunk}: a chunk holds only "
                f"{chunk} actions; lower --action-horizon or raise --chunk"
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; it must be 0 to {2**31 - 1}")
        if not 1 <= self.members <= LARGEST_ENSEMBLE:
            raise ValueError(f"members is {self.members}; it must be 1 to {LARGEST_ENSEMBLE}")
        for owner in ("agent", "quantizer", "prior"):
            _check_algorithm(owner, vars(getattr(self, owner)))
        if self.quantizer.codes < 2:
            raise ValueError(f"quantizer.codes is {self.quantizer.codes}; it must be at least 2")
        if self.quantizer.patience < 0:
            raise ValueError(
                f"quantizer.patience is {self.quantizer.patience}; it must be 0 (off) or more"
            )

    @property
    def quantized(self) -> bool:
        return self.actions == "quantized"

    @property
    def agent_name(self) -> str:
        return _registries(self.actions)["agent"].name_of(self.agent)

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads back to an equal record."""
        described: dict[str, Any] = {"version": VERSION, "actions": self.actions, "seed": self.seed}
        described["members"] = self.members
        for name, registry in _registries(self.actions).items():
            described[name] = registry.describe(getattr(self, name))
        for name in self.RECORDS:
            described[name] = _plain(vars(getattr(self, name)))
        return described

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> "Settings":
        """ValueError: another version's record, a field or algorithm that is not known here."""
        values = dict(described)
        if (version := values.pop("version", None)) != VERSION:
            raise ValueError(
                f"the settings have version {version}, and this saqrl reads version "
                f"{VERSION}: train again, or use the version of saqrl that wrote them"
            )
        _require_known("settings", values, cls)
        plain = {"actions": among("quantized", "continuous") | NULL, "seed": whole() | NULL}
        plain["members"] = whole(1, LARGEST_ENSEMBLE)
        values.setdefault("members", 1)  # of runs from before there were several
        require(values, plain, where="settings")
        earlier: dict[str, Any] = {}
        for name, registry in _registries(values.get("actions", "quantized")).items():
            if name not in values:
                raise ValueError(f"settings: {name} is missing")
            found = registry.rebuild(values[name])
            if name == "agent":
                earlier = registry.earlier(values[name])
            values[name] = found
        for name, record in cls.RECORDS.items():
            given = values.get(name, {})
            if name == "evaluation" and isinstance(given, Mapping):
                given = {**earlier, **given}
            values[name] = _rebuilt(name, record, given)
        return cls(**values)


def _check_algorithm(owner: str, fields: Mapping[str, Any]) -> None:
    """ValueError for a field that every algorithm has and that makes no sense."""
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "steps": (lambda value: value >= 1, "at least 1"),
        "batch_size": (lambda value: value >= 1, "at least 1"),
        "hidden": (lambda value: all(width >= 1 for width in value), "at least 1 in every layer"),
        "learning_rate": (lambda value: 0 < value < math.inf, "above 0"),
        "weight_decay": (lambda value: 0 <= value < math.inf, "0 or more"),
        "discount": (lambda value: 0 <= value <= 1, "from 0 to 1"),
        "chunk_discount": (lambda value: value is None or 0 <= value <= 1, "from 0 to 1"),
    }
    # The flags of two of them have shorter names.
    short = {"agent.steps": "steps", "quantizer.steps": "quantizer-steps"}
    for name, (fits, words) in rules.items():
        if name in fields and not fits(fields[name]):
            flag = f"{owner}.{name.replace('_', '-')}"
            raise ValueError(f"{short.get(flag, flag)} is {fields[name]}; it must be {words}")


def _registries(actions: str) -> Mapping[str, Registry]:
    return {
        "agent": AGENTS if actions == "quantized" else BASELINES,
        "quantizer": QUANTIZERS,
        "prior": AGENTS,
    }


def _require_known(where: str, values: Mapping[str, Any], record: type) -> None:
    known = {described.name for described in fields(record)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{where}: unknown setting {unknown[0]!r}; {closest(unknown[0], known)}")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists and records as objects, as JSON gives them back."""
    found = {}
    for name, value in values.items():
        value = _plain(vars(value)) if isinstance(value, ReadOptions) else value
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _rebuilt(where: str, record: type, values: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {shown(values)}; expected an object")
    _require_known(where, values, record)
    require_types(values, record, where=where)
    found = {}
    for name, value in values.items():
        value = _rebuilt(name, ReadOptions, value) if name == "reading" else value
        found[name] = tuple(value) if isinstance(value, list) else value
    return record(**found)


def first_difference(saved: Settings, asked: Settings) -> str | None:
    """The first field in which two records differ, with both values; None if they are equal."""
    found = differing_field(saved.to_json(), asked.to_json())
    return found and "{} is {!r} in the run and {!r} here".format(*found)


def differing_field(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """(dotted name, our value, their value) of the first field that differs between two records."""
    for name in dict.fromkeys((*ours, *theirs)):
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if found := differing_field(one, other):
                return f"{name}.{found[0]}", *found[1:]
        elif one != other:
            return name, one, other
    return None
