"""Named starting points: what differs from the defaults, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saqrl.agents import AGENTS
from saqrl.agents.bc import BC
from saqrl.baselines import BASELINES
from saqrl.experiment.settings import Settings
from saqrl.quantizers import QUANTIZERS
from saqrl.registry import closest


@dataclass(frozen=True)
class Preset:
    """Differences from the defaults of the settings, the quantizer and each agent."""

    summary: str
    agent: str = "bc"
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    prior: Mapping[str, Any] = field(default_factory=dict)
    agents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# SAQ (arXiv 2310.11731) as its authors' configuration files have it.
_PAPER_CRITICS = {"critics": 1, "layer_norm": False, "schedule": "constant"}
_PAPER = Preset(
    summary="the paper's networks, optimisers and numbers of steps (arXiv 2310.11731)",
    agent="cql",
    settings={"standardize": False, "reward_scale": "none"},
    quantizer={
        "steps": 500_000,
        "hidden": (512, 512),
        "learning_rate": 3e-4,
        "schedule": "constant",
        "code_size": 128,
        "commitment": 1.0,
        "first_codes": "random",
        "codebook": "gradient",
        "revive_below": 0.0,
    },
    prior={
        "steps": 500_000,
        "hidden": (512, 512),
        "learning_rate": 3e-4,
        "schedule": "constant",
        "weight_decay": 0.0,
    },
    agents={
        "bc": {
            "steps": 500_000,
            "hidden": (512, 512),
            "learning_rate": 3e-4,
            "schedule": "constant",
            "weight_decay": 0.0,
        },
        "cql": _PAPER_CRITICS
        | {
            "steps": 1_000_000,
            "hidden": (512, 512),
            "weight_decay": 1e-3,
            "alpha": 5.0,
            "threshold": 0.0,
            "target_rate": 1.0,
            "target_period": 200,
        },
        "iql": _PAPER_CRITICS
        | {"steps": 1_000_000, "tau": 0.7, "temperature": 1.0, "target_rate": 0.005},
        "brac": {
            "steps": 1_000_000,
            "layer_norm": False,
            "critics": 2,
            "alpha": 1.0,
            "target_rate": 0.005,
        },
    },
)

PRESETS: Mapping[str, Preset] = {
    "default": Preset(summary="ours: fast codebooks, twin LayerNorm critics, the prior's mask"),
    "cube": Preset(
        summary="a cube to be moved by a MuJoCo arm: collects demonstrations, trains, evaluates",
        settings={
            "env": "cube-single-singletask-task2-v0",
            "demonstrations": 60,
            "baseline": True,
        },
        quantizer={"steps": 3_000, "codes": 16},
        agents={"bc": {"steps": 3_000}},
    ),
    "paper": _PAPER,
}
# What `saqrl train` without an argument does.
MAIN_JOB = "cube"


def build_settings(
    preset_name: str, *, agent: str | None = None, quantizer: str, actions: str = "quantized"
) -> Settings:
    """The settings of a preset for an agent; ValueError with the nearest names otherwise."""
    if preset_name not in PRESETS:
        raise ValueError(f"unknown preset {preset_name!r}; {closest(preset_name, PRESETS)}")
    preset = PRESETS[preset_name]
    name = agent or preset.agent
    if actions == "continuous":
        chosen = BASELINES.load(name)()
    else:
        chosen = AGENTS.load(name)(**preset.agents.get(name, {}))
    codec = QUANTIZERS.load(quantizer)(**preset.quantizer)
    return Settings(
        agent=chosen,
        quantizer=codec,
        prior=BC(**preset.prior),
        actions=actions,  # type: ignore[arg-type]
        **{"act": chosen.default_act, **preset.settings},
    )
