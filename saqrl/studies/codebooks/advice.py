"""What follows from the numbers: how many codes to use, and notes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saqrl.datasets.errors import listing
from saqrl.studies.codebooks.material import Material
from saqrl.studies.codebooks.study import Examination

# A doubling of the codes has to take off at least this share of the error to be worth it.
WORTHWHILE = 0.1
# Share of the codes that must be in use on held-out episodes.
LIVELY = 0.5
# Error over the deviation up to which codes are exact.
EXACT = 1e-6
# And above which codes as many as there are actions have not found them.
MISSED = 0.02
# A dimension is overlooked where its error is above this share of its own deviation and so many
# times that of all dimensions together.
OVERLOOKED, TIMES_OVERLOOKED = 0.5, 3
# Actions within less than this share of their range waste the rest of it.
NARROW = 0.5


def summarize(
    material: Material,
    examinations: Sequence[Examination],
    left_out: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The whole comparison as JSON; `notes` were said before it, and more may follow them."""
    records = [examination.record for examination in examinations]
    suggestions = {}
    for name in dict.fromkeys(record["quantizer"] for record in records):
        own = [record for record in records if record["quantizer"] == name]
        codes, reason = suggest_codes(own, most=material.most_codes)
        suggestions[name] = {"codes": codes, "reason": reason}
    chosen = [r for r in records if r["codes"] == suggestions[r["quantizer"]]["codes"]]
    noise = None
    if material.noise is not None:
        noise = {
            "per_deviation": material.noise_per_deviation,
            "deviation": (np.sqrt(material.noise.variance) * material.half_width).tolist(),
            "neighbour_distance": material.noise.distance,
        }
    return {
        "measured_on": material.measured_on,
        "training_rows": len(material.training.actions),
        "distinct_actions": material.distinct,
        "supported_codes": material.supported,
        "shown_rows": len(material.shown.actions),
        "chunk": material.settings.features.chunk,
        "seed": material.settings.seed,
        "noise": noise,
        "results": records,
        "left_out": list(left_out),
        "suggestions": suggestions,
        "notes": [*notes, *_notes(material, chosen)],
    }


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
            return now["codes"], "its codes reproduce the held-out actions exactly"
        gain = 1 - (after / before) ** (1 / doublings)
        if gain < WORTHWHILE:
            return now["codes"], (
                f"{larger['codes']} codes would lower the held-out error from {before:.3f} to "
                f"{after:.3f} of the actions' deviation: {100 * gain:.0f} % per doubling, less "
                f"than the {100 * WORTHWHILE:.0f} % that justify a harder choice among codes"
            )
        if larger["codes_used"] < LIVELY * larger["num_codes"]:
            return now["codes"], (
                f"of {larger['num_codes']} codes only {larger['codes_used']} are in use on "
                "held-out episodes"
            )
    last = ordered[-1]
    if last["error_per_deviation"] <= EXACT:
        return last["codes"], "its codes reproduce the held-out actions exactly"
    if most is not None and last["codes"] >= most:
        reason = "there are no more distinct actions than that"
        if last["error_per_deviation"] > MISSED:
            reason += (
                f"; but its codes miss them by {last['error_per_deviation']:.3f} of their "
                "deviation, so try more --steps, another --seed or another quantizer"
            )
        return last["codes"], reason
    if len(ordered) == 1:
        return last["codes"], "the only size that was tried"
    return last["codes"], (
        f"the held-out error still falls at the largest size tried ({last['codes']}): try larger"
    )


def suggested(
    examinations: Sequence[Examination], summary: Mapping[str, Any]
) -> dict[str, Examination]:
    """Of every quantizer by name, the examination at its suggested size."""
    sizes = {name: suggestion["codes"] for name, suggestion in summary["suggestions"].items()}
    return {
        e.record["quantizer"]: e
        for e in examinations
        if e.record["codes"] == sizes[e.record["quantizer"]]
    }


def best_suggested(examinations: Sequence[Examination], summary: Mapping[str, Any]) -> Examination:
    """Of the quantizers, each at its suggested size, the one with the smallest held-out error."""
    chosen = suggested(examinations, summary).values()
    return min(chosen, key=lambda examination: examination.record["error_per_deviation"])


def _notes(material: Material, chosen: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is to be minded about the quantizers at their suggested sizes."""
    many = [r for r in chosen if material.supported < r["codes"] < material.most_codes]
    if many:
        names = listing(f"{r['quantizer']} {r['codes']}" for r in many)
        yield (
            f"the suggested {names} are more than the {material.supported} codes that saqrl train "
            "would choose for the training episodes: the choice among so many codes may be too "
            "hard for an agent; also try fewer codes, or record more data"
        )
    width = material.data.actions.shape[1]
    found = {r["quantizer"]: overlooked(r, width) for r in chosen}
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
        else "they fill their range, so only more codes or another quantizer lower their error"
    )
    yield (
        f"the codes of {names} hardly reproduce some action dimensions ({listing(dimensions)}); "
        "these vary so little that the error over all dimensions does not show it (the page has "
        f"the error of each dimension): {remedy}"
    )


def overlooked(record: Mapping[str, Any], width: int) -> list[int]:
    """Action dimensions with a large error, compared with that of all dimensions together."""
    least = max(OVERLOOKED, TIMES_OVERLOOKED * record["error_per_deviation"])
    own = record["error"]["rms_per_deviation"]  # a chunk holds every dimension several times
    return sorted({i % width for i, error in enumerate(own) if error and error > least})
