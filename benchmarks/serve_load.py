"""Answers per second of `saqrl serve` and the time of one, with 1, 8 and 64 clients.

    python benchmarks/serve_load.py [--out benchmarks/results/serve_load.json]

The server is its own process; the clients are openpi's way of asking (send, wait, receive) as
coroutines of this one, all on the loopback interface. Every client sends a fixed number of
requests as fast as it is answered.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgpack
import numpy as np
import websockets
from latency import ACT, OBSERVATION, _processor, policy_of
from websockets.asyncio.client import connect

from saqrl.deploy.export import export

CLIENTS = (1, 8, 64)
REQUESTS = 8000  # of all clients together


async def client(port: int, requests: int, taken: list[float]) -> None:
    observation = np.zeros(OBSERVATION, np.float32)
    message = msgpack.packb(
        {
            "observation": {
                b"__ndarray__": True,
                b"data": observation.tobytes(),
                b"dtype": "<f4",
                b"shape": observation.shape,
            }
        }
    )
    async with connect(f"ws://127.0.0.1:{port}", compression=None) as socket:
        await socket.recv()
        for _ in range(requests):
            began = time.perf_counter()
            await socket.send(message)
            answer = await socket.recv()
            taken.append(1e3 * (time.perf_counter() - began))
            if isinstance(answer, str):
                raise RuntimeError(answer)


async def load(port: int, clients: int) -> dict[str, float]:
    taken: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(*(client(port, REQUESTS // clients, taken) for _ in range(clients)))
    elapsed = time.perf_counter() - began
    return {
        "clients": clients,
        "answers_per_second": round(len(taken) / elapsed),
        "median_ms": round(float(np.median(taken)), 3),
        "p99_ms": round(float(np.percentile(taken, 99)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    observations = np.random.default_rng(0).normal(size=(500, OBSERVATION)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.onnx"
        export(
            policy_of("bc", (256, 256)),
            path,
            file_format="onnx",
            part="policy",
            act="greedy",
            observations=observations,
            held_out=observations[:100],
            held_out_actions=np.zeros((100, 1, ACT), np.float32),
            provenance={},
        )
        words = ["serve", str(path), "--port", "0", "--max-rate", "1000000"]
        server = subprocess.Popen(
            [sys.executable, "-m", "saqrl.cli", *words], stderr=subprocess.PIPE, text=True
        )
        try:
            line = server.stderr.readline()
            port = int(line.partition("127.0.0.1:")[2].split()[0])
            asyncio.run(load(port, 1))  # warm
            rows = [asyncio.run(load(port, clients)) for clients in CLIENTS]
        finally:
            server.terminate()
            server.wait(20)
    record = {
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
        },
        "versions": {"websockets": websockets.__version__, "numpy": np.__version__},
        "policy": f"SAQ-BC 256-256, {OBSERVATION} observations, {ACT} actions, onnxruntime",
        "requests": REQUESTS,
        "rows": rows,
    }
    print(json.dumps(record, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
