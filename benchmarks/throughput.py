"""Steps a second of every quantizer and agent, beside what the machine can multiply.

    python benchmarks/throughput.py                     # one core and two, both widths
    python benchmarks/throughput.py --only cql --widths 512 --rounds 3

Each line is measured in a process of its own that is bound to its cores. In it our engine, a
one-step-at-a-time stand-in and plain float32 matrix products take turns, so that what else the
machine does falls on all three alike; ratios are taken within a round, and medians over rounds.

The stand-in does what published code of this method does: the host draws every batch and sends
it, codes and prior log-probabilities of the batch are computed again in every step, each step is
a dispatch of its own, and the host waits for results only now and then. Its networks, batch and
update are ours. Beside both stands our engine with products in bfloat16.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

OBSERVATION, ACTION, BATCH, CODES, ROWS = 39, 28, 256, 64, 20_000
RESULTS = Path(__file__).parent / "results" / "throughput.json"
MATRIX = 1024
# Steps of the stand-in between two waits for its results.
DISPATCHED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--cores", nargs="+", default=["0", "0,1"], help="as taskset -c reads them")
    parser.add_argument("--only", nargs="+", help="names of quantizers and agents")
    parser.add_argument("--preset", default="paper", help="whose hyperparameters")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(*asked.child, asked)))
        return
    lines = []
    for kind, name in algorithms():
        if asked.only and name not in asked.only:
            continue
        for width in asked.widths:
            for cores in asked.cores:
                line = in_processes(kind, name, width, cores, asked)
                lines.append(line)
                print(text(line), flush=True)
    record = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "versions": versions(),
        "sizes": {"observation": OBSERVATION, "action": ACTION, "batch": BATCH, "codes": CODES},
        "preset": asked.preset,
        "lines": lines,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=2) + "\n")


def algorithms() -> list[tuple[str, str]]:
    from saqrl.agents import AGENTS
    from saqrl.quantizers import QUANTIZERS

    return [*(("quantizer", name) for name in QUANTIZERS), *(("agent", name) for name in AGENTS)]


def in_processes(kind: str, name: str, width: int, cores: str, asked: Any) -> dict[str, Any]:
    """One line: a process that compiles into an empty cache and measures, one that reads it."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

        def child(rounds: int) -> dict[str, Any]:
            options = {"rounds": rounds, "seconds": asked.seconds, "widths": width}
            options["preset"] = asked.preset
            words = [word for k, v in options.items() for word in (f"--{k}", str(v))]
            done = subprocess.run(
                ["taskset", "-c", cores, sys.executable, __file__, "--child", kind, name, *words],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{name} {width} on cores {cores}:\n{done.stderr}")
            return dict(json.loads(done.stdout.splitlines()[-1]))

        line = child(asked.rounds)
        line["compile_cached_s"] = child(0)["compile_s"]
    return {"kind": kind, "name": name, "width": width, "cores": len(cores.split(","))} | line


def measure(kind: str, name: str, asked: Any) -> dict[str, Any]:
    """What one process measures; without rounds only how long compiling takes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from saqrl.training import engine

    algorithm, data, reference = build(kind, name, asked.widths[0], asked.preset)
    key = jax.random.key(0)
    began = time.perf_counter()
    state = engine.begin(algorithm, key, data)
    jax.block_until_ready(state)
    training = engine.intervals(algorithm, data, key, pauses=[1], state=state)
    next(training)  # the first interval compiles; its one step hardly counts
    line: dict[str, Any] = {"compile_s": round(time.perf_counter() - began, 2)}
    if not asked.rounds:
        return line
    skeleton = jax.eval_shape(lambda: engine.begin(algorithm, key, data))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype), data)
    flops = matmul_flops(jax.make_jaxpr(algorithm.update)(skeleton, batch, key).jaxpr)

    per_step = rate_of(lambda: next(training), 1, 0.5)
    interval = max(1, round(asked.seconds / 4 * per_step))
    ours = engine.intervals(algorithm, data, key, pauses=[interval])
    next(ours)
    rounded = replace(algorithm, precision="bfloat16")
    coarse = engine.intervals(rounded, data, key, pauses=[interval])
    next(coarse)
    reference()
    product = jax.jit(jnp.matmul)
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(MATRIX, MATRIX)), jnp.float32)
    jax.block_until_ready(product(matrix, matrix))
    rounds = []
    for _ in range(asked.rounds):
        steps = rate_of(lambda: next(ours), interval, asked.seconds)
        one_by_one = rate_of(reference, DISPATCHED, asked.seconds)
        halved = rate_of(lambda: next(coarse), interval, asked.seconds)
        products = rate_of(
            lambda: jax.block_until_ready(product(matrix, matrix)), 1, asked.seconds / 4
        )
        rounds.append((steps, one_by_one, products * 2 * MATRIX**3, halved))
    return line | {
        "flops_per_step": flops,
        "steps_per_s": median(steps for steps, *_ in rounds),
        "one_by_one_steps_per_s": median(one for _, one, *_ in rounds),
        "ratio": median(steps / one for steps, one, *_ in rounds),
        "bfloat16_steps_per_s": median(halved for *_, halved in rounds),
        "bfloat16_ratio": median(halved / one for _, one, _, halved in rounds),
        "matmul_gflop_per_s": median(peak for _, _, peak, _ in rounds) / 1e9,
        "fraction_of_matmul_rate": median(steps * flops / peak for steps, _, peak, _ in rounds),
        "host_ms_per_interval": host_milliseconds(kind, name, asked.preset),
        "rounds": rounds,
    }


def build(kind: str, name: str, width: int, preset: str) -> tuple[Any, Any, Callable[[], None]]:
    """(algorithm, its data on the device, DISPATCHED steps of the stand-in) on random data."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from saqrl.agents import CodedTransitions
    from saqrl.quantizers import ActionBatch
    from saqrl.training import engine
    from saqrl.training.presets import build_settings

    generator = np.random.default_rng(0)
    observations, following = generator.normal(size=(2, ROWS, OBSERVATION)).astype(np.float32)
    actions = np.tanh(generator.normal(size=(ROWS, ACTION))).astype(np.float32)
    rewards = generator.normal(size=ROWS).astype(np.float32)
    discounts = np.full(ROWS, 0.99, np.float32)

    def sized(algorithm: Any, hidden: tuple[int, ...]) -> Any:
        return replace(algorithm, hidden=hidden, batch_size=BATCH, steps=10**8)

    agent = name if kind == "agent" else "cql"
    quantizer = name if kind == "quantizer" else "vqvae"
    settings = build_settings(preset, agent=agent, quantizer=quantizer)
    if "codes" in {field.name for field in fields(settings.quantizer)}:
        settings = replace(settings, quantizer=replace(settings.quantizer, codes=CODES))
    hidden = (width, width)
    key = jax.random.key(0)
    table = ActionBatch(jnp.asarray(observations), jnp.asarray(actions))
    vqvae = sized(settings.quantizer, hidden)
    coder_state = engine.begin(vqvae, key, table)
    if kind == "quantizer":
        update = jax.jit(vqvae.update, donate_argnums=0)
        states = [engine.begin(vqvae, key, table)]

        def one_step() -> None:
            rows = generator.integers(0, ROWS, BATCH)
            batch = ActionBatch(jnp.asarray(observations[rows]), jnp.asarray(actions[rows]))
            states[0], _ = update(states[0], batch, key)

        return vqvae, table, dispatched(one_step, states)

    learner = sized(settings.agent, hidden)
    prior_trainer = sized(settings.prior, hidden)
    codec = vqvae.codec(coder_state)
    count = codec.num_codes
    codes = jnp.asarray(generator.integers(0, count, ROWS), jnp.int32)

    def coded(rows: Any, codes: Any, log_prior: Any, next_log_prior: Any) -> CodedTransitions:
        columns = (observations[rows], rewards[rows], following[rows], discounts[rows])
        seen, reward, later, discount = map(jnp.asarray, columns)
        return CodedTransitions(
            seen, codes, reward, later, discount, log_prior, next_log_prior, count
        )

    everything = np.arange(ROWS)
    unknown = coded(everything, codes, None, None)
    behaves = name == "bc"
    prior = prior_trainer.prior(engine.begin(prior_trainer, key, unknown))
    log_prior = jax.nn.log_softmax(prior(jnp.asarray(observations)))
    next_log_prior = jax.nn.log_softmax(prior(jnp.asarray(following)))
    data = unknown if behaves else coded(everything, codes, log_prior, next_log_prior)
    # Free functions that take modules: the networks are arguments, not constants of the program.
    encode = jax.jit(lambda codec, seen, acted: jax.vmap(codec.encode)(seen, acted))
    look_up = jax.jit(lambda prior, seen: jax.nn.log_softmax(prior(seen)))
    update = jax.jit(learner.update, donate_argnums=0)
    states = [engine.begin(learner, key, data)]

    def one_step() -> None:
        rows = generator.integers(0, ROWS, BATCH)
        batch = coded(rows, None, None, None)
        found = encode(codec, batch.observations, jnp.asarray(actions[rows]))
        priors = (None, None)
        if not behaves:
            seen, later = batch.observations, batch.next_observations
            priors = look_up(prior, seen), look_up(prior, later)
        batch = CodedTransitions(
            batch.observations, found, batch.rewards, batch.next_observations, batch.discounts,
            *priors, count,
        )  # fmt: skip
        states[0], _ = update(states[0], batch, key)

    return learner, data, dispatched(one_step, states)


def dispatched(one_step: Callable[[], None], states: list[Any]) -> Callable[[], None]:
    """DISPATCHED steps, then a wait: in between the host may run ahead of the device."""
    import jax

    def some_steps() -> None:
        for _ in range(DISPATCHED):
            one_step()
        jax.block_until_ready(states[0])

    return some_steps


def host_milliseconds(kind: str, name: str, preset: str) -> float:
    """Of an interval, from above: one step of the same algorithm with networks of width 8."""
    import jax

    from saqrl.training import engine

    algorithm, data, _ = build(kind, name, 8, preset)
    training = engine.intervals(algorithm, data, jax.random.key(0), pauses=[1])
    next(training)
    took = []
    for _ in range(100):
        began = time.perf_counter()
        next(training)
        took.append(time.perf_counter() - began)
    return 1e3 * median(took)


def matmul_flops(jaxpr: Any) -> int:
    """Multiplications and additions of all matrix products of a program, from their shapes."""
    total = 0
    for equation in jaxpr.eqns:
        inner = 0
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    inner += matmul_flops(part)
        total += inner * equation.params.get("length", 1)
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            size = 2 * equation.outvars[0].aval.size
            for axis in summed:
                size *= left[axis]
            total += size
    return total


def rate_of(work: Callable[[], Any], amount: int, seconds: float) -> float:
    """Units a second, for about so many seconds."""
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds or not done:
        work()
        done += amount
    return done / elapsed if elapsed else 0.0


def text(line: dict[str, Any]) -> str:
    return (
        f"{line['name']:<20} {line['width']:>4}  {line['cores']} cores  "
        f"{line['steps_per_s']:>7.1f} steps/s  {line['ratio']:>5.2f} x one by one  "
        f"bfloat16 {line['bfloat16_steps_per_s']:>7.1f}, {line['bfloat16_ratio']:.2f} x  "
        f"{100 * line['fraction_of_matmul_rate']:>4.0f} % of {line['matmul_gflop_per_s']:.0f} "
        f"GFLOP/s  compile {line['compile_s']:.1f} s, cached {line['compile_cached_s']:.1f} s  "
        f"host {line['host_ms_per_interval']:.2f} ms"
    )


def machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {"processor": names[0], "cores": len(names), "load": os.getloadavg()}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version()} | {
        name: version(name) for name in ("saqrl", "jax", "jaxlib", "optax", "equinox", "numpy")
    }


if __name__ == "__main__":
    main()
