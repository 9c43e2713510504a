"""The quantization laboratory: quantizers and codebook sizes compared on held-out episodes."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Key

from saqrl.datasets import Transitions
from saqrl.datasets.audit.findings import ACTIONS_PER_CODE, audit
from saqrl.datasets.errors import counted, listing
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.split import split_episodes
from saqrl.quantizers import QUANTIZERS, ActionQuantizer
from saqrl.studies.codebooks.noise import NoiseEstimate, estimate_noise, least_distortion
from saqrl.training import engine
from saqrl.training.codebook_health import (
    code_numbers,
    codebook_notes,
    has_plateaued,
    reconstruction_error,
    total_variance,
)
from saqrl.training.codes import decode_all, encode_all
from saqrl.training.flags import changed
from saqrl.training.preparation import Prepared, fit_scaling, prepare
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter
from saqrl.training.settings import Settings

# Steps between two looks at a training.
LOG_EVERY = 500
# A doubling of the codes has to take off at least this share of the error to be worth it.
WORTHWHILE = 0.1
# Share of the codes that must be in use on held-out episodes.
LIVELY = 0.5
# Share of the episodes that errors are measured on, where the file has no split of its own.
HELD_OUT = 0.2
# Error over the deviation up to which codes are exact.
EXACT = 1e-6
# And above which codes as many as there are actions have not found them.
MISSED = 0.02
# A dimension is overlooked where its error is above this share of its own deviation and so many
# times that of all dimensions together.
OVERLOOKED, TIMES_OVERLOOKED = 0.5, 3
# Actions within less than this share of their range waste the rest of it.
NARROW = 0.5


@dataclass(frozen=True, eq=False)
class Material:
    """A dataset split by episode and prepared, with what is known about its noise."""

    settings: Settings
    data: Transitions
    scaling: ObservationScaling
    training: Prepared
    shown: Prepared
    """Held-out episodes, or the training ones where there is only one."""
    shown_transitions: Transitions
    held_out: bool
    noise: NoiseEstimate | None
    distinct: int
    """Different actions (chunks of them) among those trained on."""
    supported: int
    """Codes that `saqrl inspect` says the training episodes can fill at most."""

    @property
    def most_codes(self) -> int:
        """As many as there are actions to stand for; two where there is one, as no fewer can be."""
        return max(self.distinct, 2)

    @property
    def half_width(self) -> Float32[np.ndarray, " chunk_act"]:
        """Environment units per network unit, for every number of an action chunk."""
        return np.tile(self.data.action_range.half_width, self.settings.features.chunk)

    @property
    def measured_on(self) -> str:
        if self.held_out:
            own = " of the file's own split" if self.data.held_out is not None else ""
            return f"{self.shown_transitions.num_episodes} held-out episodes{own}"
        return "the training episode itself (one episode cannot be split)"


@dataclass(frozen=True, eq=False)
class Examination:
    """One trained quantizer: its numbers, and what pictures are made of."""

    record: Mapping[str, Any]
    hyperparameters: Any
    quantizer: ActionQuantizer
    codes: Int[np.ndarray, " n"]
    decoded: Float32[np.ndarray, "n chunk_act"]


def settings_of(preset: str = "default", **changes: Any) -> Settings:
    """The settings of a preset with the changes that are not None, and a fifth held out.

    Agents have no part in it: the networks' inputs, the chunks and the prior's training are what
    counts. ValueError where the preset is unknown or a change impossible.
    """
    settings = build_settings(preset, agent="bc", quantizer="vqvae")
    given = {name: value for name, value in changes.items() if value is not None}
    return changed(settings, {"held_out": HELD_OUT, "action_horizon": 1, **given})


def gather(data: Transitions, *, preset: str = "default", **changes: Any) -> Material:
    """Split, scale and chunk a dataset as a training run with these settings does.

    `changes` are fields of the settings. The file's own held-out episodes are measured on where it
    has some. Unlike a training run, two episodes are enough to hold one out: here the report is the
    point. ValueError where the preset is unknown, or the fraction or the chunk impossible.
    """
    settings = settings_of(preset, **changes)
    kept, left = data, data.held_out
    if left is None:
        kept, left = split_episodes(
            data, held_out_fraction=settings.data.held_out, seed=settings.seed
        )
    scaling = fit_scaling(data, settings)
    training = prepare(kept, settings, scaling, 1.0)
    shown = left or kept
    episodes = np.repeat(np.arange(kept.num_episodes), kept.episode_lengths)
    return Material(
        settings=settings,
        data=data,
        scaling=scaling,
        training=training,
        shown=prepare(shown, settings, scaling, 1.0),
        shown_transitions=shown,
        held_out=left is not None,
        noise=estimate_noise(training.features, training.actions, episodes, seed=settings.seed),
        distinct=len(np.unique(training.actions, axis=0)),
        supported=audit(kept).supported_codes,
    )


def fitting_sizes(material: Material, codes: Sequence[int]) -> tuple[list[int], str | None]:
    """(sizes in order, what to say of those that were too large).

    Where actions repeat, as many codes as there are different ones stand for all of them exactly:
    that many are tried in place of more.
    """
    sizes, most = sorted(set(codes)), material.most_codes
    larger = [size for size in sizes if size > most]
    if not larger or 2 * material.distinct > len(material.training.actions):
        return sizes, None
    tried = sorted({most, *(size for size in sizes if size <= most)})
    if material.distinct == 1:
        return tried, (
            "the actions never change: one code is enough, and 2, the fewest there may be, are "
            f"tried in place of {listing(larger)}"
        )
    return tried, (
        f"there are only {material.distinct} distinct actions to stand for, and {listing(larger)} "
        f"codes were asked for: {most} are tried in their place (--codes {most}; in a run "
        f"--quantizer.codes {most})"
    )


def make_quantizer(name: str, *, preset: str = "default", **values: Any) -> Any:
    """A quantizer as a preset has it, with the values that it knows and that are not None."""
    quantizer: Any = build_settings(preset, agent="bc", quantizer=name).quantizer
    known = {field.name for field in fields(quantizer)}
    given = {k: v for k, v in values.items() if k in known and v is not None}
    return replace(quantizer, **given)


def examine(
    material: Material,
    quantizer: Any,
    *,
    prior_steps: int,
    reporter: Reporter,
) -> Examination:
    """Train a quantizer and its prior, and measure both.

    ValueError where the quantizer cannot be for these actions or this many rows.
    """
    if quantizer.codes > material.most_codes:
        rows = len(material.training.actions)
        few = material.distinct < rows
        which = f"{counted(material.distinct, 'distinct action')} among the " if few else ""
        raise ValueError(
            f"{quantizer.codes} codes but only {which}{rows} transitions to train on: choose at "
            f"most {material.most_codes} codes"
        )
    name = f"{QUANTIZERS.name_of(quantizer)} {quantizer.codes}"
    key = jax.random.key(material.settings.seed)
    started = time.perf_counter()
    batch = material.training.action_batch()
    errors: list[tuple[int, float]] = []

    def learned(step: int, state: Any) -> bool:
        if not quantizer.patience or not material.held_out:
            return False
        errors.append((step, reconstruction_error(quantizer.codec(state), material.shown)))
        return has_plateaued(errors, patience=quantizer.patience)

    step, state = _train(quantizer, batch, jax.random.fold_in(key, 0), name, reporter, learned)
    codec = quantizer.codec(state)
    codes = encode_all(codec, batch)
    trained = time.perf_counter()
    prior = replace(material.settings.prior, steps=prior_steps)
    coded = material.training.coded(codes, codec.num_codes, None)
    prior_key = jax.random.fold_in(key, 1)
    _, prior_state = _train(prior, coded, prior_key, f"{name} prior", reporter)
    action_quantizer = ActionQuantizer(codec, prior.prior(prior_state))
    seconds = {"quantizer": trained - started, "prior": time.perf_counter() - trained}
    measured, shown_codes, decoded = measure(material, action_quantizer)
    record = {
        "quantizer": QUANTIZERS.name_of(quantizer),
        "codes": quantizer.codes,
        "steps": step,
        **measured,
        "training_error_per_deviation": _training_error(material, action_quantizer),
        "notes": codebook_notes(np.asarray(codes), codec.num_codes) if codec.num_codes > 2 else [],
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
    }
    return Examination(record, quantizer, action_quantizer, shown_codes, decoded)


def _train(
    algorithm: Any,
    data: Any,
    key: Key[Array, ""],
    name: str,
    reporter: Reporter,
    learned: Callable[[int, Any], bool] = lambda step, state: False,
) -> tuple[int, Any]:
    """(step, state) at the end of the steps, or of the interval after which it has `learned`."""
    step, state = 0, None
    with reporter.stage(name, algorithm.steps) as update:
        for step, state, metrics in engine.intervals(algorithm, data, key, pauses=[LOG_EVERY]):
            shown = next(name for name in ("reconstruction", "cross_entropy") if name in metrics)
            update(step, f"{shown} {metrics[shown]:.3g}")
            if learned(step, state):
                break
    return step, state


def measure(
    material: Material, quantizer: ActionQuantizer
) -> tuple[dict[str, Any], Int[np.ndarray, " n"], Float32[np.ndarray, "n chunk_act"]]:
    """(numbers, codes, decoded actions) on the shown split; errors in the environment's units.

    Per number of the (chunked) action: `rms`, `mean` (of absolute errors), `p95`, `worst`, and rms
    over the standard deviation (None where the action never changes). Over all of them together,
    `error_per_deviation`: root of summed squared error over summed variance, of all steps, and the
    same of single steps at the 95th percentile and at worst.
    """
    split = material.shown
    data = split.action_batch()
    codes = np.asarray(encode_all(quantizer.codec, data))
    decoded = np.asarray(decode_all(quantizer.codec, data.observations, codes))
    errors = (decoded - split.actions).astype(np.float64) * material.half_width
    deviation = split.actions.astype(np.float64).std(0) * material.half_width
    of_steps = np.sqrt(
        np.square(errors).sum(-1) / total_variance(split.actions * material.half_width)
    )
    sizes, rms = np.abs(errors), np.sqrt(np.square(errors).mean(0))
    numbers: dict[str, Any] = {
        "num_codes": quantizer.num_codes,
        "error": {
            "rms": rms.tolist(),
            "mean": sizes.mean(0).tolist(),
            "p95": np.percentile(sizes, 95, axis=0).tolist(),
            "worst": sizes.max(0).tolist(),
            "rms_per_deviation": [
                float(r / d) if d > 1e-9 else None for r, d in zip(rms, deviation, strict=True)
            ],
        },
        "error_per_deviation": float(np.sqrt(np.square(of_steps).mean())),
        "error_per_deviation_p95": float(np.percentile(of_steps, 95)),
        "error_per_deviation_worst": float(of_steps.max()),
        **code_numbers(quantizer, data.observations, codes),
        **_noise_numbers(material, quantizer.num_codes, float(np.square(errors).sum(-1).mean())),
    }
    return numbers, codes, decoded


def _noise_numbers(material: Material, num_codes: int, squared: float) -> dict[str, float | None]:
    """What of the squared error, summed over dimensions, the noise makes unavoidable."""
    if material.noise is None:
        return {"noise_floor_per_deviation": None, "noise_share": None}
    scale = np.square(material.half_width.astype(np.float64))
    # What is to be small is the error in the environment's units, so these are filled.
    floor = float(least_distortion(material.noise.variance * scale, num_codes).sum())
    return {
        "noise_floor_per_deviation": float(
            np.sqrt(floor / total_variance(material.shown.actions * material.half_width))
        ),
        "noise_share": min(floor / max(squared, 1e-12), 1.0),
    }


def _training_error(material: Material, quantizer: ActionQuantizer) -> float:
    """`error_per_deviation` on the training episodes: far below the other one, it overfits."""
    data = material.training.action_batch()
    codes = encode_all(quantizer.codec, data)
    decoded = np.asarray(decode_all(quantizer.codec, data.observations, codes))
    actions = material.training.actions * material.half_width
    squared = np.square(decoded * material.half_width - actions).sum(-1)
    return float(np.sqrt(squared.mean(dtype=np.float64) / total_variance(actions)))


def noise_per_deviation(material: Material) -> float | None:
    """The noise's standard deviation over the actions', all dimensions together."""
    if material.noise is None:
        return None
    scale = np.square(material.half_width.astype(np.float64))
    variance = total_variance(material.training.actions * material.half_width)
    return float(np.sqrt((material.noise.variance * scale).sum() / variance))


def suggest_codes(
    records: Sequence[Mapping[str, Any]], *, most: int | None = None
) -> tuple[int, str]:
    """(codes, reason) from the records of one quantizer at several sizes.

    The smallest size after which a doubling takes less than a tenth off the held-out error, or
    leaves half of the codes unused. `most` is how many codes the data could fill at all.
    """
    ordered = sorted(records, key=lambda record: record["num_codes"])
    for now, larger in itertools.pairwise(ordered):
        doublings = np.log2(larger["num_codes"] / now["num_codes"])
        if doublings == 0:
            continue
        before, after = now["error_per_deviation"], larger["error_per_deviation"]
        if before <= EXACT:
            return now["codes"], "its codes stand for the held-out actions exactly"
        gain = 1 - (after / before) ** (1 / doublings)
        if gain < WORTHWHILE:
            return now["codes"], (
                f"{larger['codes']} codes would take the held-out error from {before:.3f} to "
                f"{after:.3f} of the actions' deviation: {100 * gain:.0f} % less a doubling, "
                f"under the {100 * WORTHWHILE:.0f} % that a harder choice among codes is worth"
            )
        if larger["codes_used"] < LIVELY * larger["num_codes"]:
            return now["codes"], (
                f"of {larger['num_codes']} codes only {larger['codes_used']} are in use on "
                "held-out episodes"
            )
    last = ordered[-1]
    if last["error_per_deviation"] <= EXACT:
        return last["codes"], "its codes stand for the held-out actions exactly"
    if most is not None and last["codes"] >= most:
        reason = "there are no more distinct actions than that"
        if last["error_per_deviation"] > MISSED:
            reason += (
                f"; its codes miss them by {last['error_per_deviation']:.3f} of their deviation "
                "all the same, so try more --steps, another --seed or another quantizer"
            )
        return last["codes"], reason
    if len(ordered) == 1:
        return last["codes"], "the only size that was tried"
    return last["codes"], (
        f"the held-out error still falls at the largest size tried ({last['codes']}): try larger"
    )


def compare(
    material: Material,
    *,
    quantizers: Sequence[str],
    codes: Sequence[int],
    prior_steps: int,
    reporter: Reporter,
    preset: str = "default",
    **values: Any,
) -> tuple[list[Examination], list[dict[str, Any]]]:
    """(examinations, what was left out and why) of every quantizer at every size.

    `values` are fields of the quantizers, used in place of the preset's where one has them.
    ValueError where nothing at all could be examined.
    """
    done: list[Examination] = []
    left_out: list[dict[str, Any]] = []
    for name in quantizers:
        QUANTIZERS.load(name)  # a mistyped name ends the command, an impossible size does not
        for count in codes:
            try:
                quantizer = make_quantizer(name, preset=preset, codes=count, **values)
                examination = examine(
                    material, quantizer, prior_steps=prior_steps, reporter=reporter
                )
            except ValueError as error:
                left_out.append({"quantizer": name, "codes": count, "reason": str(error)})
                reporter.say(f"note: {name} with {count} codes left out: {error}")
                continue
            done.append(examination)
            for note in examination.record["notes"]:
                reporter.say(f"note: {name}: {note}")
    if not done:
        raise ValueError(left_out[0]["reason"] if left_out else "no quantizer and size to compare")
    return done, left_out


def summarize(
    material: Material,
    examinations: Sequence[Examination],
    left_out: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The whole comparison as JSON; `notes` were said before it, and more may follow them."""
    records = [examination.record for examination in examinations]
    names = list(dict.fromkeys(record["quantizer"] for record in records))
    suggestions, suggested = {}, []
    for name in names:
        own = [record for record in records if record["quantizer"] == name]
        count, reason = suggest_codes(own, most=material.most_codes)
        suggestions[name] = {"codes": count, "reason": reason}
        suggested.append(next(record for record in own if record["codes"] == count))
    noise = material.noise
    return {
        "measured_on": material.measured_on,
        "training_rows": len(material.training.actions),
        "distinct_actions": material.distinct,
        "supported_codes": material.supported,
        "shown_rows": len(material.shown.actions),
        "chunk": material.settings.features.chunk,
        "seed": material.settings.seed,
        "noise": None
        if noise is None
        else {
            "per_deviation": noise_per_deviation(material),
            "deviation": (np.sqrt(noise.variance) * material.half_width).tolist(),
            "neighbour_distance": noise.distance,
        },
        "results": records,
        "left_out": list(left_out),
        "suggestions": suggestions,
        "notes": [*notes, *_notes(material, suggested)],
    }


def _notes(material: Material, suggested: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is to be minded about the quantizers at their suggested sizes."""
    many = [r for r in suggested if material.supported < r["codes"] < material.most_codes]
    if many:
        names = listing(f"{r['quantizer']} {r['codes']}" for r in many)
        yield (
            f"the suggested {names} are more than the {material.supported} codes that saqrl "
            f"inspect calls supported by the episodes trained on ({ACTIONS_PER_CODE} actions each, "
            "those alike in a row counted once): an agent may not tell so many apart; try fewer as "
            "well, or record more"
        )
    width = material.data.actions.shape[1]
    found = {r["quantizer"]: overlooked(r, width) for r in suggested}
    if not any(found.values()):
        return
    dimensions = sorted(set().union(*found.values()))
    names = listing(name for name, columns in found.items() if columns)
    low, high = material.data.actions.min(0), material.data.actions.max(0)
    narrow = high - low < NARROW * 2 * material.data.action_range.half_width
    ends = [f"{d}: about {low[d]:.4g} to {high[d]:.4g}" for d in dimensions if narrow[d]]
    remedy = (
        "set action_low and action_high in the file to the data's own lowest and highest "
        f"({listing(ends)}); saqrl convert makes an npz, which has both, of any other format"
        if ends
        else "they fill their range, so only more codes or another quantizer bring them closer"
    )
    yield (
        f"the codes of {names} all but drop some action dimensions ({listing(dimensions)}), which "
        "vary too little for the error of all dimensions together to show it (the page has each "
        f"dimension's own): {remedy}"
    )


def overlooked(record: Mapping[str, Any], width: int) -> list[int]:
    """Action dimensions with a large error of their own beside a small one of all together."""
    least = max(OVERLOOKED, TIMES_OVERLOOKED * record["error_per_deviation"])
    own = record["error"]["rms_per_deviation"]  # a chunk holds every dimension several times
    return sorted({i % width for i, error in enumerate(own) if error and error > least})


def suggested(
    examinations: Sequence[Examination], summary: Mapping[str, Any]
) -> dict[str, Examination]:
    """Of every quantizer by name, the examination at its suggested size."""
    sizes = {name: suggestion["codes"] for name, suggestion in summary["suggestions"].items()}
    return {
        name: examination
        for examination in examinations
        if examination.record["codes"] == sizes[name := examination.record["quantizer"]]
    }


def best_suggested(examinations: Sequence[Examination], summary: Mapping[str, Any]) -> Examination:
    """Of the quantizers, each at its suggested size, the one with the smallest held-out error."""
    chosen = suggested(examinations, summary).values()
    return min(chosen, key=lambda examination: examination.record["error_per_deviation"])


def examine_beside(
    others: Mapping[str, Material], quantizer: Any, *, prior_steps: int, reporter: Reporter
) -> dict[str, tuple[Material, Examination]]:
    """Other datasets by SPEC, with the same hyperparameters learned on each.

    Fewer codes where there are not so many actions.
    """
    found = {}
    for spec, material in others.items():
        reporter.say(f"{spec}:")
        fitting = replace(quantizer, codes=min(quantizer.codes, material.most_codes))
        found[spec] = (
            material,
            examine(material, fitting, prior_steps=prior_steps, reporter=reporter),
        )
    return found


def errors_of_steps(material: Material, examination: Examination) -> Float32[np.ndarray, " n"]:
    """The error of every shown step, as a share of the actions' deviation there."""
    scale = material.half_width.astype(np.float64)
    variance = total_variance(material.shown.actions * scale)
    difference = (examination.decoded - material.shown.actions) * scale
    return np.sqrt(np.square(difference).sum(-1) / variance).astype(np.float32)
