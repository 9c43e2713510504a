"""`saqrl report`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import Word, parse
from saqrl.training.progress import Reporter

if TYPE_CHECKING:
    from saqrl.studies.ranking import Valued


@dataclass
class Report:
    """Tables, intervals and plots of a comparison, as Markdown and one HTML page."""

    folder: Word
    """folder that saqrl compare wrote, its table.jsonl, or any folder with runs"""
    out: str | None = None
    """folder for report.md, report.html and plots; default: report/ next to the table"""
    title: str | None = None
    """title of the page"""
    offline: bool = False
    """rank runs, and policies kept with train --keep-every, by fitted Q evaluation (FQE) on the
    data"""
    offline_steps: int = 20_000
    """gradient steps of each estimate"""
    json: bool = False
    """last line of stdout: where the report is, as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Report, arguments)
    from saqrl.studies.fitted_q import FittedQ
    from saqrl.studies.report import load_rows, offline_sections, write_report
    from saqrl.studies.tuning import read_tuned, tuned_section

    source = Path(asked.folder)
    rows = load_rows(source)
    beside = source if source.is_dir() else source.parent
    out = Path(asked.out) if asked.out else beside / "report"
    title = asked.title or f"Comparison: {beside.resolve().name}"
    ranking, more = None, []
    if asked.offline:
        from saqrl.studies.ranking import value_runs

        if asked.offline_steps < 1:
            raise ValueError(f"offline-steps is {asked.offline_steps}; it must be at least 1")
        algorithm = FittedQ(steps=asked.offline_steps)
        valued, left_out = value_runs(beside, algorithm=algorithm, seed=0, reporter=Reporter())
        ranking, more = _ranking(valued), offline_sections(valued, left_out)
        for line in ranking:
            say(_words(line))
    tuned = tuned_section(read_tuned(beside))
    last = [] if tuned is None else [tuned]
    markdown, page = write_report(rows, out, title=title, more=more, last=last)
    failed = sum("error" in row and not row.get("unscored") for row in rows)
    unscored = sum("unscored" in row for row in rows)
    played = f", {unscored} of them without scores in a simulator" if unscored else ""
    count = len(rows) - failed
    say(f"{count} {'run' if count == 1 else 'runs'}{played}, {failed} failed")
    say(f"report: {page}")
    if asked.json:
        found = {"html": str(page), "markdown": str(markdown), "runs": len(rows) - failed}
        print_json(found | ({} if ranking is None else {"offline": ranking}))
    return 0


def _ranking(valued: "Sequence[Valued]") -> list[dict[str, Any]]:
    """A record for every data set and discount, the best run first."""
    from saqrl.studies.ranking import comparable, correlation

    return [
        {
            "data": task,
            "discount": discount,
            "rank_correlation": correlation(runs),
            "runs": [
                {"run": v.run, "step": v.step, "act": v.act}
                | {"return_mean": v.return_mean, **asdict(v.estimate)}
                for v in runs
            ],
        }
        for (task, discount), runs in comparable(valued).items()
    ]


def _words(record: Mapping[str, Any]) -> str:
    best, rho = record["runs"][0], record["rank_correlation"]
    which = best["run"] if best["step"] is None else f"{best['run']}, step {best['step']}"
    ordered = "" if rho is None else f"; rank correlation with the return played: {rho:.2f}"
    return (
        f"{record['data']}: best by the data is {which}, {best['value']:.4g} "
        f"[{best['low']:.4g}, {best['high']:.4g}]{ordered}"
    )
