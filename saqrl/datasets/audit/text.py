"""The findings of an audit for a terminal: compact, in as many blocks as its width allows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from saqrl.datasets.audit.findings import OFTEN_CLIPPED, Audit, ColumnAudit
from saqrl.datasets.errors import listing

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
BLOCK_WIDTH = 39
# Characters of a column's name, and tasks of a list, that are shown.
NAME_WIDTH, TASKS_SHOWN = 19, 3


def render(audit: Audit) -> RenderableType:
    """Summary, action dimensions, observation columns, notes, warnings."""
    return _AuditText(audit)


class _AuditText:
    def __init__(self, audit: Audit) -> None:
        self.audit = audit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        audit, ascii_only = self.audit, options.ascii_only
        shown: dict[str, Any] = {"width": options.max_width, "ascii_only": ascii_only}
        yield _title(audit)
        yield _summary(audit)
        yield Text()
        yield _section("actions", f"{len(audit.actions)} dimensions, {_range_text(audit)}")
        yield _blocks(audit.actions, audit.action_names, audit, **shown)
        yield Text()
        yield _section("observations", f"{len(audit.observations)} columns")
        yield _blocks(audit.observations, audit.observation_names, audit, **shown)
        if audit.notes:
            yield Text()
            yield _sentences("note", audit.notes, style="cyan")
        yield Text()
        if audit.warnings:
            yield _sentences("warning", audit.warnings, style="bold yellow")
        else:
            yield Text("nothing suspicious found", style="green")


def _title(audit: Audit) -> Text:
    text = Text(audit.source or "transitions", style="bold", overflow="fold")
    if audit.environment:
        text.append(f"  {audit.environment}", style="cyan not bold")
    return text


def _summary(audit: Audit) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _summary_rows(audit):
        # The words are a file's, and no markup.
        table.add_row(name, Text(text))
    return table


def _summary_rows(audit: Audit) -> Iterator[tuple[str, str]]:
    if audit.robot:
        yield "robot", audit.robot
    if audit.tasks:
        yield "task", listing(audit.tasks, limit=TASKS_SHOWN)
    if audit.cameras:
        yield "cameras", f"{listing(audit.cameras)} (images are not used)"
    yield "episodes", f"{audit.episodes:,}: {_ends(audit)}"
    if audit.successful_episodes is not None:
        share = audit.successful_episodes / audit.episodes
        yield "success", f"{audit.successful_episodes:,} of {audit.episodes:,} ({share:.0%})"
    rate = audit.control_rate
    at_rate = f" at {rate:.3g} Hz, {_duration(audit.steps / rate)}" if rate else ""
    yield "steps", f"{audit.steps:,}{at_rate}"
    median = f" ({_duration(audit.length_median / rate)})" if rate else ""
    if audit.length_min < audit.length_max:
        spread = f"{audit.length_min:,} to {audit.length_max:,}"
        yield "lengths", f"{spread}, median {audit.length_median:,g}{median}"
    else:
        yield "lengths", f"{audit.length_min:,} each{median}"
    yield from _reward_rows(audit)
    yield (
        "codes",
        f"{audit.supported_codes} suggested, for chunks of {audit.chunk} actions"
        if audit.chunk > 1
        else f"{audit.supported_codes} suggested, for single actions",
    )
    two_valued = any(column.two_valued for column in audit.actions)
    aside = " (without two-valued dimensions)" if two_valued else ""
    yield "clipped", f"{audit.clipped_share:.1%} of action entries are at a bound{aside}"


def _ends(audit: Audit) -> str:
    if not audit.truncated_episodes:
        return "all terminate"
    others = "at a time limit or the end of the recording"
    if not audit.terminated_episodes:
        return f"none terminates, they stop {others}"
    return f"{audit.terminated_episodes:,} terminate, {audit.truncated_episodes:,} stop {others}"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _reward_rows(audit: Audit) -> Iterable[tuple[str, str]]:
    if not audit.has_rewards:
        yield "rewards", "none"
        return
    yield (
        "returns",
        f"{number(audit.return_min)} to {number(audit.return_max)}, "
        f"mean {number(audit.return_mean)}",
    )
    spread = f"{number(audit.reward_min)} to {number(audit.reward_max)}"
    share = audit.commonest_reward_share or 0
    # A reward that few steps share is dense, and then its commonest value says nothing.
    commonest = (
        f", {number(audit.commonest_reward)} on {share:.1%} of steps" if share > 0.05 else ""
    )
    yield "rewards", spread + commonest


def _range_text(audit: Audit) -> str:
    origin = {"declared": "as declared", "unit": "assumed", "data": "of the data"}
    low, high = set(audit.action_low), set(audit.action_high)
    if len(low) == len(high) == 1:
        spread = f"range {number(min(low))} to {number(max(high))}"
    else:
        spread = "one range per dimension"
    return f"{spread} ({origin.get(audit.action_range_origin, 'as given')})"


def _section(name: str, detail: str) -> Text:
    return Text.assemble((name, "bold"), "  ", (detail, "dim"))


def _blocks(
    columns: Sequence[ColumnAudit],
    names: Sequence[str],
    audit: Audit,
    *,
    width: int,
    ascii_only: bool,
) -> Table:
    """The columns in as many tables side by side as the width holds, filled downwards."""
    shown = [_shortened(name) for name in names]
    needed = BLOCK_WIDTH + 1 + (max(map(len, shown)) + 1 if shown else 0)
    height = -(-len(columns) // max(1, (width + 1) // needed))
    side_by_side = Table.grid(padding=(0, 1, 0, 0))
    parts = [columns[start : start + height] for start in range(0, len(columns), height)]
    side_by_side.add_row(*(_block(part, shown, audit, ascii_only=ascii_only) for part in parts))
    return side_by_side


def _shortened(name: str) -> str:
    """Cut in its middle: names of columns differ at their ends."""
    return name if len(name) <= NAME_WIDTH else f"{name[:8]}..{name[-(NAME_WIDTH - 10) :]}"


def _block(
    columns: Sequence[ColumnAudit], names: Sequence[str], audit: Audit, *, ascii_only: bool
) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    if names:
        table.add_column(no_wrap=True)
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    heads = ("", *([""] if names else []), "min", "mean", "max", "std", "")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for column in columns:
        numbers = (column.minimum, column.mean, column.maximum, column.deviation)
        table.add_row(
            Text(str(column.column), style="cyan"),
            *([Text(names[column.column])] if names else []),
            *(Text(f"{number(value):>6}") for value in numbers),
            _shape(column, audit, ascii_only=ascii_only),
        )
    return table


def _shape(column: ColumnAudit, audit: Audit, *, ascii_only: bool) -> Text:
    """The histogram as bars, or the word that says more: constant, 2 values, angle?."""
    if column.constant:
        return Text("constant", style="yellow")
    if column.two_valued:
        return Text("2 values", style="green")
    if column.at_low is None and column.column in audit.likely_angles:
        return Text("angle?", style="yellow")
    if column.at_low is None and column.column in audit.angles:
        return Text("angle", style="green")
    bars = Text(bar_chart(column.histogram, ascii_only=ascii_only), style="blue")
    if column.at_low is not None and column.at_high is not None:
        for end, share in ((0, column.at_low), (-1, column.at_high)):
            if share > OFTEN_CLIPPED / 2:
                position = end % len(bars)
                bars.stylize("bold yellow", position, position + 1)
    return bars


def _sentences(kind: str, sentences: Iterable[str], *, style: str) -> Group:
    rows = Table.grid(padding=(0, 1, 0, 0))
    rows.add_column(style=style, no_wrap=True)
    rows.add_column(overflow="fold")
    for sentence in sentences:
        rows.add_row(kind, Text(sentence))
    return Group(rows)


def bar_chart(counts: Sequence[int], *, ascii_only: bool = False) -> str:
    """One character a bin, the tallest at full height, a space where there is nothing."""
    bars, most = ASCII_BARS if ascii_only else BARS, max(counts)
    return "".join(
        bars[min(count * len(bars) // most, len(bars) - 1)] if count else " " for count in counts
    )


def number(value: float | None) -> str:
    """Three significant digits in at most six characters where the size allows."""
    if value is None:
        return "-"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if size >= 1000:
        return f"{value:.0f}"
    return f"{value:.{2 if size < 10 else 1 if size < 100 else 0}f}"
