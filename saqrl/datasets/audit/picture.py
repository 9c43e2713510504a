"""The findings of an audit as one picture: returns, lengths, and the actions column by column."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saqrl.datasets.audit.findings import Audit
from saqrl.datasets.errors import counted
from saqrl.datasets.transitions import Transitions
from saqrl.environments.packages import import_packages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
# More action dimensions than this would be too small to see.
MOST_ACTIONS = 32
PER_ROW = 8
BLUE, ORANGE, GREY = "#33658a", "#d1603d", "#8a8a8a"


def require_picture_path(path: Path) -> None:
    """ValueError or ImportError before any work is done for a picture that cannot be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--picture {path}: the file name must end in {', '.join(SUFFIXES)}")
    if not path.expanduser().parent.is_dir():
        raise FileNotFoundError(
            f"--picture {path}: the folder {path.parent} does not exist; create it first"
        )
    import_packages("--picture", ("matplotlib",), extra="plots")


def draw(transitions: Transitions, audit: Audit, path: Path) -> None:
    """Write the picture of a log and its audit to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = min(transitions.actions.shape[1], MOST_ACTIONS)
    columns = min(shown, PER_ROW)
    rows = -(-shown // columns)
    figure = Figure(figsize=(11, 3.6 + 1.25 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(2, 1, height_ratios=[3, 1.25 * rows])
    above, below = halves
    title = audit.source.rpartition("/")[2] or "transitions"
    figure.suptitle(
        f"{title}   {counted(audit.episodes, 'episode')}, {counted(audit.steps, 'step')}",
        fontsize=12,
    )
    left, right = above.subplots(1, 2)
    _returns(left, transitions, audit)
    _lengths(right, transitions)
    below.suptitle(_actions_title(audit, shown, transitions.actions.shape[1]), fontsize=10)
    panels = below.subplots(rows, columns, squeeze=False).ravel()
    for column, panel in enumerate(panels):
        if column < shown:
            _action(panel, transitions, column)
        else:
            panel.set_visible(False)
    figure.savefig(path.expanduser(), dpi=130)


def _returns(axes: "Axes", transitions: Transitions, audit: Audit) -> None:
    if not transitions.has_rewards:
        axes.text(0.5, 0.5, "no rewards", ha="center", va="center", color=GREY)
        axes.set_axis_off()
        return
    starts = transitions.episode_starts
    returns = np.add.reduceat(transitions.rewards.astype(np.float64), starts)
    axes.hist(returns, bins=_bins(len(returns)), color=BLUE)
    axes.axvline(float(returns.mean()), color=ORANGE, label=f"mean {returns.mean():.4g}")
    axes.legend(frameon=False)
    axes.set(xlabel="return", ylabel="episodes")
    _clean(axes)


def _lengths(axes: "Axes", transitions: Transitions) -> None:
    lengths = transitions.episode_lengths
    ended = transitions.terminated[transitions.episode_ends - 1]
    edges = np.histogram_bin_edges(lengths, _bins(len(lengths)))
    parts = [(lengths[ended], "terminated", BLUE), (lengths[~ended], "not terminated", ORANGE)]
    kept = [part for part in parts if len(part[0])]
    axes.hist(
        [values for values, _, _ in kept],
        bins=edges.tolist(),
        stacked=True,
        color=[color for _, _, color in kept],
        label=[f"{counted(len(values), 'episode')} {name}" for values, name, _ in kept],
    )
    axes.legend(frameon=False)
    axes.set(xlabel="length in steps", ylabel="episodes")
    _clean(axes)


def _action(axes: "Axes", transitions: Transitions, column: int) -> None:
    values = transitions.actions[:, column]
    bounds = transitions.action_range
    low, high = float(bounds.low[column]), float(bounds.high[column])
    axes.hist(values, bins=40, range=(low, high) if high > low else None, color=BLUE)
    axes.set_title(str(column), fontsize=8, pad=2)
    axes.set_yticks([])
    axes.set_xticks([low, high] if high > low else [low])
    axes.set_xticklabels([f"{low:.3g}", f"{high:.3g}"] if high > low else [f"{low:.3g}"])
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")
    axes.tick_params(labelsize=7)
    _clean(axes)


def _actions_title(audit: Audit, shown: int, width: int) -> str:
    part = f"the first {shown} of {width}" if shown < width else f"{width}"
    return f"actions ({part} dimensions, each over its range); worth {audit.supported_codes} codes"


def _bins(count: int) -> int:
    """Enough to see modes, few enough that bars hold several episodes."""
    return int(np.clip(np.sqrt(count) * 2, 8, 60))


def _clean(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
