"""What growing codes are worth where demonstrations leave out what pays, in a world of seconds.

    python -m benchmarks.moved

The moved world of the tests: demonstrations turn left, right pays up to 10 a return. Runs of both
kinds of Q go on for 1,200 environment steps with every kind of codebook, three seeds. Does `grow`
reach what `frozen` cannot, and with which Q does it do better? benchmarks/results/moved.json.
"""

import json
import os
import platform
import tempfile
from pathlib import Path

import gymnasium

from saqrl.training.online.finetune import finetune
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.progress import Reporter
from tests.training.moved import MOVED, Moved, demonstrate
from tests.walking import run, small

RESULTS = Path(__file__).parent / "results" / "moved.json"
OFFLINE = {
    "env": MOVED,
    "quantizer_steps": 600,
    "quantizer.hidden": 32,
    "quantizer.codes": 16,
    "steps": 200,
    "prior.steps": 100,
    "agent.discount": 0.0,
    "agent.temperature": 0.02,
    "agent.learning_rate": 0.003,
    "act": "sample",
}
ONLINE = {"steps": 1_200, "warm_up": 40, "eval_every": 1_200, "eval_episodes": 10, "lanes": 4}
ONLINE |= {"recode_every": 200, "refine_every": 1}
GROW = {"codebook": "grow", "spare_codes": 24}
ARMS = {
    "frozen": {},
    "decoder": {"codebook": "decoder"},
    "grow": GROW,
    "grow, noise 0.2": {**GROW, "noise": 0.2},
}


def main() -> None:
    gymnasium.register(MOVED, entry_point=Moved)
    rows, quiet = [], Reporter(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = demonstrate(place / "left.npz")
        for seed in range(3):
            for q_of in ("codes", "actions"):
                parent = place / f"{q_of}-{seed}"
                run(small(data, "iql", **OFFLINE, seed=seed, **{"agent.q_of": q_of}), parent)
                for arm, asked in ARMS.items():
                    settings = OnlineSettings(**ONLINE | asked)
                    found = finetune(
                        parent, settings, place / f"{q_of}-{seed}-{arm}", reporter=quiet
                    )
                    before = found["finetune"]["before"]["return_mean"]
                    row = {"seed": seed, "q_of": q_of, "arm": arm, "before": before}
                    rows.append(row | {"after": found["return_mean"]})
                    print(rows[-1], flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    record = {"command": "python -m benchmarks.moved", "machine": machine, "rows": rows}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
