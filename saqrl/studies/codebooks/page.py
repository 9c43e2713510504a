"""What `saqrl quantize` says and leaves on disk: sentences, tables, a page with pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saqrl.arrays import write_atomically
from saqrl.studies import page
from saqrl.studies.codebooks import pictures
from saqrl.studies.codebooks.material import Material
from saqrl.studies.codebooks.replay import repeats_recording
from saqrl.studies.codebooks.study import Examination


def require_plots() -> None:
    """ImportError with the way out where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib: pip install "saqrl[plots]", or leave --out away'
        ) from error


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
            points=(*sentences(summary), *replay_sentences(summary)),
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


HEADER = (
    "quantizer", "codes", "used", "perplexity", "error", "95 %", "worst", "training",
    "noise floor", "prior nats", "prior hits", "seconds",
)  # fmt: skip


def table(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each result; errors as a share of the actions' standard deviation."""

    def number(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        (
            r["quantizer"],
            str(r["num_codes"]),
            str(r["codes_used"]),
            number(r["perplexity"], 1),
            number(r["error_per_deviation"]),
            number(r["error_per_deviation_p95"]),
            number(r["error_per_deviation_worst"]),
            number(r["training_error_per_deviation"]),
            number(r["noise_floor_per_deviation"]),
            number(r["prior_cross_entropy"], 2),
            number(r["prior_accuracy"], 2),
            number(sum(r["seconds"].values()), 0),
        )
        for r in summary["results"]
    ]


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in words."""
    said = [
        f"Measured on {summary['measured_on']} ({summary['shown_rows']:,} steps), trained on "
        f"{summary['training_rows']:,} steps. Errors are shares of the actions' standard deviation."
    ]
    for name, suggestion in summary["suggestions"].items():
        said.append(f"{name}: {suggestion['codes']} codes, because {suggestion['reason']}.")
    noise = summary["noise"]
    if noise is None:
        said.append("The noise cannot be estimated: too few steps.")
    else:
        said.append(
            f"Noise: about {noise['per_deviation']:.3f} of the actions' deviation is not explained "
            "by the state (Gamma test on nearest states; nearest pairs lie at "
            f"{noise['neighbour_distance']:.2f} of the distance of random ones: the nearer to 0, "
            "the surer). The noise floor is the least error with so many codes if that noise were "
            "Gaussian."
        )
    for other in summary.get("beside", ()):
        said.append(
            f"Beside it {other['dataset']} ({other['quantizer']}, {other['num_codes']} codes, "
            f"{other['measured_on']}): error {other['error_per_deviation']:.3f}, "
            f"{other['error_per_deviation_p95']:.3f} at the 95th percentile, prior hits "
            f"{other['prior_accuracy']:.2f}."
        )
    said += [f"Note: {note}." for note in summary["notes"]]
    for left in summary["left_out"]:
        said.append(f"Left out: {left['quantizer']} with {left['codes']} codes ({left['reason']}).")
    for result in summary["results"]:
        for note in result["notes"]:
            said.append(f"{result['quantizer']}, {result['num_codes']} codes: {note}.")
    return said


def replay_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What executing recorded episodes again gave."""
    said = []
    for name, found in summary.get("replay", {}).items():
        if "reason" in found:
            said.append(f"Replay of {name}: not possible ({found['reason']}).")
            continue
        words = [
            f"{label} {found[key]['return_mean']:.1f} (highest reward "
            f"{found[key]['max_reward_mean']:.3f})"
            for key, label in (
                ("recorded", "recorded return"),
                ("actions", "its actions again"),
                ("codes", f"through {found['num_codes']} codes"),
                ("noise", "with noise of the codes' error"),
            )
        ]
        said.append(
            f"Replay of {name} in {found['environment']}, {found['episodes']} episodes: "
            + ", ".join(words)
            + "."
        )
        if not repeats_recording(found):
            said.append(
                "Executed again, the recorded actions do not bring the recorded return: the task "
                f"is chaotic or a start was in motion, and this replay of {name} says nothing."
            )
    return said


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
            shown = ("-" if value is None else f"{value:.4g}" for value in values)
            rows.append((name, str(dimension), *shown))
    return rows
