"""What `saqrl quantize` leaves on disk: pictures, a Markdown page, a self-contained HTML page."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saqrl.arrays import write_atomically
from saqrl.studies.codebooks.replay import repeats_recording
from saqrl.studies.codebooks.study import (
    Examination,
    Material,
    best_suggested,
    errors_of_steps,
    find,
)

# Panels of one picture; more dimensions than this are shown by the most varied of them.
PANELS = 8
# Steps of the episode that is drawn, states whose codes are, rows in the background.
EPISODE_STEPS = 200
STATES = 4
BACKGROUND_ROWS = 1500
WORDS = {
    "error-against-codes": "Held-out error against the number of codes.",
    "episode": "The actions of a held-out episode, and what their codes stand for.",
    "error-histogram": "The error of single held-out steps.",
    "code-usage": "How the codes share the held-out steps, the most used first.",
    "actions-of-codes": "The actions that the codes stand for in four states (first two principal "
    "components; larger: more probable in the state; the cross: what was done).",
}


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
    pictures = draw_pictures(folder, material, examinations, summary, beside)
    write_atomically(folder / "quantize.json", json.dumps(summary, indent=2).encode())
    write_atomically(folder / "README.md", markdown(summary, pictures).encode())
    write_atomically(folder / "index.html", page(folder, summary, pictures).encode())


def draw_pictures(
    folder: Path,
    material: Material,
    examinations: Sequence[Examination],
    summary: Mapping[str, Any],
    beside: Mapping[str, tuple[Material, Examination]],
) -> list[str]:
    """Draw what there is to draw; the names of the pictures, in the page's order."""
    from matplotlib.figure import Figure

    chosen = {
        name: find(examinations, name, suggestion["codes"])
        for name, suggestion in summary["suggestions"].items()
    }
    best = best_suggested(examinations, summary)
    figures: dict[str, Figure] = {
        "error-against-codes": _error_against_codes(summary),
        "episode": _episode(material, best),
        "error-histogram": _histogram(material, chosen, summary["dataset"], beside),
        "code-usage": _usage(chosen),
        "actions-of-codes": _actions_of_codes(material, best),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
    return list(figures)


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _error_against_codes(summary: Mapping[str, Any]) -> Any:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = _figure(1, 1, width=7, height=4.2)
    axis = axes[0, 0]
    sizes: set[int] = set()
    for name in summary["suggestions"]:
        records = [r for r in summary["results"] if r["quantizer"] == name]
        records.sort(key=lambda record: record["num_codes"])
        counts = [record["num_codes"] for record in records]
        sizes |= set(counts)
        axis.plot(counts, [r["error_per_deviation"] for r in records], marker="o", label=name)
    floors = {
        r["num_codes"]: r["noise_floor_per_deviation"]
        for r in summary["results"]
        if r["noise_floor_per_deviation"]
    }
    if floors:
        counts = sorted(floors)
        values = [floors[count] for count in counts]
        axis.plot(counts, values, color="0.5", ls="--", marker=".", label="floor set by the noise")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(sizes))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="codes", ylabel="error / deviation of the actions")
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    axis.legend(frameon=False)
    return figure


def _episode(material: Material, best: Examination) -> Any:
    shown = material.shown_transitions
    start, end = int(shown.episode_starts[0]), int(shown.episode_ends[0])
    steps = slice(start, min(end, start + EPISODE_STEPS))
    width = material.data.actions.shape[1]
    middle = (material.data.action_range.low + material.data.action_range.high) / 2
    scale = material.data.action_range.half_width
    # Of a chunk, the first action is the one at its step.
    truth = material.shown.actions[steps, :width] * scale + middle
    decoded = best.decoded[steps, :width] * scale + middle
    dimensions = np.sort(np.argsort(-material.shown.actions[:, :width].std(0))[:PANELS])
    rows = -(-len(dimensions) // 2)
    figure, axes = _figure(rows, min(2, len(dimensions)), width=10, height=1.9 * rows + 0.6)
    for axis, dimension in zip(axes.ravel(), dimensions, strict=False):
        axis.plot(truth[:, dimension], color="0.6", lw=2.2, label="recorded")
        axis.plot(decoded[:, dimension], color="C3", lw=1, label="decoded")
        axis.set_ylabel(f"action {dimension}")
    for axis in axes.ravel()[len(dimensions) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    axes[0, 0].legend(frameon=False, ncols=2, fontsize=8)
    figure.suptitle(_title(best), fontsize=10)
    return figure


def _histogram(
    material: Material,
    chosen: Mapping[str, Examination],
    dataset: str,
    beside: Mapping[str, tuple[Material, Examination]],
) -> Any:
    figure, axes = _figure(1, 1, width=7, height=4)
    name = f"{Path(dataset).stem}, " if beside else ""
    errors = {f"{name}{_title(e)}": errors_of_steps(material, e) for e in chosen.values()}
    for spec, (other, examination) in beside.items():
        errors[f"{Path(spec).stem}, {_title(examination)}"] = errors_of_steps(other, examination)
    widest = max(float(np.percentile(values, 99.5)) for values in errors.values())
    edges = np.linspace(0, max(widest, 1e-9), 61)
    for label, values in errors.items():
        share = np.histogram(values, edges)[0] / len(values)
        axes[0, 0].stairs(share, edges, label=label, lw=1.5)
    axes[0, 0].set(xlabel="error of a step / deviation of the actions", ylabel="share of steps")
    axes[0, 0].legend(frameon=False)
    return figure


def _usage(chosen: Mapping[str, Examination]) -> Any:
    figure, axes = _figure(1, 1, width=7, height=4)
    axis = axes[0, 0]
    for examination in chosen.values():
        count = examination.record["num_codes"]
        usage = np.sort(np.bincount(examination.codes, minlength=count))[::-1]
        used = usage[usage > 0]
        axis.plot(
            np.arange(1, len(used) + 1),
            used / usage.sum(),
            marker=".",
            label=f"{_title(examination)}: {len(used)} used",
        )
    axis.set_yscale("log")
    axis.set(xlabel="code, by rank", ylabel="share of steps")
    axis.legend(frameon=False)
    return figure


def _actions_of_codes(material: Material, best: Examination) -> Any:
    actions = material.shown.actions
    centre = actions.mean(0)
    draw = np.random.default_rng(0)
    background = actions[draw.permutation(len(actions))[:BACKGROUND_ROWS]]
    _, _, directions = np.linalg.svd(background - centre, full_matrices=False)
    directions = directions[:2]
    if len(directions) < 2:  # one-dimensional actions lie on a line
        directions = np.concatenate([directions, np.zeros_like(directions)])
    states = np.linspace(0, len(actions) - 1, STATES + 2).astype(int)[1:-1]
    figure, axes = _figure(1, STATES, width=12, height=3.4)
    codec = best.quantizer.codec
    decode = jax.jit(
        lambda feature: jax.vmap(lambda code: type(codec).decode(codec, feature, code))(
            jnp.arange(codec.num_codes)
        )
    )
    far = (background - centre) @ directions.T
    for axis, row in zip(axes[0], states, strict=True):
        feature = jnp.asarray(material.shown.features[row])
        places = (np.asarray(decode(feature)) - centre) @ directions.T
        probable = np.exp(np.asarray(best.quantizer.log_prior(feature)))
        axis.scatter(*far.T, s=3, color="0.85", lw=0)
        axis.scatter(*places.T, s=6 + 250 * probable, color="C0", alpha=0.6, lw=0)
        done = (actions[row] - centre) @ directions.T
        axis.scatter(*done, marker="x", s=60, color="C3", zorder=3)
        axis.set_title(f"step {row}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(_title(best), fontsize=10)
    return figure


def _title(examination: Examination) -> str:
    return f"{examination.record['quantizer']}, {examination.record['num_codes']} codes"


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
            str(r["quantizer"]),
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


def error_table(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Per dimension, in the environment's units, of each quantizer at its suggested size."""
    rows = []
    for name, suggestion in summary["suggestions"].items():
        record = next(
            r
            for r in summary["results"]
            if (r["quantizer"], r["codes"]) == (name, suggestion["codes"])
        )
        error = record["error"]
        columns = zip(
            *(error[key] for key in ("rms", "mean", "p95", "worst", "rms_per_deviation")),
            strict=True,
        )
        for dimension, values in enumerate(columns):
            shown = ("-" if value is None else f"{value:.4g}" for value in values)
            rows.append((f"{name} {record['num_codes']}", str(dimension), *shown))
    return rows


ERROR_HEADER = ("quantizer", "dimension", "rms", "mean", "95 %", "worst", "rms / deviation")


def markdown(summary: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The page as Markdown, pictures beside it."""
    lines = [f"# Codes for {summary['dataset']}", ""]
    lines += [f"- {text}" for text in (*sentences(summary), *replay_sentences(summary))]
    lines += ["", *_markdown_table(HEADER, table(summary)), ""]
    for name in pictures:
        lines += [f"![{WORDS[name]}]({name}.png)", "", WORDS[name], ""]
    lines += ["## Error of each action dimension, in its own units", ""]
    lines += _markdown_table(ERROR_HEADER, error_table(summary))
    return "\n".join(lines) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, ruler, *rows)]


def page(folder: Path, summary: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The page as one HTML file that needs no other."""
    words = "".join(
        f"<li>{html.escape(text)}</li>"
        for text in (*sentences(summary), *replay_sentences(summary))
    )
    drawn = "".join(
        f'<figure><img alt="{html.escape(WORDS[name])}" src="data:image/png;base64,'
        f'{base64.b64encode((folder / f"{name}.png").read_bytes()).decode()}">'
        f"<figcaption>{html.escape(WORDS[name])}</figcaption></figure>"
        for name in pictures
    )
    title = html.escape(f"Codes for {summary['dataset']}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style><main><h1>{title}</h1><ul>{words}</ul>"
        f"{_html_table(HEADER, table(summary))}{drawn}"
        "<h2>Error of each action dimension, in its own units</h2>"
        f"{_html_table(ERROR_HEADER, error_table(summary))}</main></html>\n"
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color:#222;margin:2rem 1rem}"
    "main{max-width:64rem;margin:auto}h1{font-size:1.5rem;overflow-wrap:anywhere}"
    "h2{font-size:1.15rem}.wide{overflow-x:auto}"
    "table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}figure{margin:1.5rem 0}img{max-width:100%}"
    "figcaption{font-size:.9rem;color:#555}"
)
