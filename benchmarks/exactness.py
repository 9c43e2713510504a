"""What exact sums over codes are worth: the same agents with 1, 4 and 10 sampled codes instead.

    python benchmarks/exactness.py [--dataset SPEC] [--seeds 3] [--steps 5000]

The paper's reason for quantizing is that penalties over actions become sums. Two questions:

1. How noisy, and how far off, is the gradient of the penalty when it is sampled? At a trained
   SAQ-CQL and SAQ-BRAC, over the networks' parameters, one batch of 256, 200 draws. CQL's soft
   maximum by importance sampling with even proposals, log (K / n) sum_i exp Q(s, k_i), as CQL(H)
   (arXiv 2006.04779) has it on continuous actions; BRAC's expected value and KL by the score
   function, n codes drawn from the policy.
2. Does it matter for the score? SAQ-CQL, all else alike, on one quantizer and prior a seed.

benchmarks/results/exactness.json has what was found; run folders in runs/exactness are reused.
"""

import argparse
import json
import os
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

import saqrl
from saqrl.agents import CodedTransitions, operators
from saqrl.agents.cql import CQL
from saqrl.studies.shared_codes import share_codes
from saqrl.studies.table import row_of
from saqrl.training import engine
from saqrl.training.codes import encode_all
from saqrl.training.data import load_data
from saqrl.training.features import Features
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings
from saqrl.training.train import saved_settings, train

RESULTS = Path(__file__).parent / "results" / "exactness.json"
OUT = Path("runs/exactness")
DATA = f"npz:{os.environ.get('SAQRL_DATA', '../shared/data')}/npz/pusht-human.npz"
SAMPLES = (1, 4, 10)
DRAWS, BATCH = 200, 256


def sampled_gaps(
    q: Float[Array, "critics batch codes"],
    codes: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    samples: int,
) -> Float[Array, "critics batch"]:
    """CQL's penalty with its soft maximum over `samples` even draws of codes."""
    drawn = jax.random.randint(key, (*q.shape[:2], samples), 0, q.shape[-1])
    soft_max = jax.nn.logsumexp(jnp.take_along_axis(q, drawn, axis=-1), axis=-1)
    return (
        soft_max + jnp.log(q.shape[-1] / samples) - jax.vmap(operators.of_code, (0, None))(q, codes)
    )


@dataclass(frozen=True)
class SampledCQL(CQL):
    """SAQ-CQL whose soft maximum is sampled; all else is CQL's."""

    samples: int = 10

    def gaps(
        self,
        q: Float[Array, "critics batch codes"],
        codes: Int[Array, " batch"],
        key: Key[Array, ""],
    ) -> Float[Array, "critics batch"]:
        return sampled_gaps(q, codes, key, samples=self.samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--episodes", type=int, default=50)
    asked = parser.parse_args()
    saqrl.register("agent", "sampled_cql", SampledCQL)
    record: dict[str, Any] = {
        "command": f"python benchmarks/exactness.py --seeds {asked.seeds} --steps {asked.steps}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "gradients": gradients(asked),
    }
    record["scores"] = scores(asked, record)
    write(record)


def write(record: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


def settings_of(asked: argparse.Namespace, seed: int, **flags: Any) -> Settings:
    said = {
        "preset": "pusht-chunk8",
        "dataset": asked.dataset,
        "env": "gym_pusht/PushT-v0",
        "angles": (4,),
        "steps": asked.steps,
        "quantizer_steps": 6_000,
        "prior.steps": 5_000,
        "eval_episodes": asked.episodes,
    }
    return replace(settings_from(said | flags), seed=seed)


def scores(asked: argparse.Namespace, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Final policies of CQL on codes, exact and sampled."""
    arms: dict[str, dict[str, Any]] = {"exact": {"agent": "cql"}}
    for count in SAMPLES:
        arms[f"{count} sampled"] = {"agent": "sampled_cql", "agent.samples": count}
    rows: list[dict[str, Any]] = []
    earlier: list[tuple[Settings, Path]] = []
    for seed in range(asked.seeds):
        for name, flags in arms.items():
            settings = settings_of(asked, seed, **flags)
            out = OUT / f"{name.replace(' ', '-')}-seed{seed}"
            if not (out / "result.json").exists():
                shutil.rmtree(out, ignore_errors=True)
                share_codes(settings, out, earlier)
                train(settings, out, resume=out.exists(), reporter=Reporter(quiet=True))
            earlier.append((settings, out))
            row = row_of(out)
            rows.append(
                {"arm": name, "seed": seed, "measure": row["measure"], "final": row["final"]}
            )
            print(name, seed, round(row["final"], 1), flush=True)
            write(record | {"scores": rows})
    return rows


def gradients(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Noise and bias of the sampled gradients, in parts of the exact one's length."""
    found = []
    for agent in ("cql", "brac"):
        settings = settings_of(asked, 0, agent=agent)
        out = OUT / ("exact-seed0" if agent == "cql" else "brac-seed0")
        if not (out / "result.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            others = [(settings_of(asked, 0, agent="cql"), OUT / "exact-seed0")]
            share_codes(settings, out, others if agent == "brac" else [])
            train(settings, out, resume=out.exists(), reporter=Reporter(quiet=True))
        batch, learner, state = trained(out)
        for count in SAMPLES:
            measured = measure(learner, state, batch, count)
            found.append({"agent": agent, "samples": count, **measured})
            print(agent, count, measured, flush=True)
    return found


def trained(out: Path) -> tuple[CodedTransitions, Any, Any]:
    """A batch of the run's data, its agent, and its networks as they were trained."""
    from saqrl.policy.storage import load_policy

    settings = saved_settings(out)
    features = Features(load_data(settings), settings)
    quantizer = load_policy(out / "policy").controller.quantizer
    codes = encode_all(quantizer.codec, features.padded.action_batch())
    data = features.padded.coded(codes, quantizer.codec.num_codes, quantizer.prior)
    learner: Any = settings.agent
    last = None
    for interval in engine.intervals(
        learner, engine.Rows(data, features.count), jax.random.key(0), pauses=[1_000]
    ):
        last = interval
    assert last is not None
    rows = np.random.default_rng(0).choice(features.count, BATCH, replace=False)
    return jax.tree.map(lambda column: column[rows], data), learner, last.state


def measure(learner: Any, state: Any, batch: CodedTransitions, samples: int) -> dict[str, float]:
    penalty = cql_penalty if isinstance(learner, CQL) else brac_penalty
    model = state.critics.model if isinstance(learner, CQL) else state.policy.model

    def flat(key: Key[Array, ""] | None) -> Float[Array, " parameters"]:
        gradient = jax.grad(lambda m: penalty(learner, state, m, batch, key, samples))(model)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    exact = jax.jit(lambda: flat(None))()
    drawn = jax.lax.map(flat, jax.random.split(jax.random.key(1), DRAWS))
    mean = drawn.mean(0)
    size = jnp.linalg.norm(exact)
    noise = jnp.sqrt(((drawn - mean) ** 2).sum(-1).mean()) / size
    # The mean of the draws is off by their noise / sqrt(DRAWS) without any bias.
    bias = jnp.linalg.norm(mean - exact) / size
    return {
        "noise": round(float(noise), 3),
        "bias": round(float(bias), 3),
        "bias_of_none": round(float(noise) / DRAWS**0.5, 3),
    }


def cql_penalty(
    learner: Any, state: Any, critics: Any, batch: Any, key: Any, samples: int
) -> Float[Array, ""]:
    q = critics(batch.observations)
    if key is None:
        return learner.gaps(q, batch.codes, None).mean()
    return sampled_gaps(q, batch.codes, key, samples=samples).mean()


def brac_penalty(
    learner: Any, state: Any, policy: Any, batch: Any, key: Any, samples: int
) -> Float[Array, ""]:
    """Alpha KL(pi || pi_b) - E_pi Q, or what has its score-function estimate as its gradient."""
    log_policy = jax.nn.log_softmax(policy(batch.observations))
    q = state.critics.model.pessimistic(batch.observations)
    prior = jax.nn.log_softmax(jnp.maximum(batch.log_prior, learner.prior_floor))
    cost = learner.alpha * (log_policy - prior) - q
    if key is None:
        return jax.vmap(operators.expectation)(log_policy, cost).mean()
    drawn = jax.random.categorical(key, log_policy, axis=-1, shape=(samples, len(q))).T
    costs = jax.lax.stop_gradient(jnp.take_along_axis(cost, drawn, axis=-1))
    return (jnp.take_along_axis(log_policy, drawn, axis=-1) * costs).mean()


if __name__ == "__main__":
    main()
