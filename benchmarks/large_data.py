"""Training from a log larger than memory: resident memory, and the rate beside data in memory.

    taskset -c 0 python benchmarks/large_data.py --folder /somewhere/with/7/GB

A synthetic log (17 observation columns, 6 action columns, episodes of 1,000 steps) is written a
million steps at a time, as the format `mapped` is. Then two processes read it where it lies:

memory: a whole run as `saqrl train --agent iql` makes it (default sizes and parts), at least ten
parts of the agent's training, and the highest resident memory of the process from its beginning.

rate: the quantizer, SAQ-IQL and SAQ-CQL train in turns on parts of the log and on one set of its
rows in memory, so that what else the machine does falls on both. Before every streamed turn the
log is dropped from the page cache: it is read from the disk. A turn is as long as two parts; the
ratio is taken within a round, the median over rounds.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

OBSERVATION, ACTION, LENGTH, EPISODES = 17, 6, 1_000, 1_000
RESULTS = Path(__file__).parent / "results" / "large_data.json"
# Parts that each stage of the rate process and the agent of the memory process train on, at least.
PARTS = 10
# Rows in memory that the streamed training is compared with.
ROWS_IN_MEMORY = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transitions", type=int, default=50_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rate-rows", type=int, default=2**16, help="of a part, in the rate")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        kind, data = asked.child
        done = memory(Path(data)) if kind == "memory" else rate(Path(data), asked.rate_rows)
        print(json.dumps(done))
        return
    workplace = Path(tempfile.mkdtemp(prefix="large-data-", dir=asked.folder))
    try:
        data = workplace / "data"
        record: dict[str, Any] = {"transitions": asked.transitions, "written": write(data, asked)}
        print(json.dumps(record), flush=True)
        for kind in ("memory", "rate"):
            words = ["--child", kind, str(data), "--rate-rows", str(asked.rate_rows)]
            done = subprocess.run(
                [sys.executable, __file__, *words],
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            record[kind] = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps(record[kind], indent=1), flush=True)
    finally:
        shutil.rmtree(workplace)
    command = f"taskset -c {','.join(map(str, sorted(os.sched_getaffinity(0))))} python "
    words = [word for word in sys.argv[1:] if word not in ("--folder", str(asked.folder))]
    record = {
        "command": command + " ".join(["benchmarks/large_data.py", *words]),
        "machine": machine(),
        "versions": versions(),
        **record,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=2) + "\n")


def write(data: Path, asked: argparse.Namespace) -> dict[str, Any]:
    from saqrl.datasets.formats.mapped import write_each

    began = time.perf_counter()
    write_each(data, logs(asked.transitions))
    size = sum(file.stat().st_size for file in data.iterdir())
    return {"bytes": size, "seconds": round(time.perf_counter() - began, 1)}


def logs(transitions: int) -> Iterator[Any]:
    """Episodes that walk about, with actions that follow from the state in one of two ways."""
    from saqrl.datasets import Transitions
    from saqrl.datasets.scaling import ActionRange

    draw = np.random.default_rng(0)
    ways = draw.normal(0, 0.3, (2, OBSERVATION, ACTION)).astype(np.float32)
    count = -(-transitions // LENGTH)
    for first in range(0, count, EPISODES):
        episodes = min(EPISODES, count - first)
        steps = draw.standard_normal((episodes, LENGTH + 1, OBSERVATION), np.float32) * 0.1
        walks = np.cumsum(steps, 1, out=steps)
        states = walks[:, :-1].reshape(-1, OBSERVATION)
        way = draw.integers(0, 2, len(states))[:, None] == 1
        noise = 0.05 * draw.standard_normal((len(states), ACTION), np.float32)
        actions = np.tanh(np.where(way, states @ ways[1], states @ ways[0]) + noise)
        yield Transitions(
            observations=states,
            actions=actions,
            rewards=-np.square(states).mean(1),
            next_observations=walks[:, 1:].reshape(-1, OBSERVATION),
            terminated=np.zeros(len(states), bool),
            episode_starts=np.arange(0, len(states), LENGTH),
            action_range=ActionRange(-np.ones(ACTION, np.float32), np.ones(ACTION, np.float32)),
        )


def memory(data: Path) -> dict[str, Any]:
    """A whole run in this process; MB, the highest so far."""
    from saqrl.training.flags import changed
    from saqrl.training.preparation import PART_ROWS
    from saqrl.training.presets import settings_from
    from saqrl.training.progress import Reporter
    from saqrl.training.train import train

    settings = settings_from({"dataset": f"mapped:{data}", "agent": "iql"})
    every = PART_ROWS // settings.agent.batch_size
    steps = {"steps": PARTS * every, "quantizer_steps": 2 * every, "prior.steps": every}
    settings = changed(settings, steps)
    began = time.perf_counter()
    summary = train(settings, data.parent / "run", resume=False, reporter=Reporter(quiet=True))
    return {
        "agent": "iql",
        "part_rows": PART_ROWS,
        "agent_steps": settings.agent.steps,
        "parts_of_the_agent": settings.agent.steps // every,
        "gradient_steps": summary["gradient_steps"],
        "peak_resident_megabytes": round(peak(), 1),
        "seconds": round(time.perf_counter() - began, 1),
        "stage_seconds": summary["seconds"],
    }


def peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def rate(data: Path, rows: int) -> dict[str, Any]:
    """Steps a second of each stage, on parts and in memory, and what is left of the rate."""
    import jax

    from saqrl.datasets import load_dataset
    from saqrl.training.codes import encode_all
    from saqrl.training.preparation import Prepared, fit_scaling, reward_factor
    from saqrl.training.presets import build_settings
    from saqrl.training.stream import Parts

    settings = build_settings("default", agent="iql", quantizer="vqvae")
    began = time.perf_counter()
    log = load_dataset(f"mapped:{data}")
    opened = time.perf_counter() - began
    scaling, factor = fit_scaling(log, settings), reward_factor(log, settings.features.reward_scale)
    fitted = time.perf_counter() - began - opened
    parts = Parts(log, settings, scaling, factor, rows=rows)
    held = Parts(log, settings, scaling, factor, rows=min(ROWS_IN_MEMORY, len(log) // 2))
    inside = held.prepared(0)

    def turns(algorithm: Any, build: Any) -> tuple[dict[str, Any], Any]:
        return alternate(algorithm, parts, build, build(inside), data)

    lines = {}
    lines["quantizer"], state = turns(settings.quantizer, Prepared.action_batch)
    codec = settings.quantizer.codec(state)

    def coded(prior: Any) -> Any:
        def build(prepared: Prepared) -> Any:
            codes = encode_all(codec, prepared.action_batch())
            return prepared.coded(codes, codec.num_codes, prior)

        return build

    key = jax.random.key(1)
    from saqrl.training import engine

    learner = replace(settings.prior, steps=1)
    untrained = engine.begin(learner, key, coded(None)(inside))
    prior = settings.prior.prior(untrained)
    for name in ("iql", "cql"):
        agent = build_settings("default", agent=name, quantizer="vqvae").agent
        lines[name], _ = turns(agent, coded(prior))
    return {
        "part_rows": parts.rows,
        "rows_in_memory": held.rows,
        "opening_seconds": round(opened, 1),
        "scaling_seconds": round(fitted, 1),
        "stages": lines,
    }


def alternate(
    algorithm: Any, parts: Any, build: Any, inside: Any, data: Path
) -> tuple[dict[str, Any], Any]:
    """Turns of two parts each, on the stream and in memory; the state that the stream has made."""
    import jax

    from saqrl.training import engine

    every = parts.rows // algorithm.batch_size
    turn = 2 * every
    learner = replace(algorithm, steps=turn * (PARTS // 2 + 2))
    key = jax.random.key(0)
    streamed = engine.intervals(learner, parts.stream(learner, build), key, pauses=[turn])
    beside = engine.intervals(learner, inside, key, pauses=[turn])
    state = next(streamed).state  # the first turns compile
    next(beside)
    rounds = []
    for _ in range(PARTS // 2):
        drop_from_cache(data)
        (wall, cpu), interval = timed(lambda: next(streamed))
        (wall_inside, cpu_inside), _ = timed(lambda: next(beside))
        state = interval.state
        rounds.append(
            {
                "streamed": turn / wall,
                "in_memory": turn / wall_inside,
                "ratio": wall_inside / wall,
                "ratio_of_processor_time": cpu_inside / cpu,
            }
        )
    ratios = [line["ratio"] for line in rounds]
    return {
        "batch": algorithm.batch_size,
        "hidden": list(algorithm.hidden),
        "parts": PARTS,
        "steps": turn * len(rounds),
        "streamed_steps_per_second": round(median(line["streamed"] for line in rounds), 1),
        "in_memory_steps_per_second": round(median(line["in_memory"] for line in rounds), 1),
        "ratio": round(median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
        "ratio_of_processor_time": round(
            median(line["ratio_of_processor_time"] for line in rounds), 3
        ),
    }, state


def timed(act: Any) -> tuple[tuple[float, float], Any]:
    """(wall seconds, processor seconds of all threads) and what came of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    done = act()
    return (time.perf_counter() - wall, time.process_time() - cpu), done


def drop_from_cache(data: Path) -> None:
    for file in data.glob("*.npy"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def machine() -> dict[str, Any]:
    def value(file: str, name: str) -> str:
        lines = Path(file).read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(name))

    return {
        "processor": value("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)),
        "memory": value("/proc/meminfo", "MemTotal"),
        "load": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version()} | {
        name: version(name) for name in ("saqrl", "jax", "jaxlib", "optax", "equinox", "numpy")
    }


if __name__ == "__main__":
    main()
