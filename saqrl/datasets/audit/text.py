"""The findings of an audit for a terminal: compact, in as many blocks as its width allows."""

from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from saqrl.datasets.audit.findings import OFTEN_CLIPPED, Audit, ColumnAudit

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
BLOCK_WIDTH = 39


def render(audit: Audit) -> RenderableType:
    """Summary, action dimensions, observation columns, notes, warnings."""
    return _AuditText(audit)


class _AuditText:
    def __init__(self, audit: Audit) -> None:
        self.audit = audit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        audit, ascii_only = self.audit, options.ascii_only
        blocks = max(1, (options.max_width + 1) // (BLOCK_WIDTH + 1))
        yield _title(audit)
        yield _summary(audit)
        yield Text()
        yield _section("actions", f"{len(audit.actions)} dimensions, {_range_text(audit)}")
        yield _blocks(audit.actions, audit, blocks, ascii_only=ascii_only)
        yield Text()
        yield _section("observations", f"{len(audit.observations)} columns")
        yield _blocks(audit.observations, audit, blocks, ascii_only=ascii_only)
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
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    ends = [
        f"{count:,} {how}"
        for count, how in (
            (audit.terminated_episodes, "terminated"),
            (audit.truncated_episodes, "truncated"),
        )
        if count
    ]
    table.add_row("episodes", f"{audit.episodes:,}, of which {' and '.join(ends)}")
    table.add_row("steps", f"{audit.steps:,}")
    table.add_row(
        "lengths",
        f"{audit.length_min:,} to {audit.length_max:,}, median {audit.length_median:,g}"
        if audit.length_min < audit.length_max
        else f"{audit.length_min:,} each",
    )
    for name, text in _reward_rows(audit):
        table.add_row(name, text)
    table.add_row(
        "codes",
        f"{audit.supported_codes}, for chunks of {audit.chunk}"
        if audit.chunk > 1
        else f"{audit.supported_codes}, for single actions",
    )
    table.add_row("clipped", f"{audit.clipped_share:.1%} of action entries lie at a bound")
    return table


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
        spread = "a range each"
    return f"{spread} ({origin.get(audit.action_range_origin, 'as given')})"


def _section(name: str, detail: str) -> Text:
    return Text.assemble((name, "bold"), "  ", (detail, "dim"))


def _blocks(
    columns: Sequence[ColumnAudit], audit: Audit, blocks: int, *, ascii_only: bool
) -> Table:
    """The columns in up to `blocks` tables side by side, filled downwards."""
    height = -(-len(columns) // blocks)
    side_by_side = Table.grid(padding=(0, 1, 0, 0))
    parts = [columns[start : start + height] for start in range(0, len(columns), height)]
    side_by_side.add_row(*(_block(part, audit, ascii_only=ascii_only) for part in parts))
    return side_by_side


def _block(columns: Sequence[ColumnAudit], audit: Audit, *, ascii_only: bool) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(5):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row(*(Text(name, style="dim") for name in ("", "min", "mean", "max", "std", "")))
    for column in columns:
        numbers = (column.minimum, column.mean, column.maximum, column.deviation)
        table.add_row(
            Text(str(column.column), style="cyan"),
            *(Text(f"{number(value):>6}") for value in numbers),
            _shape(column, audit, ascii_only=ascii_only),
        )
    return table


def _shape(column: ColumnAudit, audit: Audit, *, ascii_only: bool) -> Text:
    """The histogram as bars, or the word that says more: constant, angle?."""
    if column.constant:
        return Text("constant", style="yellow")
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
        rows.add_row(kind, sentence)
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
