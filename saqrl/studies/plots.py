"""Plots as PNG bytes. Needs matplotlib, the extra `plots`."""

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saqrl.environments.packages import import_packages
from saqrl.studies.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart (Okabe and Ito 2008); ours come first.
_QUANTIZED = ("#D55E00", "#E69F00", "#CC79A7", "#9C3D00", "#F0A77A", "#7A3B69")
_CONTINUOUS = ("#0072B2", "#56B4E9", "#009E73", "#5B6770", "#9AA3AD", "#014B75", "#00A0A0")
_COLUMNS = 3
# Methods of a panel of learning curves up to which each gets a band.
MOST_BANDS = 6


def canvas(
    panels: int = 1, *, width: float, height: float, columns: int = _COLUMNS
) -> tuple["Figure", list[Any]]:
    """A figure and its panels, at most `columns` side by side, each so wide and high in inches."""
    import_packages("a plot", ("matplotlib.figure",), extra="plots")
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    size = max(6.5, width * columns), height * rows + 0.4
    figure = Figure(figsize=size, layout="constrained")
    grid = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in grid[panels:]:
        axes.remove()
    for axes in grid[:panels]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, grid[:panels]


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # Without the metadata two reports of the same table are the same bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour for every method: warm for quantized, cold for continuous ones."""
    palettes = {True: itertools.cycle(_QUANTIZED), False: itertools.cycle(_CONTINUOUS)}
    return {method: next(palettes[method.startswith("saq-")]) for method in methods}


def intervals(
    estimates: Mapping[str, Estimate],
    *,
    label: str,
    shown: Mapping[str, str],
    centre: float | None = None,
) -> bytes:
    """A point for every estimate, with its interval where it has one, in the colours `shown`.

    `centre` marks where there is no difference.
    """
    figure, (axes,) = canvas(width=7.5, height=0.5 + 0.3 * len(estimates))
    for place, (name, estimate) in enumerate(estimates.items()):
        colour = shown[name]
        if estimate.has_interval:
            axes.hlines(place, estimate.low, estimate.high, color=colour, linewidth=6, alpha=0.35)
        axes.plot([estimate.value], [place], "o", color=colour, markersize=6)
    if centre is not None:
        axes.axvline(centre, color="#5B6770", linewidth=1, linestyle="--")
        axes.set_xlim(-0.03, 1.03)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    repeated = any(estimate.has_interval for estimate in estimates.values())
    axes.set_xlabel(f"{label}, 95 % interval" if repeated else label)
    return png(figure)


def bars(
    panels: Mapping[str, Mapping[str, Estimate]],
    *,
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    labels: Mapping[str, str],
    shown: Mapping[str, str],
) -> bytes:
    """A panel for every data set, a bar for every method, in the colours `shown`.

    With its interval, or else a dot for each of its seeds (`scores` by method and data set).
    """
    height = 1.0 + 0.27 * max(map(len, panels.values()))
    figure, grid = canvas(len(panels), width=3.9, height=height)
    for axes, (task, panel) in zip(grid, panels.items(), strict=True):
        places = np.arange(len(panel))
        values = [estimate.value for estimate in panel.values()]
        axes.barh(places, values, color=[shown[method] for method in panel], height=0.7)
        for place, (method, estimate) in zip(places, panel.items(), strict=True):
            if estimate.has_interval:
                axes.hlines(place, estimate.low, estimate.high, color="#1d2129", linewidth=1.5)
            else:
                seeds = scores[method][task]
                axes.plot(seeds, [place] * len(seeds), ".", color="#1d2129", markersize=4)
        axes.set_yticks(places, list(panel))
        axes.invert_yaxis()
        axes.set_title(task, fontsize=10)
        axes.set_xlabel(labels[task], fontsize=9)
    return png(figure)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[tuple[int, float]]]]],
    *,
    labels: Mapping[str, str],
    shown: Mapping[str, str],
) -> bytes:
    """A panel for every data set; of every method the mean over its seeds.

    And the span of its seeds, where there are few enough methods to tell the bands apart.
    """
    figure, grid = canvas(len(panels), width=3.9, height=2.7)
    drawn: dict[str, Any] = {}
    for axes, (task, panel) in zip(grid, panels.items(), strict=True):
        for method, runs in panel.items():
            by_step: dict[int, list[float]] = {}
            for step, score in itertools.chain(*runs):
                by_step.setdefault(step, []).append(score)
            steps = sorted(by_step)
            mean, low, high = (
                [float(pick(by_step[step])) for step in steps] for pick in (np.mean, min, max)
            )
            style = "-" if method.startswith("saq-") else "--"
            (drawn[method],) = axes.plot(
                steps, mean, style, marker=".", color=shown[method], linewidth=1.5
            )
            if len(panel) <= MOST_BANDS:
                axes.fill_between(steps, low, high, color=shown[method], alpha=0.12, linewidth=0)
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("gradient steps of the agent", fontsize=9)
        axes.set_ylabel(labels[task], fontsize=9)
    handles, names = list(drawn.values()), list(drawn)
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return png(figure)
