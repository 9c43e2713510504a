"""`saqrl report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from saqrl.commands.output import print_json, say
from saqrl.experiment.report import load_rows, write_report


@dataclass
class Report:
    """Tables, intervals and plots of a comparison, as Markdown and one HTML page."""

    folder: Annotated[str, tyro.conf.Positional]
    """what saqrl compare wrote, its table.jsonl, or a folder with runs below"""
    out: str | None = None
    """folder for report.md, report.html and the plots; default: report/ beside the table"""
    title: str | None = None
    """of the page"""
    json: bool = False
    """last line of stdout: where the report is, as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = tyro.cli(
        Report,
        args=list(arguments),
        prog="saqrl report",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    source = Path(asked.folder)
    rows = load_rows(source)
    beside = source if source.is_dir() else source.parent
    out = Path(asked.out) if asked.out else beside / "report"
    title = asked.title or f"Comparison: {beside.resolve().name}"
    markdown, page = write_report(rows, out, title=title)
    failed = sum("error" in row for row in rows)
    say(f"{len(rows) - failed} runs, {failed} failed")
    say(f"report: {page}")
    if asked.json:
        print_json({"html": str(page), "markdown": str(markdown), "runs": len(rows) - failed})
    return 0
