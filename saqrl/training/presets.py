"""Named starting points: what differs from the defaults, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from saqrl.registry import AGENTS, BASELINES, QUANTIZERS, Act, closest
from saqrl.training.flags import CHOICES, canonical, changed, typed
from saqrl.training.settings import Actions, Settings


@dataclass(frozen=True)
class Preset:
    """Differences from the defaults of the settings, the quantizer and each agent."""

    summary: str
    agent: str = "bc"
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    prior: Mapping[str, Any] = field(default_factory=dict)
    priors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of single agents; see also `prior`."""
    agents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same for continuous agents."""
    acts: Mapping[str, Act] = field(default_factory=dict)
    """How discrete agents act, if not their default."""
    data: str = ""
    """Description of the dataset to pass with --dataset."""
    protocol: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Published scores by method, in the measure of the protocol."""
    source: str = ""


# SAQ (arXiv 2310.11731) as its authors' files have it (scripts/vqbc_gym.sh, vqiql_adroit.sh, the
# defaults of vqn_main.py and vqiql_main.py); docs/results/protocol.md lists what still differs.
_PAPER_CRITICS = {"critics": 1, "layer_norm": False, "schedule": "constant"}
_PAPER = Preset(
    summary="the paper's networks, optimisers and numbers of steps (arXiv 2310.11731)",
    agent="cql",
    settings={"observation_scale": "none", "reward_scale": "none"},
    quantizer={
        "steps": 500_000,  # at most: it stops where held-out errors have stopped falling
        "patience": 20_000,
        "hidden": (512, 512),
        "learning_rate": 3e-4,
        "schedule": "constant",
        "code_size": 128,
        "commitment": 1.0,
        "encodings": "free",
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
    priors={"iql": {"steps": 2_000_000, "hidden": (256, 256)}},
    agents={
        "bc": {
            "steps": 1_000_000,
            "hidden": (256, 256),
            "learning_rate": 3e-4,
            "schedule": "constant",
            "weight_decay": 1e-3,
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
        | {
            "steps": 1_000_000,
            "weight_decay": 1e-3,
            "expectile": 0.8,
            "temperature": 1.0,
            "target_rate": 0.005,
        },
        "brac": {
            "steps": 1_000_000,
            "layer_norm": False,
            "critics": 2,
            "alpha": 1.0,
            "target_rate": 0.005,
        },
    },
    acts={"bc": "greedy", "cql": "greedy"},
)

_D4RL = "D4RL normalised score, mean of the last evaluations"
_PUSHT = "100 x mean of the highest reward of an episode (coverage / 0.95), seeds from 100000 on"
_PUSHT_SCORES = {
    "Diffusion Policy": "91 (best checkpoint 95)",
    "IBC": "84 (90)",
    "BET": "70 (79)",
    "LSTM-GMM": "61 (67)",
}
_SUCCESS = "success rate in %"
_ROBOMIMIC = {
    "lift": {"SAQ-BC": "90.1", "Gaussian BC": "59.5"},
    "can": {"SAQ-BC": "66.4", "Gaussian BC": "31.7"},
    "square": {"SAQ-BC": "45.3", "Gaussian BC": "19.3"},
}
# ReBRAC's published penalties and learning rate (arXiv 2305.09836, tables of its appendix).
_REBRAC_ADROIT = {"learning_rate": 3e-4, "actor_penalty": 0.01, "critic_penalty": 0.01}


# Single steps of few demonstrations: what their noise adds to an action is not worth a code
# (benchmarks/results/tuning.jsonl).
_FEW_CODES = {"codes": 16}
# Of five to 25 demonstrations of noisy experts, codes of which each is free to mean something else
# in every state overfit the noise (docs/results/quantization.md, study e).
_FEW_DEMONSTRATIONS = _FEW_CODES | {"state_scale": 0.3}


def _cube_play(chunk: int = 1) -> Preset:
    # Values change faster over states than behaviour does: wide inputs (at a deviation of 0.1
    # success was half as high), and codes drawn by value more than by habit.
    settings: dict[str, Any] = {"env": "cube-single-singletask-task2-v0", "feature_deviation": 1.0}
    iql: dict[str, Any] = {"steps": 30_000, "temperature": 0.3}
    if chunk > 1:
        # docs/results/values.md: Q of decoded actions, not of codes, is what play data need; with
        # 100,000 transitions 30,000 steps were no better, and three members were.
        settings |= {"chunk": chunk, "action_horizon": 2, "act_temperature": 0.5, "members": 3}
        iql |= {"steps": 15_000, "expectile": 0.7, "q_of": "actions"}
    return Preset(
        summary="OGBench cube-single, play data, task 2 of 5"
        + (f", chunks of {chunk}" if chunk > 1 else ""),
        agent="iql",
        settings=settings,
        quantizer={"codes": 128} if chunk > 1 else {},
        agents={"iql": iql, "bc": {"steps": 30_000}},
        # Published: 300, for rewards of -1 a step, which the unit scale makes -0.1.
        baselines={"fql": {"steps": 30_000, "alpha": 30.0}},
        data="OGBench cube-single-play-v0.npz",
        protocol=_SUCCESS + "; the published figures average all 5 tasks",
        expected={"BC": "5", "IQL": "83", "ReBRAC": "91", "IDQL": "95", "FQL": "96"},
        source="FQL (arXiv 2502.02538)",
    )


def _scene_play() -> Preset:
    # As on the cube; a task of several parts asks for values that reach farther back and nearer
    # to the best (docs/results/values.md).
    cube = _cube_play(chunk=5)
    task = {"env": "scene-singletask-task2-v0", "members": 1}
    iql = {"steps": 60_000, "expectile": 0.9, "discount": 0.995}
    return replace(
        cube,
        summary="OGBench scene, play data, task 2 of 5, chunks of 5",
        settings={**cube.settings, **task},
        agents={**cube.agents, "iql": {**cube.agents["iql"], **iql}},
        data="OGBench scene-play-v0.npz",
        expected={"FQL": "56"},
        source="FQL (arXiv 2502.02538)",
    )


def _pusht(chunk: int) -> Preset:
    return Preset(
        summary=f"Push-T, human demonstrations, {chunk} action(s) a code",
        settings={
            "env": "gym_pusht/PushT-v0",
            "angles": (4,),
            "chunk": chunk,
            "action_horizon": chunk,
            "feature_deviation": 0.3,
        },
        quantizer={} if chunk > 1 else _FEW_CODES,
        data="the 206 human demonstrations of Push-T; states are agent x, y, block x, y, angle",
        protocol=_PUSHT,
        expected=_PUSHT_SCORES,
        source="Chi et al. 2023 (arXiv 2303.04137), state policies; mean of the last 10 "
        "checkpoints (best checkpoint)",
    )


def _pusht_values() -> Preset:
    # Conservative values that three members agree on: docs/results/values.md.
    cloned = _pusht(8)
    return replace(
        cloned,
        summary="Push-T, human demonstrations, chunks of 8, values of three members",
        agent="cql",
        agents={"cql": {"steps": 10_000}},
        settings={**cloned.settings, "members": 3},
    )


_PUBLISHED = {
    "pusht": _pusht(1),
    "pusht-chunk8": _pusht(8),
    "pusht-chunk8-values": _pusht_values(),
    "door-expert": Preset(
        summary="Adroit door, expert data, all episodes",
        settings={"env": "AdroitHandDoor-v1"},
        quantizer=_FEW_DEMONSTRATIONS,
        baselines={"rebrac": _REBRAC_ADROIT | {"actor_penalty": 0.05}},
        data="D4RL door-expert (HDF5 or Minari)",
        protocol=_D4RL,
        expected={"BC": "105", "IQL": "107", "ReBRAC": "106"},
        source="CORL (arXiv 2210.07105)",
    ),
    "door-expert-25": Preset(
        summary="Adroit door, the first 25 expert episodes",
        settings={"env": "AdroitHandDoor-v1", "data_episodes": 25},
        quantizer=_FEW_DEMONSTRATIONS,
        baselines={"rebrac": _REBRAC_ADROIT | {"actor_penalty": 0.05}},
        data="D4RL door-expert (HDF5 or Minari)",
        protocol=_D4RL,
        expected={"BC on all episodes": "105", "IQL": "107", "ReBRAC": "106"},
        source="CORL (arXiv 2210.07105), on all episodes: an upper reference",
    ),
    **{
        f"{task}-expert": Preset(
            summary=f"Adroit {task}, expert data, all episodes",
            settings={"env": f"AdroitHand{task.capitalize()}-v1"},
            quantizer=_FEW_DEMONSTRATIONS,
            data=f"D4RL {task}-expert (HDF5 or Minari)",
            protocol=_D4RL,
            expected=scores,
            source="CORL (arXiv 2210.07105), last scores in its repository",
        )
        for task, scores in {
            "pen": {"BC": "110", "IQL": "128", "ReBRAC": "152"},
            "hammer": {"BC": "127", "IQL": "129", "ReBRAC": "134"},
        }.items()
    },
    "hopper-expert": Preset(
        summary="Hopper, expert data",
        settings={"env": "Hopper-v4"},
        # In a state only one action is right: drawn codes make it fall, and the mean of the decoded
        # ones averages the expert's noise away, as regression does (docs/results/paper.md).
        acts=dict.fromkeys(AGENTS, "mean"),
        baselines={"rebrac": {"actor_penalty": 0.1, "critic_penalty": 0.1}},
        data="D4RL hopper-expert (HDF5 or Minari)",
        protocol=_D4RL,
        expected={"the data": "108", "SAQ": "103 to 112"},
        source="SAQ (arXiv 2310.11731): codebooks of 16 to 128 are alike",
    ),
    **{
        name: Preset(
            summary=f"{robot}, data of one mediocre policy",
            agent="iql",
            # Chosen by trials on mixed data (benchmarks/results/tuning.jsonl).
            settings={"env": f"{robot}-v4", "feature_deviation": 1.0},
            agents={"cql": {"alpha": 1.0}, "brac": {"alpha": 0.3}},
            baselines={
                "brac": {"alpha": 10.0},
                "rebrac": {"actor_penalty": 1.0, "critic_penalty": 0.1},
            },
            data=f"D4RL {name} (HDF5 or Minari)",
            protocol=_D4RL,
            expected=scores,
            source="CORL (arXiv 2210.07105), last scores in its repository",
        )
        for name, robot, scores in (
            ("hopper-medium", "Hopper", {"BC": "54", "CQL": "59", "IQL": "68", "ReBRAC": "102"}),
            (
                "halfcheetah-medium",
                "HalfCheetah",
                {"BC": "42", "CQL": "47", "IQL": "48", "ReBRAC": "64"},
            ),
        )
    },
    "paper-hopper-expert": replace(
        _PAPER,
        summary="Hopper, expert data, with the paper's settings",
        settings={**_PAPER.settings, "env": "Hopper-v4", "reward_scale": "return-range"},
        data="D4RL hopper-expert (HDF5 or Minari)",
        protocol=_D4RL,
        expected={"SAQ": "103 to 112"},
        source="SAQ (arXiv 2310.11731): codebooks of 16 to 128 are alike",
    ),
    "paper-door-human": replace(
        _PAPER,
        summary="Adroit door, human demonstrations, with the paper's settings",
        agent="iql",
        settings={**_PAPER.settings, "env": "AdroitHandDoor-v1"},
        data="D4RL door-human (HDF5 or Minari)",
        protocol=_D4RL,
        expected={"SAQ-IQL": "about 9"},
        source="plots in the repository of SAQ's authors",
    ),
    **{
        f"paper-{task}": replace(
            _PAPER,
            summary=f"robomimic {task}, proficient human, with the paper's settings",
            agent="bc",
            data=f"robomimic {task}/ph low_dim.hdf5",
            protocol=_SUCCESS,
            expected=scores,
            source="SAQ (arXiv 2310.11731), robomimic table",
        )
        for task, scores in _ROBOMIMIC.items()
    },
    "cube-single-play": _cube_play(),
    "cube-single-play-chunk5": _cube_play(chunk=5),
    "scene-play-chunk5": _scene_play(),
}

PRESETS: Mapping[str, Preset] = {
    "default": Preset(summary="ours: fast codebooks, twin LayerNorm critics, the prior's mask"),
    "cube": Preset(
        summary="a cube to be moved by a MuJoCo arm: collects demonstrations, trains, evaluates",
        settings={
            "env": "cube-single-singletask-task2-v0",
            "demonstrations": 60,
            "style": "human",  # on alike demonstrations, regression is level
            "chunk": 4,
            "action_horizon": 4,
            # A fifth of the time of the run, at two policies.
            "eval_episodes": 20,
            "feature_deviation": 0.3,
            "baseline": True,
        },
        quantizer={"steps": 3_000, "codes": 16},
        agents={"bc": {"steps": 3_000}},
    ),
    "paper": _PAPER,
    **_PUBLISHED,
}
# What `saqrl train` without an argument does.
MAIN_JOB = "cube"


def build_settings(
    preset_name: str,
    *,
    agent: str | None = None,
    quantizer: str = "vqvae",
    actions: str = "quantized",
) -> Settings:
    """The settings of a preset for an agent; ValueError with the nearest names otherwise."""
    if preset_name not in PRESETS:
        raise ValueError(f"unknown preset {preset_name!r}; {closest(preset_name, PRESETS)}")
    preset = PRESETS[preset_name]
    name = agent or preset.agent
    if actions == "continuous":
        chosen = BASELINES.load(name)(**preset.baselines.get(name, {}))
        act = chosen.default_act
    else:
        if name in BASELINES and name not in AGENTS:
            raise ValueError(f"agent {name!r} needs continuous actions: add --actions continuous")
        chosen = AGENTS.load(name)(**preset.agents.get(name, {}))
        act = preset.acts.get(name, chosen.default_act)
    # A preset speaks of the VQ-VAE; of another quantizer it can only set what that one has.
    quantizer_class = QUANTIZERS.load(quantizer)
    known = {field.name for field in fields(quantizer_class)}
    codec = quantizer_class(**{k: v for k, v in preset.quantizer.items() if k in known})
    settings = Settings(
        agent=chosen,
        quantizer=codec,
        prior=AGENTS.load("bc")(**{**preset.prior, **preset.priors.get(name, {})}),
        actions=typed("actions", Actions, actions),
    )
    return changed(settings, {"act": act, **preset.settings})


def settings_from(said: Mapping[str, Any], *, base: Settings | None = None) -> Settings:
    """The settings that flags make (see `flags`): of a preset, or of `base`, the rest unsaid.

    Without data, environment or preset they are those of the main job. A recipe is not applied
    here (see `recipe`). ValueError names the flag.
    """
    named = {canonical(name): value for name, value in said.items()}
    chosen = {name: typed(name, str | None, named.pop(name, None)) for name in CHOICES}
    if base is not None:
        _refuse_other_choices(base, chosen)
        return changed(base, named)
    main_job = named.get("dataset") is None and named.get("env") is None
    settings = build_settings(
        chosen["preset"] or (MAIN_JOB if main_job else "default"),
        agent=chosen["agent"],
        quantizer=chosen["quantizer"] or "vqvae",
        actions=chosen["actions"] or "quantized",
    )
    settings = changed(settings, named)
    wanted = PRESETS[chosen["preset"]].data if chosen["preset"] else ""
    if wanted and settings.data.dataset is None:
        raise ValueError(f"preset {chosen['preset']!r} needs --dataset: {wanted}")
    return settings


def _refuse_other_choices(base: Settings, chosen: Mapping[str, str | None]) -> None:
    saved = {
        "agent": base.agent_name,
        "quantizer": QUANTIZERS.name_of(base.quantizer),
        "actions": base.actions,
    }
    for name, value in saved.items():
        if chosen[name] not in (None, value):
            raise ValueError(
                f"--resume: {name} is {value!r} in the run and {chosen[name]!r} here: remove "
                "that flag, or choose another --out"
            )
