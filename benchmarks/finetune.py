"""Fine-tuning online: codes that stay and codes that grow, beside agents without codes.

    python -m benchmarks.finetune [--only TEXT] [--method TEXT] [--seeds 3] [--steps N] [--list]

What the rows have to answer: when do frozen codes lose, what does growing cost, and does either
keep and raise its offline score as well as continuous agents do from the same data at one gradient
step for each environment step: IQL as published (arXiv 2110.06169: more of the same updates,
actions sampled), RLPD (`rlpd.py`), and its soft actor-critic from nothing.

The offline runs of a set and seed are shared by the methods that go on from them. A line for each
cell is added to benchmarks/results/finetune.jsonl as it finishes; one that is there is not run
again.
"""

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import saqrl
from benchmarks import logs, reacher
from benchmarks.counterparts import go_on
from benchmarks.rlpd import RLPD
from benchmarks.rows import MACHINE, Flags, Row, arguments, asked_for, fill, rows_of, with_table
from benchmarks.values import PLAY, PUSHT_IQL
from saqrl.training.evaluation import measure_of
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.run_folder import read_config, read_history
from saqrl.training.train import saved_settings

RESULTS = Path(__file__).parent / "results" / "finetune.jsonl"
OUT = Path("runs/finetune")
EPISODES = 20


class Set(NamedTuple):
    """A data set, and its offline agents."""

    said: Flags
    codes: Flags
    """Of SAQ-IQL with Q of actions."""
    continuous: Flags
    """Of continuous IQL."""
    reward_scale: str = "none"
    """Of the agents that learn nothing offline."""
    online: Flags = MappingProxyType({})
    """Another environment than the data's."""
    grow: Flags = MappingProxyType({})
    """Of growing codes, where the defaults are not it (tried on seed 100)."""


HOPPER = {
    "dataset": logs.d4rl("hopper-medium"),
    "env": "Hopper-v4",
    "recipe": "plain",
    "feature_deviation": 1.0,
}
RIGHT = OUT / "reacher-right.npz"
REACHER = {"dataset": f"npz:{RIGHT}", "env": reacher.RIGHT, "recipe": "plain"}
CUBE = {
    "dataset": logs.CUBE,
    "env": "cube-single-singletask-task2-v0",
}
WHOLE_CHUNKS = {"action_horizon": 5, "act_temperature": 1.0}
Q_OF_ACTIONS = {"agent": "iql", "agent.q_of": "actions"}
# Dense rewards as IQL's authors scale them, with their inverse temperature of 3.
DENSE = {"reward_scale": "return-range"}
SHARP = {**DENSE, "agent.temperature": 0.33}
IQL = {"agent": "iql", "actions": "continuous"}
PUSHT_DATA = {k: v for k, v in PUSHT_IQL.items() if not k.startswith(("agent", "act_", "steps"))}
# Cheap ones first.
SETS: dict[str, Set] = {
    "reacher-moved": Set(
        REACHER,
        {**Q_OF_ACTIONS, **SHARP, "quantizer.codes": 32, "steps": 10_000},
        {**IQL, **DENSE, "steps": 10_000},
        online={"env": reacher.LEFT},
        grow={"noise": 0.2, "spare_codes": 96},
    ),
    "hopper-medium": Set(
        HOPPER,
        {**Q_OF_ACTIONS, **SHARP, "quantizer.codes": 64, "steps": 20_000},
        {**IQL, **DENSE, "steps": 20_000},
        grow={"noise": 0.03},
    ),
    "pusht": Set(
        PUSHT_DATA,
        {k: v for k, v in PUSHT_IQL.items() if k not in PUSHT_DATA} | Q_OF_ACTIONS,
        {**IQL, "steps": 20_000},
    ),
    "cube-single-task2": Set(
        CUBE,
        {**PLAY, **WHOLE_CHUNKS, "steps": 30_000},
        {
            **{k: v for k, v in PLAY.items() if not k.startswith(("agent", "quantizer"))},
            **WHOLE_CHUNKS,
            **IQL,
            "steps": 40_000,
        },
    ),
}
GROW = {"codebook": "grow"}
# Whose run they go on from, and how.
METHODS: dict[str, tuple[str, Flags]] = {
    "frozen": ("codes", {}),
    "grow": ("codes", GROW),
    "iql": ("continuous", {"noise": 0.0}),
    "rlpd": ("new", {"noise": 0.0}),
    "nothing": ("new", {"noise": 0.0, "keep_offline": 0.0}),
}


def cells(asked: Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """One seed of every method and set before the next seed."""
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for name in SETS:
            for method in METHODS:
                if asked.only in name and asked_for(method, asked.method, METHODS):
                    key = {"set": name, "method": method, "seed": seed, "steps": asked.steps}
                    yield key, partial(measured, name, method, seed, asked.steps)


def offline(name: str, kind: str, seed: int) -> Path:
    """The finished offline run of a set, trained where it is not there."""
    chosen = SETS[name]
    place = OUT / f"{name}-{kind}-seed{seed}"
    said = {**chosen.said, **getattr(chosen, kind), "seed": seed, "eval_episodes": EPISODES}
    saqrl.fit(out=place, resume=place.exists(), quiet=True, **said)
    return place


def measured(name: str, method: str, seed: int, steps: int) -> Row:
    """Train and fine-tune one cell; how its scores went."""
    kind, how = METHODS[method]
    chosen, out = SETS[name], OUT / f"{name}-{method}-seed{seed}-{steps}"
    shutil.rmtree(out, ignore_errors=True)
    asked = {"steps": steps, "eval_episodes": EPISODES, **chosen.online, **how}
    if method == "grow":
        asked |= chosen.grow
    parent = offline(name, "codes" if kind == "codes" else "continuous", seed)
    if kind == "codes":
        result = saqrl.Run(parent).finetune(out=out, **asked).result
    else:
        online = OnlineSettings(**asked)
        settings = saved_settings(parent)
        own = replace(settings.data, **{k: v for k, v in chosen.online.items() if k == "env"})
        settings = replace(settings, data=own)
        if kind == "new":
            old: Any = settings.agent
            shared = {field: getattr(old, field) for field in ("hidden", "batch_size", "discount")}
            features = replace(settings.features, reward_scale=chosen.reward_scale)
            settings = replace(settings, agent=RLPD(**shared), features=features)
        result = go_on(parent, settings, online, out, adopt=kind == "continuous")
    measure, factor = measure_of(result["env"], result)
    scored = [r for r in read_history(out, "evaluations") if r["stage"] == "online"]
    curve = [(record["step"], factor * record[measure]) for record in scored]
    return {
        "episodes": EPISODES,
        "measure": measure,
        "before": curve[0][1],
        "final": factor * result[measure],
        "curve": curve,
        "finetune": {k: v for k, v in result["finetune"].items() if k != "parent"},
        "wall_seconds": result["wall_seconds"],
        "versions": read_config(out)["versions"],
        "machine": MACHINE,
    }


def table(rows: list[Row]) -> str:
    """Markdown: of every set and method the scores before, at their lowest and at the end."""
    lines = [
        "| data | method | before | lowest | at the end | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name in SETS:
        for method in METHODS:
            own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
            if own:
                lowest = [min(score for _, score in row["curve"]) for row in own]
                found = ([r["before"] for r in own], lowest, [r["final"] for r in own])
                cells = (", ".join(f"{score:.1f}" for score in scores) for scores in found)
                minutes = sum(row["wall_seconds"] for row in own) / 60 / len(own)
                lines.append(f"| {name} | {method} | {' | '.join(cells)} | {minutes:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = with_table(arguments(__doc__, seeds=3))
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps")
    asked = parser.parse_args()
    if asked.table:
        print(table(rows_of(RESULTS)))
        return
    saqrl.register("baseline", "rlpd", RLPD)
    reacher.register()
    if not RIGHT.exists() and not asked.list:
        reacher.demonstrate(RIGHT)
    fill(RESULTS, cells(asked), listing=asked.list)


if __name__ == "__main__":
    main()
