"""What the paper claims or names as a limit (arXiv 2310.11731), one question a study.

    python -m benchmarks.claims [--only STUDY] [--method TEXT] [--seeds 1] [--list] [--table]

codes       hopper-expert: does any of 16 to 128 codes do, and acted how? (Paper: 103 to 112.)
continuous  CQL without codes on the same log, as many steps with the prior's: experiment 2.
width       how do error and score change with the width of what one code stands for?
few         how does the score grow with the number of demonstrations?
state       what is the state worth in the encoder, the decoder, both? (The paper: 74.5 with both,
            7.2 with neither, on hopper's mixed data.) Few steps on the door, 100,000 on the hopper.
quantizers  does an agent gain from the quantizer with the least error?

Final policies, 50 episodes; within a study all else is alike. `held_out_skill` is the energy score
of the policy's actions against the recorded ones of held-out episodes, 1 perfect, 0 as good as one
constant action. benchmarks/results/claims.jsonl gets a line for each cell as it finishes; one that
is there is not run again. The cheap studies come first, one seed of all before the next seed.
"""

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

import saqrl
from benchmarks import logs
from benchmarks.logs import d4rl
from benchmarks.rows import Flags, Row, arguments, scored, show_or_fill, with_table
from saqrl.quantizers import ActionBatch, autoencoder
from saqrl.quantizers import codebook as books
from saqrl.quantizers.vqvae import VQVAE, State, VQCodec
from saqrl.registry import QUANTIZERS
from saqrl.training.run_folder import read_result

RESULTS = Path(__file__).parent / "results" / "claims.jsonl"
OUT = Path("runs/claims")
STEPS = {"recipe": "plain", "steps": 5_000, "quantizer_steps": 6_000, "prior.steps": 2_500}
LONG = {
    "feature_deviation": 1.0,
    "steps": 100_000,
    "quantizer_steps": 20_000,
    "prior.steps": 10_000,
}


@dataclass(frozen=True)
class SeenApart(VQVAE):
    """The state may be in the encoder, the decoder, both or neither."""

    encoder_scale: float = 1.0
    """As state_scale, which is the decoder's alone here."""

    def codec(self, state: State) -> VQCodec:
        return ApartCodec(**vars(super().codec(state)), encoder_scale=self.encoder_scale)

    def _encode(self, encoder: Any, batch: ActionBatch) -> Float[Array, "batch size"]:
        seen = autoencoder.join(batch.observations, batch.actions, scale=self.encoder_scale)
        return books.bounded(encoder(seen))  # the default of `encodings`, which nothing changes


class ApartCodec(VQCodec):
    encoder_scale: float = eqx.field(static=True, default=1.0)

    def encoding(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Float[Array, " size"]:
        wide = self.binary.widen(action)
        seen = autoencoder.join(observation, wide, scale=self.encoder_scale)
        return books.bounded(self.encoder(seen))

    def nearest(
        self, observation: Float[Array, " features"], action: Float[Array, " act"]
    ) -> Int[Array, ""]:
        return books.nearest_code(self.encoding(observation, action), self.codes, self.live)


def _d4rl(name: str, env: str, **flags: Any) -> Flags:
    return {"dataset": d4rl(name), "env": env, **flags}


HOPPER, MIXED = (_d4rl(f"hopper-{kind}", "Hopper-v4") for kind in ("expert", "mixed"))
MEDIUM = _d4rl("hopper-medium", "Hopper-v4", feature_deviation=1.0)
DOOR = _d4rl("door-expert", "AdroitHandDoor-v1", data_episodes=25)
PEN = _d4rl("pen-expert", "AdroitHandPen-v1", data_episodes=25)
PUSHT = {
    "dataset": logs.PUSHT,
    "env": "gym_pusht/PushT-v0",
    "angles": (4,),
    "feature_deviation": 0.3,
}
BC, CONTINUOUS = {"agent": "bc"}, {"agent": "bc", "actions": "continuous"}
FEW = {**BC, "quantizer.codes": 16, "quantizer.state_scale": 0.3}
COMPARED = tuple(QUANTIZERS)  # before this file registers its own
SEEN = {"both": (1.0, 1.0), "encoder": (1.0, 0.0), "decoder": (0.0, 1.0), "neither": (0.0, 0.0)}


def studies() -> Iterator[tuple[str, str, Flags]]:
    """(study, method, flags) of every cell; cheap studies first."""
    for codes in (16, 32, 64, 128):
        for act in ("greedy", "mean"):  # the mean of the decoded codes averages noise away
            own = {"agent": "cql", "act": act, "quantizer.codes": codes}
            yield "codes", f"saq-cql {codes} {act}", {**HOPPER, **own}
    for samples in (3, 10):  # drawn in each state at each step, from each of three distributions
        own = {"agent": "cql", "actions": "continuous", "agent.samples": samples, "steps": 7_500}
        yield "continuous", f"cql {samples} samples", {**HOPPER, **own}
    for place, data, widest in (("pusht", PUSHT, 32), ("door", DOOR, 8)):
        for chunk in (1, 2, 4, 8, 16, 32):
            if chunk <= widest:
                yield "width", f"{place} chunk {chunk}", {**data, **BC, "chunk": chunk}
    for count in (5, 10, 25, 50, 100):
        for kind, flags in (("saq-bc", FEW), ("bc", CONTINUOUS)):
            yield "few", f"door {count} {kind}", {**DOOR, "data_episodes": count, **flags}
    for place, data in (("door", DOOR), ("hopper-mixed", {**MIXED, **LONG})):
        for seen, (encoder, decoder) in SEEN.items():
            scales = {"quantizer.encoder_scale": encoder, "quantizer.state_scale": decoder}
            own = {"agent": "cql", "quantizer": "seen-apart", **scales}
            yield "state", f"{place} {seen}", {**data, **own}
    for place, data in (("pusht", PUSHT), ("door", DOOR), ("pen", PEN), ("hopper", MEDIUM)):
        for quantizer in COMPARED:
            if quantizer != "bins" or data not in (DOOR, PEN):  # bins are for few dimensions
                for agent in ("bc", "iql"):
                    own = {"agent": agent, "quantizer": quantizer}
                    yield "quantizers", f"{place} {quantizer} {agent}", {**data, **own}


def cells(asked: Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """One seed of every method and study before the next seed."""
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for study, method, flags in studies():
            if asked.only in study and asked.method in method:
                key = {"study": study, "method": method, "seed": seed}
                said = {**STEPS, **flags, "seed": seed, "eval_episodes": 50}
                out = OUT / f"{study}-{method.replace(' ', '-')}-seed{seed}"
                yield key, partial(measured, said, out)


def measured(said: Flags, out: Path) -> Row:
    """Train one cell; its score, its skill on held-out episodes, its quantizer's error."""
    shutil.rmtree(out, ignore_errors=True)
    saqrl.fit(out=out, quiet=True, **said)
    result = read_result(out)
    report: Mapping[str, Any] = result["quantizer"] or {}
    jax.clear_caches()  # type: ignore[no-untyped-call]
    return scored(out) | {
        "held_out_skill": result["held_out_skill"],
        "error_per_deviation": report.get("error_per_deviation"),
        "seconds": result["seconds"],
    }


def table(rows: list[Row]) -> str:
    """Markdown: of every cell all seeds' scores, the mean skill and error."""
    lines = ["| study | method | seeds | skill | error |", "|---|---|---|---|---|"]
    for study, method, _ in studies():
        own = [row for row in rows if (row["study"], row["method"]) == (study, method)]
        if own:
            means = []
            for name in ("held_out_skill", "error_per_deviation"):
                found = [row[name] for row in own if row.get(name) is not None]
                means.append(f"{sum(found) / len(found):.2f}" if found else "")
            scores = ", ".join(f"{row['final']:.0f}" for row in own)
            lines.append(f"| {study} | {method} | {scores} | {means[0]} | {means[1]} |")
    return "\n".join(lines)


def main() -> None:
    asked = with_table(arguments(__doc__, seeds=1, only="studies")).parse_args()
    saqrl.register("quantizer", "seen-apart", SeenApart)
    show_or_fill(asked, RESULTS, cells, table)


if __name__ == "__main__":
    main()
