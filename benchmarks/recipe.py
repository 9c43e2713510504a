"""The recipe alone against fixed defaults, the best hand-set codes, and regression.

    python -m benchmarks.recipe [--only TEXT] [--method TEXT] [--seeds 3] [--list]

Nothing but `--dataset` (and an environment to score in) is said for the recipe. Every cell is a
final policy over 50 episodes. benchmarks/results/recipe.jsonl gets a line for each cell as it
finishes; one that is there is not run again.

What the columns have to answer: is the recipe ever below 95 % of the best quantized settings
known for a set, or below the best regression by more than its standard error?
"""

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import saqrl
from benchmarks import logs
from benchmarks.rows import (
    Flags,
    Row,
    arguments,
    asked_for,
    scored,
    scores_table,
    show_or_fill,
    with_table,
)
from saqrl.training.run_folder import read_config

RESULTS = Path(__file__).parent / "results" / "recipe.jsonl"
OUT = Path("runs/recipe")
EPISODES = 50
# Steps of the opponents; their settings were tuned on seeds from 100 on (results/tuning.jsonl).
STEPS = {"steps": 5_000, "quantizer_steps": 6_000}
FEW = {"quantizer.codes": 16, "quantizer.state_scale": 0.3}
WIDE, WIDEST = {"feature_deviation": 0.3}, {"feature_deviation": 1.0}


class Set(NamedTuple):
    """A data set, what has to be said of it, and its opponents' best settings."""

    name: str
    said: Flags
    codes: Flags
    """The best hand-set quantized configuration known."""
    regression: Flags
    """Of continuous BC and GMM."""


def _d4rl(name: str, env: str, **flags: Any) -> Flags:
    return {"dataset": logs.d4rl(name), "env": env, **flags}


def _robomimic(task: str, **flags: Any) -> Flags:
    return {"dataset": logs.robomimic(task), **flags}


DOOR, PEN, HAMMER = (f"AdroitHand{name}-v1" for name in ("Door", "Pen", "Hammer"))
PUSHT = {"dataset": logs.PUSHT, "env": "gym_pusht/PushT-v0"}
CUBE = {
    "dataset": logs.CUBE,
    "env": "cube-single-singletask-task2-v0",
}
CHUNKED = {"chunk": 8, "quantizer.codes": 64, "act_temperature": 0.5, **WIDE}
GREEDY = {"act": "greedy"}
SETS = (
    Set("pusht", PUSHT, {**CHUNKED, "angles": (4,)}, {"chunk": 8, "angles": (4,), **WIDE}),
    Set("pen-25", _d4rl("pen-expert", PEN, data_episodes=25), FEW, {}),
    Set("door-5", _d4rl("door-expert", DOOR, data_episodes=5), FEW, {"agent.weight_decay": 0.3}),
    Set("door-25", _d4rl("door-expert", DOOR, data_episodes=25), FEW, {}),
    Set("door-100", _d4rl("door-expert", DOOR), FEW, {}),
    Set("hammer-25", _d4rl("hammer-expert", HAMMER, data_episodes=25), FEW, {}),
    Set("hopper-expert", _d4rl("hopper-expert", "Hopper-v4"), GREEDY, {}),
    Set("hopper-medium", _d4rl("hopper-medium", "Hopper-v4"), {**WIDEST, **GREEDY}, {}),
    Set("halfcheetah-medium", _d4rl("halfcheetah-medium", "HalfCheetah-v4"), WIDEST, {}),
    Set(
        "hopper-mixed",
        _d4rl("hopper-mixed", "Hopper-v4"),
        {**WIDEST, "agent": "cql", "agent.alpha": 1.0},
        {},
    ),
    Set("door-human", _d4rl("door-human", DOOR), {"quantizer.codes": 16}, {}),
    Set(
        "cube-single-task2",
        CUBE,
        {
            **WIDEST,
            "agent": "iql",
            "chunk": 5,
            "quantizer.codes": 128,
            "agent.temperature": 0.3,
            "steps": 30_000,
        },
        {},
    ),
    # A million steps that `saqrl collect` makes; see values.py.
    Set(
        "scene-task2",
        {"dataset": "ogbench:data/scene-play-v0.npz", "env": "scene-singletask-task2-v0"},
        {"preset": "scene-play-chunk5", "steps": 60_000, "quantizer_steps": 20_000},
        {},
    ),
    Set("lift-50", _robomimic("lift", data_episodes=50), {"quantizer.codes": 16}, {}),
    Set("can-50", _robomimic("can", data_episodes=50), {"chunk": 8, **WIDE}, {}),
    Set("lift-200", _robomimic("lift"), {"quantizer.codes": 16}, {}),
    Set("can-200", _robomimic("can"), {"chunk": 8, **WIDE}, {}),
)


def methods(chosen: Set) -> dict[str, Flags]:
    """What is compared on a set: the flags of each method."""
    plain = {"recipe": "plain"}
    continuous = {**plain, "actions": "continuous", "steps": 5_000, **chosen.regression}
    kept = {k: v for k, v in continuous.items() if k != "agent.weight_decay"}
    return {
        "recipe": {},
        "plain": plain,
        "codes": {**plain, **STEPS, **chosen.codes},
        "bc": {**continuous, "agent": "bc"},
        "gmm": {**kept, "agent": "gmm"},
    }


def cells(asked: Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """One seed of every method and set before the next seed."""
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for chosen in SETS:
            own = methods(chosen)
            for method, flags in own.items():
                if asked.only in chosen.name and asked_for(method, asked.method, own):
                    key = {"set": chosen.name, "method": method, "seed": seed}
                    said = {**chosen.said, **flags, "seed": seed, "eval_episodes": EPISODES}
                    out = OUT / f"{chosen.name}-{method}-seed{seed}"
                    yield key, partial(measured, said, out)


def measured(said: Flags, out: Path) -> Row:
    """Train one cell; what it scored, and what the recipe chose."""
    shutil.rmtree(out, ignore_errors=True)
    trained = saqrl.fit(out=out, quiet=True, **said)
    return scored(out) | {
        "actions": trained.settings.actions,
        "said": {name: value for name, value in said.items() if name != "dataset"},
        "recipe": {choice["flag"]: choice["value"] for choice in read_config(out)["recipe"]},
    }


def table(rows: list[Row]) -> str:
    sets = (chosen.name for chosen in SETS)
    return scores_table(rows, ("set", sets), ("method", methods(SETS[0])))


def main() -> None:
    asked = with_table(arguments(__doc__, seeds=3)).parse_args()
    show_or_fill(asked, RESULTS, cells, table)


if __name__ == "__main__":
    main()
