"""The program of SAQ's authors beside ours: steps a second, and score after equal steps.

    python benchmarks/authors_code.py speed --authors DIR --python PYTHON
    python benchmarks/authors_code.py score --authors DIR --python PYTHON [--seeds 3]

DIR is a clone of github jianlanluo/SAQ, which is not part of this project; PYTHON has jax, flax,
optax, distrax, ml_collections and cloudpickle, the same versions of JAX and NumPy as ours. Their
files run as they are. What they import and do not need here (d4rl, gym, robomimic, wandb) is
replaced by empty modules, so that no environment and no account is needed.

Both get the same rows of one D4RL file, batch, networks, codes, precision (float32) and optimisers.
A step is the same work on both sides:

- quantizer: one update of encoder, decoder, codebook and behaviour prior on one batch each. Theirs
  trains the four together; ours the prior after the quantizer, so one step of ours is a step of
  each.
- SAQ-CQL: one update of the Q network. Theirs computes codes and prior of the batch in every step,
  and the decoded action for a metric; ours computed codes and prior once, before (`once_s`).

"as trained" is how each program trains: theirs draws a batch on the host and dispatches a step,
ours runs intervals of steps on the device. "step alone" dispatches the compiled step again and
again on one batch that lies on the device, without drawing.

One process a side waits for its turns, so that what else the machine does falls on both alike;
compilation is outside of the turns. Ratios are taken within a turn, medians over turns. On a busy
machine the clock of the wall also counts what others take: steps per second of processor time
("cpu", of all threads) stand beside. On one core of an idle machine the two are equal.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from throughput import machine, matmul_flops

RESULTS = Path(__file__).parent / "results" / "authors_code.json"
OUT = Path("runs/authors-code")
BATCH, CODES, CODE_SIZE, ALPHA, WEIGHT_DECAY = 256, 64, 128, 5.0, 1e-3
# Of their scripts for D4RL (`clip_action` in vqn/vqn_main.py).
CLIPPED = 0.999
# Steps between two looks at the clock.
CHUNK = 50
CASES = (
    "quantizer, as trained",
    "quantizer, step alone",
    "SAQ-CQL, as trained",
    "SAQ-CQL, step alone",
)
# Imported by their files, used by nothing that runs here.
ABSENT = (
    "d4rl",
    "gym",
    "gym.utils",
    "robomimic",
    "robomimic.utils",
    "robomimic.utils.file_utils",
    "robomimic.utils.env_utils",
    "robomimic.utils.obs_utils",
)
Steps = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["speed", "score", "turns", "train"])
    parser.add_argument("--authors", type=Path, required=True, help="clone of jianlanluo/SAQ")
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs theirs")
    parser.add_argument(
        "--data",
        default=os.environ.get("SAQRL_DATA", "../shared/data"),
        help="folder of the data files",
    )
    parser.add_argument("--file", default="hopper-medium", help="of D4RL, in its folder d4rl")
    parser.add_argument("--env", default="Hopper-v4")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[512, 256], help="a score takes the first"
    )
    parser.add_argument("--cores", nargs="+", default=["0", "0,1"], help="as taskset -c reads them")
    parser.add_argument("--steps", type=int, default=10_000, help="of quantizer, prior and agent")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part == "turns":
        take_turns(asked)
    elif asked.part == "train":
        train_theirs(asked)
    else:
        with tempfile.TemporaryDirectory() as folder:
            asked.rows = Path(folder) / "rows.npz"
            np.savez(asked.rows, **rows_of_file(asked))
            {"speed": measure_speed, "score": measure_scores}[asked.part](asked)


def write(part: str, asked: argparse.Namespace, found: Any) -> None:
    """Replace one part of the results, and leave the other as it is."""
    from saqrl.training.versions import versions

    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    own = vars(asked)
    flags = {"speed": ("turns", "seconds"), "score": ("steps", "seeds", "episodes")}[part]
    said = " ".join(f"--{name} {own[name]}" for name in flags)
    said += " --widths " + " ".join(map(str, asked.widths))
    record[part] = {
        "command": f"python benchmarks/authors_code.py {part} --authors DIR --python PYTHON {said}",
        "machine": machine(),
        "versions": versions(asked.env if part == "score" else None),
        "authors": authors(asked),
        "data": f"{asked.file}.hdf5",
        "sizes": {"batch": BATCH, "codes": CODES, "code_size": CODE_SIZE, "precision": "float32"},
        **found,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def authors(asked: argparse.Namespace) -> dict[str, Any]:
    """Which program of theirs, and with what it ran."""
    names = ("jax", "jaxlib", "flax", "optax", "distrax", "ml_collections", "numpy")
    code = (
        "import json, platform; from importlib.metadata import version; "
        f"print(json.dumps({{'python': platform.python_version()}} | "
        f"{{name: version(name) for name in {names}}}))"
    )
    git = ["git", "-C", str(asked.authors)]
    commit, changed = (
        subprocess.run([*git, *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (("rev-parse", "HEAD"), ("diff", "HEAD", "--stat", "--", "vqn"))
    )
    return {
        "repository": "github jianlanluo/SAQ",
        "commit": commit,
        "changes": changed,
        "absent_modules": [*ABSENT, *STANDING_IN],
        "versions": json.loads(subprocess.check_output([asked.python, "-c", code], text=True)),
    }


def rows_of_file(asked: argparse.Namespace) -> dict[str, np.ndarray]:
    """Transitions by the names of D4RL's `qlearning_dataset`, from the file as we read it."""
    from saqrl.training.data import load_data

    log = load_data(our_settings(asked, width=512, seed=0))
    return {
        "observations": log.observations,
        "actions": log.actions,
        "next_observations": log.next_observations,
        "rewards": log.rewards,
        "dones": log.terminated.astype(np.float32),
    }


def our_settings(asked: argparse.Namespace, *, width: int, seed: int) -> Any:
    """The preset that follows their files, on all episodes and with networks of that width."""
    from saqrl.training.flags import changed
    from saqrl.training.presets import build_settings

    sizes = {f"{stage}.hidden": (width, width) for stage in ("quantizer", "prior", "agent")}
    said = {"quantizer.codes": CODES, "quantizer.code_size": CODE_SIZE, "agent.alpha": ALPHA}
    said |= {"agent.weight_decay": WEIGHT_DECAY}
    return changed(build_settings("paper", agent="cql"), common(asked, seed) | sizes | said)


def common(asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    return {
        "dataset": f"d4rl:{asked.data}/d4rl/{asked.file}.hdf5",
        "env": asked.env,
        "held_out": 0.0,
        "seed": seed,
        "steps": asked.steps,
        "quantizer_steps": asked.steps,
        "prior.steps": asked.steps,
        "eval_episodes": asked.episodes,
    }


# Speed


def measure_speed(asked: argparse.Namespace) -> None:
    lines = []
    for width in asked.widths:
        for cores in asked.cores:
            lines.append(compare(width, cores, asked))
            write("speed", asked, {"lines": lines})


@contextmanager
def sides(width: int, cores: str, asked: argparse.Namespace) -> Iterator[Callable[[str, str], Any]]:
    """A process a side on the same cores; `ask(side, case)` has one of them take a turn."""
    children = {}
    for side, python in (("theirs", asked.python), ("ours", sys.executable)):
        words = ["--authors", str(asked.authors), "--rows", str(asked.rows), "--data", asked.data]
        words += ["--seconds", str(asked.seconds), "--widths", str(width), "--side", side]
        children[side] = subprocess.Popen(
            ["taskset", "-c", cores, python, __file__, "turns", *words],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(side: str, case: str) -> Any:
        child = children[side]
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(case + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    try:
        yield ask
    finally:
        for child in children.values():
            child.communicate()


def compare(width: int, cores: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Turns of both sides; steps a second, and ratios within the turns."""
    turns: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    with sides(width, cores, asked) as ask:
        for number in range(asked.turns):
            order = ("theirs", "ours") if number % 2 else ("ours", "theirs")
            for case in CASES:
                turns[case].append({side: ask(side, case) for side in order})
        flops = {side: ask(side, "flops") for side in ("theirs", "ours")}
        once = ask("ours", "once")
    line: dict[str, Any] = {"width": width, "cores": len(cores.split(",")), "once_s": once}
    for case, taken in turns.items():
        part = case.partition(",")[0]
        found = {clock: rates(taken, clock) for clock in ("wall", "cpu")}
        line[case] = {
            **found,
            "arithmetic_ratio": flops["theirs"][part] / flops["ours"][part],
            "flops": {side: flops[side][part] for side in flops},
            "turns": taken,
        }
        for clock, rate in found.items():
            print(
                f"{width} wide, {cores} cores  {case:<22} steps/s ({clock}) "
                f"theirs {rate['theirs']:>6.1f}  ours {rate['ours']:>6.1f}  "
                f"{rate['ratio']:>5.2f} x {rate['ratio_quartiles']}  "
                f"arithmetic {line[case]['arithmetic_ratio']:.2f} x",
                flush=True,
            )
    print(f"codes and prior of all rows: {once} s, once", flush=True)
    return line


def rates(turns: list[dict[str, Any]], clock: str) -> dict[str, Any]:
    """Steps a second by one of the clocks, medians; ratios within the turns."""
    theirs, ours = (np.array([turn[side][clock] for turn in turns]) for side in ("theirs", "ours"))
    ratios = ours / theirs
    return {
        "theirs": round(float(np.median(theirs)), 1),
        "ours": round(float(np.median(ours)), 1),
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_quartiles": [round(float(q), 2) for q in np.quantile(ratios, (0.25, 0.75))],
        "ratio_from_to": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
    }


def take_turns(asked: argparse.Namespace) -> None:
    """One process: for every case that comes in, its steps a second go out."""
    build = their_cases if asked.side == "theirs" else our_cases
    cases, told = build(asked, asked.widths[0])
    for some_steps in cases.values():
        some_steps()  # compiles
    for line in sys.stdin:
        case = line.strip()
        if case in told:
            print(json.dumps(told[case]()), flush=True)
            continue
        began, worked, done = time.perf_counter(), time.process_time(), 0
        while (elapsed := time.perf_counter() - began) < asked.seconds:
            cases[case]()
            done += CHUNK
        cpu = time.process_time() - worked
        print(json.dumps({"wall": done / elapsed, "cpu": done / cpu}), flush=True)


def our_cases(
    asked: argparse.Namespace, width: int
) -> tuple[dict[str, Steps], dict[str, Callable[[], Any]]]:
    import jax

    from saqrl.training import engine
    from saqrl.training.codes import encode_all
    from saqrl.training.data import load_data
    from saqrl.training.features import Features

    asked.steps = 10**8
    settings = our_settings(asked, width=width, seed=0)
    key = jax.random.key(0)
    features = Features(load_data(settings), settings)
    rows = features.padded
    coder, prior, learner = settings.quantizer, settings.prior, settings.agent
    table = rows.action_batch()
    codec = coder.codec(engine.begin(coder, key, table))
    codes = encode_all(codec, table)
    coded = rows.coded(codes, CODES, None)
    network = prior.prior(engine.begin(prior, key, coded))
    valued = rows.coded(codes, CODES, network)
    parts = {"coder": (coder, table), "prior": (prior, coded), "learner": (learner, valued)}

    def trained(*names: str) -> Steps:
        runs = [engine.intervals(*parts[name], key, pauses=[CHUNK]) for name in names]

        def some_steps() -> None:
            for run in runs:
                next(run)

        return some_steps

    def alone(*names: str) -> Steps:
        updates, states, batches = [], [], []
        for name in names:
            algorithm, data = parts[name]
            updates.append(jax.jit(algorithm.update, donate_argnums=0))
            states.append(engine.begin(algorithm, key, data))
            batches.append(jax.tree.map(lambda column: column[:BATCH], data))

        def some_steps() -> None:
            for _ in range(CHUNK):
                for place, (update, batch) in enumerate(zip(updates, batches, strict=True)):
                    states[place], _ = update(states[place], batch, key)
            jax.block_until_ready(states)

        return some_steps

    def flops() -> dict[str, int]:
        found = {}
        for name, (algorithm, data) in parts.items():
            batch = jax.tree.map(lambda column: column[:BATCH], data)
            state = engine.begin(algorithm, key, data)
            found[name] = matmul_flops(jax.make_jaxpr(algorithm.update)(state, batch, key).jaxpr)
        return {"quantizer": found["coder"] + found["prior"], "SAQ-CQL": found["learner"]}

    def once() -> dict[str, float]:
        """Seconds for what our agent's steps find in a table: codes, prior of both states."""
        began, worked = time.perf_counter(), time.process_time()
        jax.block_until_ready(rows.coded(encode_all(codec, table), CODES, network))
        return {
            "wall": round(time.perf_counter() - began, 2),
            "cpu": round(time.process_time() - worked, 2),
        }

    both = ("coder", "prior")
    steps = (trained(*both), alone(*both), trained("learner"), alone("learner"))
    return dict(zip(CASES, steps, strict=True)), {"flops": flops, "once": once}


# Their side. It runs in their interpreter, which does not have our package.


class Seeding(ModuleType):
    """What gym 0.23.1 has: a generator of NumPy and its seed."""

    @staticmethod
    def np_random(seed: int | None = None) -> tuple[np.random.Generator, int | None]:
        return np.random.default_rng(seed), seed


def named(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


# Modules of which a name is taken when their files are imported.
STANDING_IN: dict[str, Callable[[], ModuleType]] = {
    "gym.utils.seeding": lambda: Seeding("gym.utils.seeding"),
    "robomimic.utils.dataset": lambda: named("robomimic.utils.dataset", SequenceDataset=None),
    "robomimic.config": lambda: named("robomimic.config", config_factory=None),
    "wandb": lambda: named("wandb"),
}


def their_program(asked: argparse.Namespace, width: int, seed: int) -> tuple[Any, Any]:
    """(their VQN, their table of the rows), made as vqn/vqn_main.py makes them."""
    for name in ABSENT:
        sys.modules[name] = named(name)
    for name, make in STANDING_IN.items():
        sys.modules[name] = make()
    vars(sys.modules["gym"])["Env"] = object
    vars(sys.modules["gym.utils"])["seeding"] = sys.modules["gym.utils.seeding"]
    sys.path.insert(0, str(asked.authors))
    from vqn.robomimic_utils import make_dataset
    from vqn.utils import set_random_seed
    from vqn.vqn import VQN

    set_random_seed(seed)
    rows = dict(np.load(asked.rows))
    rows["actions"] = np.clip(rows["actions"], -CLIPPED, CLIPPED)
    sizes = rows["observations"].shape[1], rows["actions"].shape[1]
    program = VQN(
        {
            "codebook_size": CODES,
            "embedding_dim": CODE_SIZE,
            "vqvae_arch": f"{width}-{width}",
            "qf_arch": f"{width}-{width}",
            "cql_min_q_weight": ALPHA,
            "qf_weight_decay": WEIGHT_DECAY,
        },
        *sizes,
    )
    table = make_dataset(rows, asked.file)
    table.seed(seed)
    return program, table


def their_cases(
    asked: argparse.Namespace, width: int
) -> tuple[dict[str, Steps], dict[str, Callable[[], Any]]]:
    import jax

    program, table = their_program(asked, width, seed=0)
    key = jax.random.PRNGKey(0)
    batch = jax.device_put(dict(table.sample(BATCH)))
    quantizer, values = program._vqvae_train_state, program._qf_train_state

    def wait() -> None:
        jax.block_until_ready((program._vqvae_train_state.params, program._qf_train_state.params))

    def trained(train: Callable[[Any], Any]) -> Steps:
        def some_steps() -> None:
            for _ in range(CHUNK):
                train(table.sample(BATCH))
            wait()

        return some_steps

    def code(state: Any) -> Any:
        return program._vqvae_train_step(key, state, batch)

    def value(state: Any) -> Any:
        return program._dqn_train_step(key, state, quantizer, batch, False)

    def alone(step: Callable[[Any], Any], state: Any) -> Steps:
        def some_steps() -> None:
            nonlocal state
            for _ in range(CHUNK):
                state, _ = step(state)
            jax.block_until_ready(state.params)

        return some_steps

    def flops() -> dict[str, int]:
        return {
            "quantizer": matmul_flops(jax.make_jaxpr(code)(quantizer).jaxpr),
            "SAQ-CQL": matmul_flops(jax.make_jaxpr(value)(values).jaxpr),
        }

    steps = (
        trained(program.train_vqvae),
        alone(code, quantizer),
        trained(program.train_dqn),
        alone(value, values),
    )
    return dict(zip(CASES, steps, strict=True)), {"flops": flops}


def train_theirs(asked: argparse.Namespace) -> None:
    """Their two phases, and what of it acts, as arrays; a few of its own actions to check by."""
    import jax

    seed = asked.seeds
    program, table = their_program(asked, asked.widths[0], seed)
    began = time.perf_counter()
    for train in (program.train_vqvae, program.train_dqn):
        for _ in range(asked.steps):
            metrics = train(table.sample(BATCH))
        jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began
    seen = table.sample(BATCH)["observations"]
    acted = program.get_sampler_policy()(seen, deterministic=True)
    coded = program._vqvae_train_state.params["params"]
    layers = {
        "q": program._qf_train_state.params["params"],
        "decoder": coded["decoder"],
        "encoder": coded["encoder"],
    }
    arrays = {
        f"{network}.{place}.{what}": np.asarray(layer[what])
        for network, own in layers.items()
        for place, layer in enumerate(own[name] for name in sorted(own))
        for what in ("kernel", "bias")
    }
    weights, autoencoder = program._vqvae_train_state.params, program.vqvae
    states, actions = (table.dataset_dict[name] for name in ("observations", "actions"))
    codes = autoencoder.apply(weights, states, actions, method=autoencoder.encode)
    decoded = autoencoder.apply(weights, states, codes, method=autoencoder.decode)
    np.savez(
        asked.weights,
        **arrays,
        codebook=np.asarray(coded["vq"]["codebook"]),
        seen=seen,
        acted=jax.device_get(acted),
        codes_used=len(np.unique(np.asarray(codes))),
        error=np.square(decoded - actions).sum(-1).mean(),
        seconds=seconds,
    )


# Score


def measure_scores(asked: argparse.Namespace) -> None:
    """Final policies of both after as many steps, in the same episodes."""
    rows: list[dict[str, Any]] = []
    for arms in (("theirs", "ours"), (OWN,)):
        for seed, side in itertools.product(range(asked.seeds), arms):
            make = their_score if side == "theirs" else our_score
            row = {"side": side, "seed": seed, **make(asked, side, seed)}
            rows.append(row)
            print(row, flush=True)
            write("score", asked, {"rows": rows})


OWN = "ours, own settings"


def our_score(asked: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    from saqrl.training.flags import changed
    from saqrl.training.presets import build_settings
    from saqrl.training.progress import Reporter
    from saqrl.training.run_folder import read_history
    from saqrl.training.train import train

    settings = our_settings(asked, width=asked.widths[0], seed=seed)
    if side == OWN:
        settings = changed(build_settings(asked.file, agent="cql"), common(asked, seed))
    name = side.replace(", ", "-").replace(" ", "-")
    folder = OUT / f"{name}-{asked.widths[0]}-{asked.steps}-seed{seed}"
    summary = train(settings, folder, resume=folder.exists(), reporter=Reporter(quiet=True))
    coder = [r for r in read_history(folder, "metrics") if r["stage"] == "quantizer"][-1]
    return {
        "score": summary["normalized_score"],
        "return_mean": summary["return_mean"],
        "seconds": summary["seconds"],
        "codes_used": summary["quantizer"]["codes_used"],
        "reconstruction": coder["reconstruction"],
    }


class TheirPolicy:
    """Their weights, played by their rule: the decoded argmax of Q over all codes."""

    history, action_horizon = 1, 1

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))
        self.window_size = self.arrays["q.0.kernel"].shape[0]

    def network(self, name: str, signal: np.ndarray) -> np.ndarray:
        last = 2
        for place in range(last + 1):
            kernel, bias = (self.arrays[f"{name}.{place}.{what}"] for what in ("kernel", "bias"))
            signal = signal @ kernel + bias
            signal = np.maximum(signal, 0) if place < last else signal
        return signal

    def actions(self, observations: np.ndarray) -> np.ndarray:
        codes = self.network("q", observations).argmax(-1)
        inputs = np.concatenate([observations, self.arrays["codebook"][codes]], -1)
        return self.network("decoder", inputs)

    def plan(self, observations: np.ndarray, keys: Any, *, act: str) -> np.ndarray:
        return self.actions(observations)[:, None]

    def check(self) -> None:
        """ValueError where it acts otherwise than their own policy in states of the data."""
        own = self.actions(self.arrays["seen"])
        # A tie of Q to rounding may fall the other way in a state or two.
        far = np.abs(own - self.arrays["acted"]).max(-1) > 1e-3
        if far.mean() > 0.02:
            raise ValueError(f"{far.sum()} of {len(far)} actions differ from their policy's")


def their_score(asked: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    from saqrl.datasets import EnvironmentSpec
    from saqrl.environments.scores import normalized_score
    from saqrl.training.evaluation import open_arena

    path = OUT / f"{side}-{asked.widths[0]}-{asked.steps}-seed{seed}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        words = ["--authors", str(asked.authors), "--rows", str(asked.rows)]
        words += ["--widths", str(asked.widths[0])]
        words += ["--steps", str(asked.steps), "--seeds", str(seed), "--weights", str(path)]
        subprocess.run(
            [asked.python, __file__, "train", *words],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            check=True,
        )
    policy: Any = TheirPolicy(path)
    policy.check()
    with open_arena(EnvironmentSpec(asked.env, {})) as arena:
        played = arena.play(policy, episodes=asked.episodes, act="greedy")
    mean = float(played.returns.mean())
    return {
        "score": normalized_score(asked.env, mean),
        "return_mean": mean,
        "seconds": float(policy.arrays["seconds"]),
        "codes_used": int(policy.arrays["codes_used"]),
        "reconstruction": float(policy.arrays["error"]),
    }


if __name__ == "__main__":
    main()
