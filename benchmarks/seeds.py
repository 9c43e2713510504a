"""Seeds as an axis: steps a second of N seeds in one program, against one seed alone.

    python benchmarks/seeds.py [--counts 1 2 4 8] [--devices 1 2] [--agent cql]

Each line is a process of its own: it trains one seed and N seeds in turns, so that what else the
machine does falls on both alike, and takes the ratio within a round; medians over rounds. Beside
it stands how long the first interval took, which is compiling: N runs would each pay it again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from throughput import build, machine, rate_of, versions

RESULTS = Path(__file__).parent / "results" / "seeds.json"
INTERVAL = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="of the host")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--agent", default="cql")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(*asked.child, asked)))
        return
    lines = []
    for devices in asked.devices:
        for width in asked.widths:
            for count in asked.counts:
                if devices > 1 and count % devices:
                    continue
                line = in_process(devices, width, count, asked)
                lines.append(line)
                print(
                    f"{asked.agent} {width} wide, {devices} device(s), {count} seeds: "
                    f"{line['seed_steps_per_s']:.0f} seed-steps/s, {line['ratio']:.2f} x one seed; "
                    f"first interval {line['compile_s']:.1f} s",
                    flush=True,
                )
    record = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "versions": versions(),
        "agent": asked.agent,
        "lines": lines,
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n")


def in_process(devices: int, width: int, count: int, asked: Any) -> dict[str, Any]:
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    if devices > 1:  # each device multiplies on its own core
        flags.append("--xla_cpu_multi_thread_eigen=false")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    options = ["--agent", asked.agent, "--rounds", str(asked.rounds)]
    options += ["--seconds", str(asked.seconds), "--child", str(width), str(count)]
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    line = dict(json.loads(done.stdout.splitlines()[-1]))
    return {"devices": devices, "width": width, "seeds": count} | line


def measure(width: int, count: int, asked: Any) -> dict[str, Any]:
    import time

    import jax

    from saqrl.training import engine

    algorithm, data, _ = build("agent", asked.agent, width, "paper")

    def trainer(seeds: int) -> Any:
        """Advances all seeds by an interval at each call."""
        cohort = engine.Cohort()
        keys = [jax.random.key(seed) for seed in range(seeds)]
        states = [engine.begin(algorithm, key, data) for key in keys]
        step = 0

        def advance() -> None:
            nonlocal states, step
            requests = [
                engine.Advance(algorithm, state, data, key, step, step + INTERVAL)
                for state, key in zip(states, keys, strict=True)
            ]
            answers = cohort.advance(requests)
            states = [state for state, _ in answers]
            jax.block_until_ready(states)
            step += INTERVAL

        return advance

    alone, together = trainer(1), trainer(count)
    alone()
    began = time.perf_counter()
    together()
    compile_s = time.perf_counter() - began
    rounds = []
    for _ in range(asked.rounds):
        one = rate_of(alone, INTERVAL, asked.seconds)
        all_of_them = rate_of(together, INTERVAL * count, asked.seconds)
        rounds.append((one, all_of_them))
    return {
        "seed_steps_per_s": median(many for _, many in rounds),
        "one_seed_steps_per_s": median(one for one, _ in rounds),
        "ratio": median(many / one for one, many in rounds),
        "compile_s": round(compile_s, 2),
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
