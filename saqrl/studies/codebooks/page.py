"""The output of `saqrl quantize`: sentences, tables, a page with pictures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saqrl.arrays import write_atomically
from saqrl.studies import page
from saqrl.studies.codebooks import pictures
from saqrl.studies.codebooks.material import Material
from saqrl.studies.codebooks.replay import repeats_recording
from saqrl.studies.codebooks.study import Examination


def write_page(
    folder: Path,
    material: Material,
    examinations: Sequence[Examination],
    summary: Mapping[str, Any],
    beside: Mapping[str, tuple[Material, Examination]],
) -> None:
    """quantize.json, README.md, index.html and the pictures, into a new folder."""
    folder.mkdir(parents=True)
    write_atomically(folder / "quantize.json", json.dumps(summary, indent=2).encode())
    sections = [
        page.Section(
            points=tuple(sentences(summary)),
            header=HEADER,
            rows=tuple(table(summary)),
            pictures=tuple(pictures.draw(material, examinations, summary, beside)),
        ),
        page.Section(
            "Error of each action dimension, in its own units",
            header=ERROR_HEADER,
            rows=tuple(error_table(summary)),
        ),
    ]
    title = f"Codes for {summary['dataset']}"
    page.write_page(folder, title, sections, names=("README.md", "index.html"))


# Name -> (field of a result, how its numbers are written).
COLUMNS = {
    "quantizer": ("quantizer", ""),
    "codes": ("num_codes", ""),
    "used": ("codes_used", ""),
    "perplexity": ("perplexity", ".1f"),
    "error": ("error_per_deviation", ".3f"),
    "95 %": ("error_per_deviation_p95", ".3f"),
    "worst": ("error_per_deviation_worst", ".3f"),
    "training": ("training_error_per_deviation", ".3f"),
    "noise floor": ("noise_floor_per_deviation", ".3f"),
    "prior nats": ("prior_cross_entropy", ".2f"),
    "prior hits": ("prior_accuracy", ".2f"),
    "seconds": ("seconds", ".0f"),
}
HEADER = tuple(COLUMNS)


def table(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each result; errors as a share of the actions' standard deviation."""
    results = [r | {"seconds": sum(r["seconds"].values())} for r in summary["results"]]
    return [
        tuple(_number(result[field], written) for field, written in COLUMNS.values())
        for result in results
    ]


def _number(value: Any, written: str) -> str:
    return "-" if value is None else format(value, written)


def sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers say, in words."""
    yield (
        f"Measured on {summary['measured_on']} ({summary['shown_rows']:,} steps), trained on "
        f"{summary['training_rows']:,} steps. Errors are shares of the actions' standard deviation."
    )
    for name, suggestion in summary["suggestions"].items():
        yield f"{name}: {suggestion['codes']} codes, because {suggestion['reason']}."
    if noise := summary["noise"]:
        yield (
            f"Noise: about {noise['per_deviation']:.3f} of the actions' deviation is not explained "
            "by the state (Gamma test on nearest states; the distance of nearest pairs is "
            f"{noise['neighbour_distance']:.2f} of that of random pairs: the nearer to 0, the more "
            "reliable the estimate). The noise floor is the lowest possible error with this number "
            "of codes if that noise were Gaussian."
        )
    else:
        yield "The noise cannot be estimated: too few steps."
    for other in summary.get("beside", ()):
        yield (
            f"For comparison, {other['dataset']} ({other['quantizer']}, "
            f"{other['num_codes']} codes, {other['measured_on']}): "
            f"error {other['error_per_deviation']:.3f}, "
            f"{other['error_per_deviation_p95']:.3f} at the 95th percentile, prior hits "
            f"{other['prior_accuracy']:.2f}."
        )
    for note in summary["notes"]:
        yield f"Note: {note}."
    for left in summary["left_out"]:
        yield f"Left out: {left['quantizer']} with {left['codes']} codes ({left['reason']})."
    for result in summary["results"]:
        for note in result["notes"]:
            yield f"{result['quantizer']}, {result['num_codes']} codes: {note}."
    for name, found in summary.get("replay", {}).items():
        yield from _of_replay(name, found)


def _of_replay(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Results of executing recorded episodes again."""
    if "reason" in found:
        yield f"Replay of {name}: not possible ({found['reason']})."
        return
    labels = {
        "recorded": "recorded return",
        "actions": "recorded actions again",
        "codes": f"through {found['num_codes']} codes",
        "noise": "with noise of the codes' error",
    }
    words = [
        f"{label} {found[key]['return_mean']:.1f} (highest reward "
        f"{found[key]['max_reward_mean']:.3f})"
        for key, label in labels.items()
    ]
    yield (
        f"Replay of {name} in {found['environment']}, {found['episodes']} episodes: "
        f"{', '.join(words)}."
    )
    if not repeats_recording(found):
        yield (
            "Executed again, the recorded actions do not reproduce the recorded return, because "
            f"the task is chaotic or a start was in motion: ignore this replay of {name}."
        )


ERROR_HEADER = ("quantizer", "dimension", "rms", "mean", "95 %", "worst", "rms / deviation")


def error_table(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Per dimension, in the environment's units, of each quantizer at its suggested size."""
    rows = []
    for record in summary["results"]:
        if record["codes"] != summary["suggestions"][record["quantizer"]]["codes"]:
            continue
        name = f"{record['quantizer']} {record['num_codes']}"
        columns = (record["error"][k] for k in ("rms", "mean", "p95", "worst", "rms_per_deviation"))
        for dimension, values in enumerate(zip(*columns, strict=True)):
            rows.append((name, str(dimension), *(_number(value, ".4g") for value in values)))
    return rows
