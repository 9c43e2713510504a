"""How fast each format is read, and at what memory: one row a file, each in its own process.

    python benchmarks/read_datasets.py $SAQRL_DATA benchmarks/results/read_datasets.json

Seconds are the best of REPEATS, with the file in the page cache; the ratio compares with reading
the same transitions from npz, which this script writes first. Peak memory is the resident set of
the process that reads once, less the highest before it: 0 where the imports themselves took more.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 3
FILES = (
    "d4rl/hopper-expert.hdf5",
    "minari/adroit/door/human-v0",
    "robomimic/can/ph-scripted/low_dim.hdf5",
    "ogbench/cube-single-play-v0.npz",
    "lerobot/g1-pick-bottle",
    "npz/pusht-human.npz",
)


def resident() -> float:
    """MB, the highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(spec: str) -> dict[str, object]:
    """One file, in this process."""
    from saqrl.datasets import load_dataset, resolve_spec

    format_name, path = resolve_spec(spec)
    before = resident()
    log = load_dataset(spec)
    peak = resident()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        load_dataset(spec)
        seconds.append(time.perf_counter() - start)
    parts = [log] if log.held_out is None else [log, log.held_out]
    arrays = ("observations", "actions", "rewards", "next_observations", "terminated")
    return {
        "format": format_name,
        "file": path.name,
        "steps": sum(map(len, parts)),
        "array_megabytes": round(
            sum(getattr(part, name).nbytes for part in parts for name in arrays) / 1e6, 1
        ),
        "seconds": round(min(seconds), 4),
        "seconds_worst": round(max(seconds), 4),
        "peak_megabytes": round(peak - before, 1),
    }


def in_own_process(spec: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--one", spec]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--one", help="measure this SPEC in this process")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one)))
        return
    from saqrl.datasets import load_dataset
    from saqrl.datasets.formats.writers import convert

    rows = []
    for name in FILES:
        row = in_own_process(str(asked.data / name))
        with tempfile.TemporaryDirectory() as folder:
            convert(load_dataset(str(asked.data / name)), Path(folder) / "same.npz", "npz")
            same = in_own_process(f"npz:{folder}/same.npz")
        row["steps_per_second"] = round(row["steps"] / row["seconds"])
        row["seconds_over_npz"] = round(row["seconds"] / same["seconds"], 2)
        rows.append(row)
        print(row, flush=True)
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    asked.out.write_text(json.dumps({**machine, "repeats": REPEATS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
