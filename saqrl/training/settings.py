"""What a run is asked to do: one frozen record, written to config.json and read back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from saqrl.agents import AGENTS, Agent
from saqrl.agents.bc import BC
from saqrl.baselines import BASELINES, Baseline
from saqrl.datasets import ReadOptions
from saqrl.datasets.options import DEFAULT
from saqrl.datasets.scaling import Scale
from saqrl.policy import Act
from saqrl.quantizers import QUANTIZERS, Quantizer

Actions = Literal["quantized", "continuous"]
RewardScale = Literal["unit", "return-range", "none"]


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run."""

    agent: Agent | Baseline
    quantizer: Quantizer
    prior: BC
    """How the behaviour prior of the other agents is learned."""
    actions: Actions = "quantized"
    dataset: str | None = None
    """SPEC; None: demonstrations are collected from `env` first."""
    reading: ReadOptions = DEFAULT
    """Which parts of the dataset are read."""
    env: str | None = None
    """Environment id; None: the one that the dataset names."""
    demonstrations: int = 30
    """Episodes to collect where no dataset is given."""
    angles: tuple[int, ...] = ()
    observation_scale: Scale = "columns"
    feature_deviation: float = 0.1
    """Standard deviation of the networks' inputs: small inputs make smooth functions."""
    reward_scale: RewardScale = "unit"
    chunk: int = 1
    execute: int = 1
    data_episodes: int | None = None
    held_out: float = 0.1
    seed: int = 0
    act: Act = "greedy"
    eval_episodes: int = 50
    eval_every: int | None = None
    """Agent steps between evaluations; None: only at the end."""
    keep_every: int | None = None
    """Agent steps between policies kept in the run's policies/; None: only the last, in policy/."""
    log_every: int = 500
    stream_rows: int | None = None
    """Rows on the device at a time where the data has more; None: all, of mapped data 2**18."""
    baseline: bool = False
    """Also train and evaluate plain continuous BC on the same data."""

    def __post_init__(self) -> None:
        for name in ("chunk", "execute", "eval_episodes", "log_every", "demonstrations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} is {getattr(self, name)}; at least 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held-out is {self.held_out}: it is the share of the episodes that is kept from "
                "training, at least 0 and less than 1"
            )
        if self.execute > self.chunk:
            raise ValueError(
                f"execute {self.execute} is more than chunk {self.chunk}: a chunk holds only "
                f"{self.chunk} actions; lower --execute or raise --chunk"
            )
        for name, algorithm in (("steps", self.agent), ("quantizer-steps", self.quantizer)):
            if algorithm.steps < 1:
                raise ValueError(f"{name} is {algorithm.steps}; at least 1")
        for owner, algorithm in (("agent", self.agent), ("quantizer", self.quantizer)):
            if algorithm.batch_size < 1:
                raise ValueError(f"{owner}.batch-size is {algorithm.batch_size}; at least 1")
        if self.quantizer.codes < 2:
            raise ValueError(f"quantizer.codes is {self.quantizer.codes}; at least 2")
        if self.quantizer.patience < 0:
            raise ValueError(f"quantizer.patience is {self.quantizer.patience}; 0 (off) or more")
        for name in ("eval_every", "keep_every", "stream_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} is {value}; at least 1")

    @property
    def agent_name(self) -> str:
        registry = AGENTS if self.actions == "quantized" else BASELINES
        return registry.name_of(self.agent)

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads back to an equal record."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        registry = AGENTS if self.actions == "quantized" else BASELINES
        return plain | {
            "agent": registry.describe(self.agent),
            "quantizer": QUANTIZERS.describe(self.quantizer),
            "prior": AGENTS.describe(self.prior),
            "angles": list(self.angles),
            "reading": {**vars(self.reading), "keys": list(self.reading.keys)},
        }

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> "Settings":
        """ValueError names a field that this version does not know."""
        values = dict(described)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown setting {unknown[0]!r}: written by another version?")
        registry = AGENTS if values.get("actions", "quantized") == "quantized" else BASELINES
        return cls(
            **values
            | {
                "agent": registry.rebuild(values["agent"]),
                "quantizer": QUANTIZERS.rebuild(values["quantizer"]),
                "prior": AGENTS.rebuild(values["prior"]),
                "angles": tuple(values["angles"]),
                "reading": _reading(values.get("reading", {})),
            }
        )


def _reading(described: Mapping[str, Any]) -> ReadOptions:
    return ReadOptions(**{**described, "keys": tuple(described.get("keys", ()))})


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


def with_steps(settings: Settings, *, steps: int | None, quantizer_steps: int | None) -> Settings:
    """The settings with other numbers of gradient steps, where given."""
    agent, quantizer = settings.agent, settings.quantizer
    if steps is not None:
        agent = replace(agent, steps=steps)  # type: ignore[type-var]
    if quantizer_steps is not None:
        quantizer = replace(quantizer, steps=quantizer_steps)  # type: ignore[type-var]
    return replace(settings, agent=agent, quantizer=quantizer)
