"""Time of one decision from an exported policy, on one core.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/latency.py \\
        [--out benchmarks/results/latency.json]

Networks of the sizes that the paper uses, on the shapes of D4RL's door (39 observations, 28
actions), with random weights. NumPy and onnxruntime read the same graph. Beside each policy stands
what its weights alone cost: one pass over as many float32 numbers as it has, by the engine's own
matrix product (`weights_alone`), which no graph of them can undercut.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime

from saqrl.agents import AGENTS
from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.deploy import runtime
from saqrl.deploy.export import export
from saqrl.deploy.graph import Graph, Node, Tensor
from saqrl.deploy.graph.files import onnx_bytes
from saqrl.deploy.runtime import OnnxEngine
from saqrl.policy import Policy
from saqrl.policy.storage import controller_skeleton
from saqrl.quantizers import QUANTIZERS

OBSERVATION, ACT, CODES = 39, 28, 64
WARM, TIMED = 500, 5000


def policy_of(agent: str, hidden: tuple[int, ...]) -> Policy:
    size = {"hidden": hidden, "steps": 1}
    description = {
        "kind": "quantized",
        "quantizer": QUANTIZERS.describe(QUANTIZERS.load("vqvae")(**size, codes=CODES)),
        "prior": AGENTS.describe(AGENTS.load("bc")(**size)),
        "agent": AGENTS.describe(AGENTS.load(agent)(**size)),
        "features": OBSERVATION,
        "chunk_action_size": ACT,
    }
    draw = np.random.default_rng(0)

    def trained(leaf: jax.Array) -> jax.Array:
        """No two networks share weights, and no action is two-valued: both would save time."""
        if leaf.dtype == bool:
            return jnp.zeros(leaf.shape, bool)
        return leaf + 0.02 * draw.normal(size=leaf.shape).astype(leaf.dtype)

    return Policy(
        controller=jax.tree.map(trained, jax.jit(lambda: controller_skeleton(description))()),
        observation_scaling=ObservationScaling(
            (), np.zeros(OBSERVATION, np.float32), np.full(OBSERVATION, 2, np.float32)
        ),
        action_range=ActionRange(-np.ones(ACT, np.float32), np.ones(ACT, np.float32)),
        observation_size=OBSERVATION,
        description=description,
    )


def constants_of(path: Path) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(array) for array in onnx.load(path).graph.initializer]


def timings(act, observations) -> dict[str, float]:
    """Microseconds of one call."""
    for row in observations[:WARM]:
        act(row)
    taken = []
    for row in observations[WARM:]:
        began = time.perf_counter_ns()
        act(row)
        taken.append((time.perf_counter_ns() - began) / 1000)
    median, high = np.percentile(taken, [50, 99])
    return {"median_us": round(float(median), 1), "p99_us": round(float(high), 1)}


def one_pass(count: int) -> OnnxEngine:
    """One product of a vector of 512 with `count` weights, in onnxruntime as policies run there."""
    product = Graph(
        inputs={"observation": Tensor((512,), "float32")},
        outputs={"product": Tensor((count // 512,), "float32")},
        nodes=[Node("MatMul", ("observation", "weights"), "product", {})],
        constants={"weights": np.ones((512, count // 512), np.float32)},
    )
    return OnnxEngine(Path("product"), onnx_bytes(product, {"format": runtime.FORMAT}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(WARM + TIMED, OBSERVATION)).astype(np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for agent in ("bc", "cql"):
            for hidden in ((256, 256), (512, 512)):
                policy = policy_of(agent, hidden)
                wide = np.ones((1, 512), np.float32)
                for suffix in ("onnx", "npz"):
                    path = Path(folder) / f"policy.{suffix}"
                    export(
                        policy,
                        path,
                        file_format=suffix,
                        part="policy",
                        act="greedy",
                        observations=observations[:2000],
                        held_out=observations[:100],
                        held_out_actions=np.zeros((100, 1, ACT), np.float32),
                        provenance={},
                    )
                    played = runtime.load(path)
                    graph = played._engine
                    floors = {}
                    if suffix == "onnx":
                        weights = sum(a.size for a in constants_of(path) if a.ndim == 2)
                        alone = one_pass(weights)
                        floors = {
                            "weights_mb": round(4e-6 * weights, 2),
                            "weights_alone": timings(
                                lambda row, alone=alone, wide=wide: alone({"observation": wide}),
                                observations,
                            ),
                        }
                    row = {
                        "agent": agent,
                        "hidden": "-".join(map(str, hidden)),
                        "engine": "onnxruntime" if suffix == "onnx" else "numpy",
                        "act": timings(played.act, observations),
                        "graph_alone": timings(
                            lambda row, graph=graph: graph({"observation": row[None]}),
                            observations,
                        ),
                        **floors,
                    }
                    rows.append(row)
                    print(json.dumps(row))
    record = {
        "machine": {
            "processor": _processor(),
            "cores_used": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "shapes": {"observation": OBSERVATION, "action": ACT, "codes": CODES},
        "timed_calls": TIMED,
        "rows": rows,
    }
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=2) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
