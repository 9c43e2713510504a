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
    """Settings of fine-tuning a run in its environment."""

    steps: int = 20_000
    """environment steps; episodes in progress at the end are finished"""
    env: str | None = None
    """environment id, with the observations and actions of the run; default: the run's"""
    env_kwargs: str | None = None
    """the environment's keyword arguments as a JSON object"""
    agent: Literal["iql", "cql", "brac"] | None = None
    """default: the run's agent; for a bc run iql. Another agent first learns values from the run's
    data"""
    value_steps: int = 20_000
    """gradient steps to learn values from the run's data, if the run has no values of this agent"""
    keep_offline: float = 0.5
    """share of offline data in every batch"""
    warm_up: int = 1_000
    """environment steps before the first update, without exploration noise"""
    updates_per_step: float = 1.0
    """gradient steps per environment step"""
    explore_temperature: float = 1.0
    """temperature of the softmax from which exploration samples codes"""
    noise: float | None = None
    """standard deviation of noise on the decoded action, as a share of half its range; default:
    0.02; with grow the distance of recorded actions from their codes, so that new ones are found"""
    codebook: Literal["frozen", "decoder", "grow"] = "frozen"
    """frozen: codes do not change; decoder: encoder and decoder are trained further; grow: also
    adds codes where executed actions are far from every code, and retires unused codes"""
    spare_codes: int | None = None
    """grow: rows kept free for new codes; default: half as many as there are codes"""
    prior_rate: float = 0.0
    """learning rate of the prior on the mixed batches; 0: the prior does not change"""
    refine_every: int = 4
    """decoder, grow: gradient steps per step of encoder and decoder; 0: none (only with grow)"""
    refine_rate: float = 1e-3
    """learning rate of those steps"""
    recode_every: int = 2_000
    """decoder, grow: environment steps after which offline and replayed actions are encoded
    again"""
    retire_after: int = 10_000
    """grow: environment steps after which a code retires that was not played and that no offline
    action uses"""
    lanes: int = 4
    """episodes played in parallel between two blocks of updates; on a robot 1"""
    capacity: int = 200_000
    """size of the replay buffer in environment steps; the oldest are removed first"""
    eval_every: int | None = None
    """environment steps between evaluations, at the end of a round; default: a fifth of --steps"""
    eval_episodes: int | None = None
    """episodes per evaluation; default: as in the run"""

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} is {value}; it must be at least 1")
        if self.lanes > LARGEST_LANES:
            raise ValueError(f"lanes is {self.lanes}; it must be at most {LARGEST_LANES}")
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
                raise ValueError(f"{name.replace('_', '-')} is {value}; it must be 0 or more")
        if not 0 <= self.keep_offline <= 1:
            raise ValueError(f"keep-offline is {self.keep_offline}; it must be from 0 to 1")
        if not self.refine_rate:
            raise ValueError(
                "refine-rate is 0; it must be above 0 (to keep the networks fixed: "
                "--refine-every 0)"
            )
        if self.spare_codes is not None and self.codebook != "grow":
            raise ValueError("spare-codes has an effect only with --codebook grow: add it")
        if self.codebook == "decoder" and not self.refine_every:
            raise ValueError(
                "refine-every is 0, so --codebook decoder learns nothing: set it to 1 or more"
            )
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
        """`saved`; ValueError if a setting here differs from both `saved` and the default."""
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(saved, each.name)
            if ours not in (each.default, theirs):
                raise ValueError(
                    f"--resume: {each.name.replace('_', '-')} is {theirs!r} in the run and "
                    f"{ours!r} here: remove that flag, or choose another --out"
                )
        return saved
