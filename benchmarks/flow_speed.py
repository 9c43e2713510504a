"""Steps a second of exact values on chunk codes, of our FQL, and of FQL's own program.

    python benchmarks/flow_speed.py --theirs DIR [--python THEIR_PYTHON] [--rounds 5]

DIR is a clone of github seohongpark/fql, which is not part of this project; THEIR_PYTHON has flax,
optax and ml_collections beside the same version of JAX. The question: how many gradient steps of
each fit into the same hour on the same cores, with networks of the same widths?

Every contestant compiles in a process of its own and then waits for its turns, so that what else
the machine does falls on all alike. Ratios are taken within a round, medians over rounds. Sizes
are those of cube-single play; codes 128, chunk 5 (so a decision of ours is worth five of theirs).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from throughput import machine

OBSERVATION, ACTION, BATCH, CODES, ROWS = 28, 5, 256, 128, 100_000
STEPS_OF_A_CHUNK = 5
RESULTS = Path(__file__).parent / "results" / "flow_speed.json"
WIDTHS = {"256-256": (256, 256), "512 x 4": (512, 512, 512, 512)}
CONTESTANTS = (
    "iql on codes",
    "iql on codes, bfloat16",
    "iql, Q of actions, bfloat16",
    "fql, ours",
    "fql, theirs",
)
# Steps between two looks at the clock.
CHUNK = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--theirs", type=Path, required=True, help="clone of github seohongpark/fql"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs theirs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        take_turns(*asked.child, asked)
        return
    lines = {width: compare(width, asked) for width in WIDTHS}
    record = {
        "command": "python benchmarks/flow_speed.py --theirs DIR",
        "machine": machine(),
        "jax": version_of_jax(),
        "sizes": {"observation": OBSERVATION, "action": ACTION, "batch": BATCH, "codes": CODES},
        "seconds_of_a_turn": asked.seconds,
        "widths": lines,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


def compare(width: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Rounds of turns; steps a second of each, and ratios to their program."""
    options = ["--theirs", str(asked.theirs), "--seconds", str(asked.seconds)]
    children = {}
    for name in CONTESTANTS:
        python = asked.python if name.endswith("theirs") else sys.executable
        children[name] = subprocess.Popen(
            [python, __file__, "--child", name, width, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(asked.rounds + 1):
        for name, child in children.items():
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            rate = float(child.stdout.readline())
            if number:  # the first round compiles
                rates[name].append(rate)
    for child in children.values():
        child.communicate()
    theirs = rates["fql, theirs"]
    found = {
        name: {
            "steps_per_s": round(median(own), 1),
            "ratio_to_theirs": round(median(a / b for a, b in zip(own, theirs, strict=True)), 2),
            "rounds": [round(rate, 1) for rate in own],
        }
        for name, own in rates.items()
    }
    for name, line in found.items():
        print(f"{width:>8}  {name:<24} {line['steps_per_s']:>7} {line['ratio_to_theirs']:>6} x")
    return found


def take_turns(name: str, width: str, asked: argparse.Namespace) -> None:
    """One process: for every line that comes in, its steps a second go out."""
    build = their_fql if name.endswith("theirs") else our_agent
    some_steps = build(name, WIDTHS[width], asked)
    some_steps()
    for _ in sys.stdin:
        began, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < asked.seconds:
            some_steps()
            done += CHUNK
        print(done / elapsed, flush=True)


def random_rows() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    seen, following = generator.normal(size=(2, ROWS, OBSERVATION)).astype(np.float32)
    return {
        "observations": seen,
        "next_observations": following,
        "actions": np.tanh(generator.normal(size=(ROWS, ACTION))).astype(np.float32),
        "rewards": -(generator.random(ROWS) < 0.9).astype(np.float32),
        "masks": np.ones(ROWS, np.float32),
    }


def our_agent(name: str, hidden: tuple[int, ...], asked: argparse.Namespace) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    from saqrl.agents import AGENTS, CodedTransitions
    from saqrl.baselines import BASELINES, ContinuousTransitions
    from saqrl.training import engine

    columns = {key: jnp.asarray(value) for key, value in random_rows().items()}
    seen, following = columns["observations"], columns["next_observations"]
    outcome = (columns["rewards"], following, 0.99 * columns["masks"])
    sizes: dict[str, Any] = {"hidden": hidden, "batch_size": BATCH, "steps": 10**8}
    data: Any
    if name.startswith("fql"):
        learner = BASELINES.load("fql")(**sizes)
        data = ContinuousTransitions(seen, columns["actions"], *outcome, columns["actions"])
    else:
        precision = "bfloat16" if name.endswith("bfloat16") else "float32"
        q_of = "actions" if "actions" in name else "codes"
        learner = AGENTS.load("iql")(**sizes, precision=precision, q_of=q_of)
        codes = jax.random.randint(jax.random.key(0), (ROWS,), 0, CODES)
        even = jnp.full((ROWS, CODES), -jnp.log(float(CODES)))
        chunks = jnp.tile(columns["actions"], STEPS_OF_A_CHUNK)
        data = CodedTransitions(seen, codes, *outcome, even, even, CODES, actions=chunks)
    training = engine.intervals(learner, data, jax.random.key(0), pauses=[CHUNK])

    def some_steps() -> None:
        next(training)

    return some_steps


def their_fql(name: str, hidden: tuple[int, ...], asked: argparse.Namespace) -> Callable[[], None]:
    """Their update on batches that their own table draws on the host."""
    sys.path.insert(0, str(asked.theirs))
    import jax
    from agents.fql import FQLAgent, get_config
    from utils.datasets import Dataset

    rows = random_rows()
    rows["terminals"] = np.zeros(ROWS, np.float32)
    table = Dataset.create(**rows)
    config = get_config()
    config.actor_hidden_dims = config.value_hidden_dims = hidden
    agent = FQLAgent.create(0, rows["observations"][:1], rows["actions"][:1], config)

    def some_steps() -> None:
        nonlocal agent
        for _ in range(CHUNK):
            agent, _ = agent.update(table.sample(BATCH))
        jax.block_until_ready(agent.network.params)

    return some_steps


def version_of_jax() -> str:
    from importlib.metadata import version

    return version("jax")


if __name__ == "__main__":
    main()
