"""Plots as PNG bytes. Needs matplotlib, the extra `plots`."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from saqrl.studies.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart (Okabe and Ito 2008); ours come first.
_QUANTIZED = ("#D55E00", "#E69F00", "#CC79A7", "#9C3D00", "#F0A77A", "#7A3B69")
_CONTINUOUS = ("#0072B2", "#56B4E9", "#009E73", "#5B6770", "#9AA3AD", "#014B75", "#00A0A0")
_COLUMNS = 3
# Methods of a panel of learning curves up to which each gets a band.
MOST_BANDS = 6


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "saqrl[plots]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # Without the metadata two reports of the same table are the same bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour for every method: warm for quantized, cold for continuous ones."""
    chosen, counts = {}, [0, 0]
    for method in methods:
        continuous = not method.startswith("saq-")
        palette = _CONTINUOUS if continuous else _QUANTIZED
        chosen[method] = palette[counts[continuous] % len(palette)]
        counts[continuous] += 1
    return chosen


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
    figure = _figure(7.5, 0.9 + 0.3 * len(estimates))
    axes = figure.subplots()
    names = list(estimates)
    for place, name in enumerate(names):
        value, low, high = estimates[name]
        if estimates[name].has_interval:
            axes.plot([low, high], [place, place], color=shown[name], linewidth=6, alpha=0.35)
        axes.plot([value], [place], "o", color=shown[name], markersize=6)
    if centre is not None:
        axes.axvline(centre, color="#5B6770", linewidth=1, linestyle="--")
        axes.set_xlim(-0.03, 1.03)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    repeated = any(estimate.has_interval for estimate in estimates.values())
    axes.set_xlabel(f"{label}, 95 % interval" if repeated else label)
    _tidy(axes)
    return _png(figure)


def bars(
    panels: Mapping[str, Mapping[str, Estimate]],
    *,
    labels: Mapping[str, str],
    shown: Mapping[str, str],
) -> bytes:
    """A panel for every data set, a bar for every method, in the colours `shown`."""
    height = 1.0 + 0.27 * max(len(panel) for panel in panels.values())
    figure, grid = _panels(len(panels), height)
    for axes, (task, panel) in zip(grid, panels.items(), strict=False):
        places = np.arange(len(panel))
        values = [estimate.value for estimate in panel.values()]
        axes.barh(places, values, color=[shown[method] for method in panel], height=0.7)
        for place, estimate in zip(places, panel.values(), strict=True):
            if estimate.has_interval:
                axes.hlines(place, estimate.low, estimate.high, color="#1d2129", linewidth=1.5)
        axes.set_yticks(places, list(panel))
        axes.invert_yaxis()
        axes.set_title(task, fontsize=10)
        axes.set_xlabel(labels[task], fontsize=9)
        _tidy(axes)
    return _png(figure)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[tuple[int, float]]]]],
    *,
    labels: Mapping[str, str],
    shown: Mapping[str, str],
) -> bytes:
    """A panel for every data set; of every method the mean over its seeds.

    And the span of its seeds, where there are few enough methods to tell the bands apart.
    """
    methods = list(dict.fromkeys(method for panel in panels.values() for method in panel))
    figure, grid = _panels(len(panels), 2.7)
    for axes, (task, panel) in zip(grid, panels.items(), strict=False):
        for method, runs in panel.items():
            by_step: dict[int, list[float]] = {}
            for run in runs:
                for step, score in run:
                    by_step.setdefault(step, []).append(score)
            steps = sorted(by_step)
            mean = [np.mean(by_step[step]) for step in steps]
            style = "-" if method.startswith("saq-") else "--"
            axes.plot(steps, mean, style, marker=".", color=shown[method], linewidth=1.5)
            if len(panel) <= MOST_BANDS:
                low, high = ([pick(by_step[s]) for s in steps] for pick in (min, max))
                axes.fill_between(steps, low, high, color=shown[method], alpha=0.12, linewidth=0)
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("gradient steps of the agent", fontsize=9)
        axes.set_ylabel(labels[task], fontsize=9)
        _tidy(axes)
    handles = [
        _line(shown[method], "-" if method.startswith("saq-") else "--") for method in methods
    ]
    figure.legend(handles, methods, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return _png(figure)


def _line(colour: str, style: Literal["-", "--"]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style)


def _panels(count: int, height: float) -> tuple["Figure", list[Any]]:
    """A figure with a grid of panels, the unused ones removed."""
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = _figure(max(6.5, 3.9 * columns), height * rows + 0.4)
    grid = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
