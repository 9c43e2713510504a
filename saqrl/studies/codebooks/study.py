"""The quantization laboratory: quantizers and codebook sizes compared on held-out episodes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float32, Float64, Int, Key

from saqrl.datasets.errors import counted
from saqrl.quantizers import QUANTIZERS, ActionQuantizer
from saqrl.studies.codebooks.material import Material
from saqrl.studies.codebooks.noise import least_distortion
from saqrl.training import engine
from saqrl.training.codebook_health import (
    code_numbers,
    codebook_notes,
    has_plateaued,
    reconstruction_error,
)
from saqrl.training.codes import decode_all, encode_all
from saqrl.training.preparation import Prepared
from saqrl.training.presets import build_settings
from saqrl.training.progress import Reporter

# Steps between two looks at a training.
LOG_EVERY = 500


@dataclass(frozen=True, eq=False)
class Examination:
    """One trained quantizer: its numbers, and what pictures are made of."""

    record: Mapping[str, Any]
    hyperparameters: Any
    quantizer: ActionQuantizer
    codes: Int[np.ndarray, " n"]
    decoded: Float32[np.ndarray, "n chunk_act"]
    """The shown steps' actions through their codes."""


def examine_all(
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
    fitted = decode_all(codec, batch.observations, codes)
    record = {
        "quantizer": QUANTIZERS.name_of(quantizer),
        "codes": quantizer.codes,
        "steps": step,
        **measured,
        "training_error_per_deviation": _root_mean_square(
            errors_of_steps(material, material.training, fitted)
        ),
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
    sizes, rms = np.abs(errors), np.sqrt(np.square(errors).mean(0))
    of_steps = errors_of_steps(material, split, decoded)
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
        "error_per_deviation": _root_mean_square(of_steps),
        "error_per_deviation_p95": float(np.percentile(of_steps, 95)),
        "error_per_deviation_worst": float(of_steps.max()),
        **code_numbers(quantizer, data.observations, codes),
        **_noise_numbers(material, quantizer.num_codes, float(np.square(errors).sum(-1).mean())),
    }
    return numbers, codes, decoded


def errors_of_steps(
    material: Material, split: Prepared, decoded: Float32[ArrayLike, "n chunk_act"]
) -> Float64[np.ndarray, " n"]:
    """The error of every step of a split, as a share of the actions' deviation there."""
    errors = (np.asarray(decoded) - split.actions).astype(np.float64) * material.half_width
    return np.sqrt(np.square(errors).sum(-1)) / material.deviation(split)


def _root_mean_square(values: Float64[np.ndarray, " n"]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _noise_numbers(material: Material, num_codes: int, squared: float) -> dict[str, float | None]:
    """What of the squared error, summed over dimensions, the noise makes unavoidable."""
    variance = material.noise_variance
    if variance is None:
        return {"noise_floor_per_deviation": None, "noise_share": None}
    # What is to be small is the error in the environment's units, so these are filled.
    floor = float(least_distortion(variance, num_codes).sum())
    return {
        "noise_floor_per_deviation": float(np.sqrt(floor)) / material.deviation(material.shown),
        "noise_share": min(floor / max(squared, 1e-12), 1.0),
    }
