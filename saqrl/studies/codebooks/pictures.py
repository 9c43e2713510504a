"""Pictures of quantizers: errors, a decoded episode, the use of codes and their actions."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from saqrl.studies import plots
from saqrl.studies.codebooks.advice import best_suggested, suggested
from saqrl.studies.codebooks.material import Material
from saqrl.studies.codebooks.study import Examination, errors_of_steps
from saqrl.studies.page import Picture
from saqrl.training.codes import decode_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels of one picture; more dimensions than this are shown by the most varied of them.
PANELS = 8
# Steps of the episode that is drawn, states whose codes are, rows in the background.
EPISODE_STEPS = 200
STATES = 4
BACKGROUND_ROWS = 1500


def draw(
    material: Material,
    examinations: Sequence[Examination],
    summary: Mapping[str, Any],
    beside: Mapping[str, tuple[Material, Examination]],
) -> Iterator[Picture]:
    """The pictures in the page's order."""
    chosen = list(suggested(examinations, summary).values())
    best = best_suggested(examinations, summary)
    steps = f"{Path(summary['dataset']).stem}, " if beside else ""
    errors = {
        f"{steps}{title(e)}": errors_of_steps(material, material.shown, e.decoded) for e in chosen
    }
    for spec, (other, e) in beside.items():
        name = f"{Path(spec).stem}, {title(e)}"
        errors[name] = errors_of_steps(other, other.shown, e.decoded)
    drawn = (
        (
            "error-against-codes",
            _error_against_codes(summary),
            "Held-out error against the number of codes.",
        ),
        (
            "episode",
            _episode(material, best),
            "The actions of a held-out episode, and the decoded actions of their codes.",
        ),
        ("error-histogram", _histogram(errors), "The error of single held-out steps."),
        (
            "code-usage",
            _usage(chosen),
            "The share of held-out steps of each code, the most used first.",
        ),
        (
            "actions-of-codes",
            _actions_of_codes(material, best),
            "The decoded actions of all codes in four states (first two principal components; "
            "larger: more probable in the state; cross: the recorded action).",
        ),
    )
    for name, figure, caption in drawn:
        yield Picture(f"{name}.png", plots.png(figure), caption)


def title(examination: Examination) -> str:
    return f"{examination.record['quantizer']}, {examination.record['num_codes']} codes"


def _error_against_codes(summary: Mapping[str, Any]) -> "Figure":
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, (axes,) = plots.canvas(width=9, height=3.6)
    records = sorted(summary["results"], key=lambda record: record["num_codes"])
    for name in summary["suggestions"]:
        own = [r for r in records if r["quantizer"] == name]
        sizes, errors = ([r[key] for r in own] for key in ("num_codes", "error_per_deviation"))
        axes.plot(sizes, errors, marker="o", label=name)
    floors = {r["num_codes"]: r["noise_floor_per_deviation"] for r in records}
    if any(floors.values()):
        known = {size: floor for size, floor in floors.items() if floor}
        style = {"color": "0.5", "ls": "--", "marker": ".", "label": "floor set by the noise"}
        axes.plot(list(known), list(known.values()), **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(floors))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="codes", ylabel="error / deviation of the actions")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.legend(frameon=False)
    return figure


def _episode(material: Material, best: Examination) -> "Figure":
    shown = material.shown_transitions
    start, end = int(shown.episode_starts[0]), int(shown.episode_ends[0])
    steps = slice(start, min(end, start + EPISODE_STEPS))
    # Of a chunk, the first action is the one at its step.
    width = material.data.actions.shape[1]
    unit = material.shown.actions[:, :width]
    recorded, decoded = (
        material.data.action_range.from_unit(actions[steps, :width])
        for actions in (unit, best.decoded)
    )
    dimensions = np.sort(np.argsort(-unit.std(0))[:PANELS])
    figure, panels = plots.canvas(len(dimensions), width=5, height=1.9, columns=2)
    for axes, dimension in zip(panels, dimensions, strict=True):
        axes.plot(recorded[:, dimension], color="0.6", lw=2.2, label="recorded")
        axes.plot(decoded[:, dimension], color="C3", lw=1, label="decoded")
        axes.set_ylabel(f"action {dimension}")
    for axes in panels[-2:]:
        axes.set_xlabel("step")
    panels[0].legend(frameon=False, ncols=2, fontsize=8)
    figure.suptitle(title(best), fontsize=10)
    return figure


def _histogram(errors: Mapping[str, np.ndarray]) -> "Figure":
    figure, (axes,) = plots.canvas(width=9, height=3.4)
    widest = max(float(np.percentile(values, 99.5)) for values in errors.values())
    edges = np.linspace(0, max(widest, 1e-9), 61)
    for label, values in errors.items():
        axes.stairs(np.histogram(values, edges)[0] / len(values), edges, label=label, lw=1.5)
    axes.set(xlabel="error of a step / deviation of the actions", ylabel="share of steps")
    axes.legend(frameon=False)
    return figure


def _usage(chosen: Sequence[Examination]) -> "Figure":
    figure, (axes,) = plots.canvas(width=9, height=3.4)
    for examination in chosen:
        usage = np.sort(np.bincount(examination.codes))[::-1]
        shares = usage[usage > 0] / usage.sum()
        label = f"{title(examination)}: {len(shares)} used"
        axes.plot(np.arange(1, len(shares) + 1), shares, marker=".", label=label)
    axes.set_yscale("log")
    axes.set(xlabel="code, by rank", ylabel="share of steps")
    axes.legend(frameon=False)
    return figure


def _actions_of_codes(material: Material, best: Examination) -> "Figure":
    actions = material.shown.actions
    centre = actions.mean(0)
    rows = np.random.default_rng(0).permutation(len(actions))[:BACKGROUND_ROWS]
    # Two directions, of which one is nothing where actions lie on a line.
    directions = np.zeros((2, actions.shape[1]))
    principal = np.linalg.svd(actions[rows] - centre, full_matrices=False)[2][:2]
    directions[: len(principal)] = principal

    def project(actions: np.ndarray) -> np.ndarray:
        return (actions - centre) @ directions.T

    codec = best.quantizer.codec
    codes = jnp.arange(codec.num_codes)
    states = np.linspace(0, len(actions) - 1, STATES + 2).astype(int)[1:-1]
    figure, panels = plots.canvas(STATES, width=3, height=3, columns=STATES)
    for axes, row in zip(panels, states, strict=True):
        feature = jnp.asarray(material.shown.features[row])
        decoded = np.asarray(decode_all(codec, jnp.tile(feature, (len(codes), 1)), codes))
        probable = np.exp(np.asarray(best.quantizer.log_prior(feature)))
        axes.scatter(*project(actions[rows]).T, s=3, color="0.85", lw=0)
        axes.scatter(*project(decoded).T, s=6 + 250 * probable, color="C0", alpha=0.6, lw=0)
        axes.scatter(*project(actions[row]), marker="x", s=60, color="C3", zorder=3)
        axes.set_title(f"step {row}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title(best), fontsize=10)
    return figure
