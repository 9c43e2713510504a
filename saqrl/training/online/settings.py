"""What a fine-tuning is asked to do; its fields are the flags of `saqrl finetune`.

Nothing here imports JAX: help is instant.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from saqrl.records import require_types
from saqrl.registry import closest, require_temperature
from saqrl.training.settings import parsed_keywords

LARGEST_LANES = 256
AT_LEAST_ONE = (
    "steps",
    "value_steps",
    "lanes",
    "capacity",
    "eval_every",
    "eval_episodes",
    "spare_codes",
    "recode_every",
    "retire_after",
)


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """How a run goes on in its environment."""

    steps: int = 20_000
    """environment steps; the episodes in which they end are played out"""
    env: str | None = None
    """another environment than the run's, of the same observations and actions"""
    env_kwargs: str | None = None
    """the environment's keyword arguments as a JSON object"""
    agent: Literal["iql", "cql", "brac"] | None = None
    """default: the run's own; of a bc run iql. Another than the run's first learns values from the
    run's data"""
    value_steps: int = 20_000
    """gradient steps of learning values from the run's data, where it has none of the agent's"""
    keep_offline: float = 0.5
    """share of offline rows in every batch"""
    warm_up: int = 1_000
    """environment steps before the first update, played as the run acts, without noise"""
    updates_per_step: float = 1.0
    """gradient steps per environment step"""
    explore_temperature: float = 1.0
    """of the softmax that exploring draws codes from"""
    noise: float | None = None
    """deviation of the Gaussian around the decoded action, as a share of half its range; default:
    0.02, and with grow as far as recorded actions lie from their codes, so that new ones are met"""
    codebook: Literal["frozen", "decoder", "grow"] = "frozen"
    """frozen: codes stay what they are; decoder: encoder and decoder go on learning; grow: and new
    codes are opened where played actions lie far from every code, others retire"""
    spare_codes: int | None = None
    """grow: rows kept free for new codes; default: half as many as there are codes"""
    prior_rate: float = 0.0
    """learning rate at which the prior goes on learning from the mixed batches; 0: it stays"""
    refine_every: int = 4
    """decoder, grow: gradient steps for one step of encoder and decoder; 0: none (grow alone)"""
    refine_rate: float = 1e-3
    """learning rate of those steps"""
    recode_every: int = 2_000
    """decoder, grow: environment steps after which offline and replayed actions are encoded anew"""
    retire_after: int = 10_000
    """grow: a code that was not played for so many environment steps and stands for no offline
    action retires"""
    lanes: int = 4
    """episodes that are played side by side between two blocks of updates; on a robot one"""
    capacity: int = 200_000
    """environment steps that the replay holds; the oldest leave first"""
    eval_every: int | None = None
    """environment steps between evaluations, at the next end of a round; default: a fifth"""
    eval_episodes: int | None = None
    """episodes of an evaluation; default: as the run was set"""

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} is {value}; at least 1")
        if self.lanes > LARGEST_LANES:
            raise ValueError(f"lanes is {self.lanes}; at most {LARGEST_LANES}")
        for name in (
            "warm_up",
            "noise",
            "updates_per_step",
            "prior_rate",
            "refine_every",
            "refine_rate",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name.replace('_', '-')} is {value}; 0 or more")
        if not 0 <= self.keep_offline <= 1:
            raise ValueError(f"keep-offline is {self.keep_offline}; from 0 to 1")
        if not self.refine_rate:
            raise ValueError("refine-rate is 0; above 0 (--refine-every 0 leaves the networks)")
        if self.spare_codes is not None and self.codebook != "grow":
            raise ValueError("spare-codes are opened by --codebook grow alone: say it too")
        if self.codebook == "decoder" and not self.refine_every:
            raise ValueError("refine-every is 0, by which --codebook decoder learns nothing")
        require_temperature(self.explore_temperature)
        parsed_keywords(self.env_kwargs)

    @property
    def evaluation_period(self) -> int:
        """Environment steps between evaluations."""
        return self.eval_every or -(-self.steps // 5)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> "OnlineSettings":
        """ValueError: a field that is not known here, or of another type."""
        known = {each.name for each in fields(cls)}
        if unknown := sorted(described.keys() - known):
            raise ValueError(
                f"finetune: unknown setting {unknown[0]!r}; {closest(unknown[0], known)}"
            )
        require_types(described, cls, where="finetune")
        return cls(**described)

    def resumed(self, saved: "OnlineSettings") -> "OnlineSettings":
        """`saved`; ValueError where something else is asked for here than it and the default."""
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(saved, each.name)
            if ours not in (each.default, theirs):
                raise ValueError(
                    f"--resume: {each.name.replace('_', '-')} is {theirs!r} in the run and "
                    f"{ours!r} here: drop that flag, or name another --out"
                )
        return saved
