"""What a comparison showed: tables with intervals, plots, as Markdown and as one HTML page.

Follows Agarwal et al. 2021 (arXiv 2108.13264): interquartile means with stratified bootstrap
intervals, probability of improvement. The page holds its images and asks no network for anything.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.arrays import write_atomically
from saqrl.studies import plots
from saqrl.studies.compare import COMPARABLE, TABLE, collect_rows, read_table
from saqrl.studies.ranking import LeftOut, Valued, comparable, correlation, played
from saqrl.studies.statistics import (
    Estimate,
    interquartile_mean,
    interquartile_mean_interval,
    probability_of_improvement,
    tasks_in_common,
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading with text, then a table, then a picture, where there are any."""

    title: str
    text: str = ""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    picture: tuple[str, bytes] | None = None
    """File name and PNG."""


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a comparison's folder, of a table file, or of the runs below a folder.

    FileNotFoundError where there is nothing; ValueError where nothing has finished.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    table = path / TABLE if path.is_dir() else path
    rows = read_table(table) if table.exists() else list(collect_rows(path))
    if not rows:
        raise ValueError(f"{path} holds no finished run to report")
    return rows


def write_report(
    rows: Sequence[Row], folder: Path, *, title: str, more: Sequence[Section] = ()
) -> tuple[Path, Path]:
    """Write report.md with its PNGs and report.html into `folder`; the two paths.

    `more` stands first. Without it ValueError where no run was scored.
    """
    scored = not more or any("error" not in row for row in rows)
    contents = [*more, *(sections(rows) if scored else [])]
    folder.mkdir(parents=True, exist_ok=True)
    for section in contents:
        if section.picture:
            name, png = section.picture
            write_atomically(folder / name, png)
    markdown, page = folder / "report.md", folder / "report.html"
    write_atomically(markdown, to_markdown(title, contents).encode())
    write_atomically(page, to_html(title, contents).encode())
    return markdown, page


def sections(rows: Sequence[Row]) -> list[Section]:
    """Everything that the rows support, the summary first."""
    finished = [row for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row]
    if not finished:
        raise ValueError("no run has finished: nothing to report yet")
    scores = scores_of(finished)
    shown = plots.colours(scores)
    found = [_per_task(finished, scores)]
    comparable = {row["task"] for row in finished if row["measure"] in COMPARABLE}
    found += _overall(scores, comparable, shown)
    found += _improvement(scores, shown)
    # One method alone is nothing to compare, one evaluation alone no curve.
    contested = [row for row in finished if _methods_on(row["task"], scores) > 1]
    if contested:
        found.append(_bars(contested, scores, shown))
    if longer := [row for row in contested or finished if len(row["curve"]) > 1]:
        found.append(_curves(longer, shown))
    found += _codes(finished)
    found.append(_protocol(finished, failed))
    return found


def scores_of(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Scores by method and task, in order of seed."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        scores.setdefault(row["method"], {}).setdefault(row["task"], []).append(row["score"])
    order = dict.fromkeys(row["method"] for row in rows)
    return {method: scores[method] for method in order}


def _per_task(rows: Sequence[Row], scores: Mapping[str, Mapping[str, list[float]]]) -> Section:
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        best = max(interquartile_mean(scores[m][task]) for m in {row["method"] for row in here})
        for method in dict.fromkeys(row["method"] for row in here):
            runs = [row for row in here if row["method"] == method]
            estimate = interquartile_mean_interval({task: scores[method][task]})
            lines.append(
                (
                    task,
                    method,
                    ("**{}**" if estimate.value == best else "{}").format(_interval(estimate)),
                    runs[0]["measure"],
                    str(len(runs)),
                    f"{max(row['curve'][-1][0] for row in runs):,}",
                    f"{interquartile_mean([row['best'] for row in runs]):.1f}",
                    f"{np.mean([row['wall_seconds'] for row in runs]):.0f} s",
                )
            )
    return Section(
        "Scores",
        "Interquartile mean over seeds (of fewer than four their plain mean) of the mean over a "
        "run's last evaluations, with a 95 % bootstrap interval where there is more than one seed "
        "(of two or three it only spans the lowest and the highest). "
        '"Best" is the best single evaluation of each run: it is chosen with knowledge of the '
        "scores, so compare it only with figures that were chosen so too. Steps are those of the "
        "agent; quantizer and prior have theirs besides.",
        ("data", "method", "score [95 %]", "measure", "seeds", "steps", "best", "time of a run"),
        tuple(lines),
    )


def _overall(
    scores: Mapping[str, Mapping[str, list[float]]],
    comparable: set[str],
    shown: Mapping[str, str],
) -> list[Section]:
    # One that was tried on a few data sets only would leave no more than those to all others.
    most = max(len(by_task) for by_task in scores.values())
    rare = [method for method, by_task in scores.items() if 2 * len(by_task) < most]
    kept = {method: by_task for method, by_task in scores.items() if method not in rare}
    averageable = [
        {task: seeds for task, seeds in by_task.items() if task in comparable}
        for by_task in kept.values()
    ]
    tasks = tasks_in_common(averageable)
    if not tasks:
        return []
    estimates = {
        method: interquartile_mean_interval({task: by_task[task] for task in tasks})
        for method, by_task in kept.items()
    }
    once = [
        task
        for task in averageable[0]
        if task not in tasks and all(task in by_task for by_task in averageable)
    ]
    text = f"Interquartile mean over the seeds of {', '.join(tasks)}: the data sets on which "
    if all(estimate.has_interval for estimate in estimates.values()):
        text += (
            "every method has finished at least two seeds. Each weighs the same, however many "
            "seeds it has; seeds are drawn anew within each for the intervals, which say how the "
            "figure would vary with other seeds of these data sets, not with other data sets."
        )
    else:
        text += (
            "every method has finished. Each weighs the same, however many seeds it has. On none "
            "of them has every method two seeds: only one that has two on each has an interval."
        )
    if once:
        text += f" Left out, with a single seed of some method: {', '.join(once)}."
    if rare:
        text += f" Tried on too few data sets: {', '.join(rare)}."
    return [
        Section(
            "All data sets together",
            text,
            ("method", "score [95 %]"),
            tuple((method, _interval(estimate)) for method, estimate in estimates.items()),
            ("overall.png", plots.intervals(estimates, label="interquartile mean", shown=shown)),
        )
    ]


def _improvement(
    scores: Mapping[str, Mapping[str, list[float]]], shown: Mapping[str, str]
) -> list[Section]:
    lines = []
    estimates: dict[str, Estimate] = {}
    of_pair: dict[str, str] = {}
    for ours in (method for method in scores if method.startswith("saq-")):
        for theirs in (method for method in scores if not method.startswith("saq-")):
            tasks = tasks_in_common((scores[ours], scores[theirs]))
            if not tasks:
                continue
            runs = (sum(len(scores[m][task]) for task in tasks) for m in (ours, theirs))
            estimate = probability_of_improvement(scores[ours], scores[theirs])
            if ours.split("-")[1] == theirs:  # the picture shows each method over its counterpart
                estimates[f"{ours} > {theirs}"] = estimate
                of_pair[f"{ours} > {theirs}"] = shown[ours]
            probability = _interval(estimate, digits=2)
            lines.append((ours, theirs, probability, str(len(tasks)), "{} : {}".format(*runs)))
    if not lines:
        return []
    return [
        Section(
            "Probability of improvement",
            "How probably a run of the first method scores higher than one of the second on the "
            "same data, averaged over data sets (ties count one half); 0.5 is no difference. Data "
            "sets where either has a single run are left out, unless there is no other: then the "
            "probability rests on as many runs of each as stand beside it, without an interval.",
            ("method", "over", "probability [95 %]", "data sets", "runs"),
            tuple(lines),
            _improvement_picture(estimates, of_pair),
        )
    ]


def _improvement_picture(
    estimates: Mapping[str, Estimate], shown: Mapping[str, str]
) -> tuple[str, bytes] | None:
    if not estimates:
        return None
    label = "probability of improvement"
    return "improvement.png", plots.intervals(estimates, label=label, shown=shown, centre=0.5)


def _methods_on(task: str, scores: Mapping[str, Mapping[str, list[float]]]) -> int:
    return sum(task in by_task for by_task in scores.values())


def _bars(
    rows: Sequence[Row],
    scores: Mapping[str, Mapping[str, list[float]]],
    shown: Mapping[str, str],
) -> Section:
    panels: dict[str, dict[str, Estimate]] = {}
    labels = {}
    for row in rows:
        task, method = row["task"], row["method"]
        labels[task] = row["measure"]
        panels.setdefault(task, {})[method] = interquartile_mean_interval(
            {task: scores[method][task]}
        )
    return Section(
        "Each data set",
        "Interquartile means, with 95 % intervals where there is more than one seed.",
        picture=("bars.png", plots.bars(panels, labels=labels, shown=shown)),
    )


def _curves(rows: Sequence[Row], shown: Mapping[str, str]) -> Section:
    panels: dict[str, dict[str, list[list[tuple[int, float]]]]] = {}
    labels = {}
    for row in rows:
        labels[row["task"]] = row["measure"]
        of_task = panels.setdefault(row["task"], {})
        of_task.setdefault(row["method"], []).append([(s, v) for s, v in row["curve"]])
    return Section(
        "Learning curves",
        "Mean over seeds at each evaluation; the band spans the lowest and the highest seed (left "
        f"out where more than {plots.MOST_BANDS} methods would hide each other).",
        picture=("curves.png", plots.curves(panels, labels=labels, shown=shown)),
    )


def _codes(rows: Sequence[Row]) -> list[Section]:
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        reports = {
            row["seed"]: row["quantizer"]
            for row in rows
            if row["task"] == task and row["quantizer"]
        }
        if reports:
            values = list(reports.values())
            lines.append(
                (
                    task,
                    f"{100 * np.mean([r['error_per_deviation'] for r in values]):.1f} %",
                    f"{np.mean([r['perplexity'] for r in values]):.1f}",
                    f"{100 * np.mean([r['prior_accuracy'] for r in values]):.0f} %",
                    values[0]["measured_on"],
                )
            )
    if not lines:
        return []
    return [
        Section(
            "Codes",
            "How well the codes stand for the actions: root mean square error as a share of the "
            "actions' deviation, exp of the codes' entropy, and how often the most probable code "
            "is the right one. Means over seeds.",
            ("data", "error", "perplexity", "prior accuracy", "measured on"),
            tuple(lines),
        )
    ]


def _protocol(finished: Sequence[Row], failed: Sequence[Row]) -> Section:
    episodes = sorted({row["episodes"] for row in finished})
    averaged = sorted({row["averaged"] for row in finished})
    versions: dict[str, set[str]] = {}
    for row in finished:
        for name, version in row["versions"].items():
            versions.setdefault(name, set()).add(version)
    text = (
        f"{len(finished)} finished runs, {len(failed)} failed. A score averages the last "
        f"{_listed(averaged)} evaluations of {_listed(episodes)} episodes each. Versions: "
        + ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in versions.items())
        + "."
    )
    lines = tuple(
        (row["task"], row["method"], str(row["seed"]), _cell(row["error"])) for row in failed
    )
    header = ("data", "method", "seed", "failed with") if failed else ()
    return Section("How it was measured", text, header, lines)


def offline_sections(valued: Sequence[Valued], left_out: Sequence[LeftOut]) -> list[Section]:
    """Runs in the order of their value by the data alone, and how well that order was right."""
    found = []
    for (task, discount), runs in comparable(valued).items():
        known = played(runs)
        order = sorted(known, key=lambda v: -float(v.return_mean or 0))
        lines = [
            (
                str(place),
                v.name,
                f"{v.estimate.value:.5g} [{v.estimate.low:.5g}, {v.estimate.high:.5g}]",
                f"{v.estimate.spread:.2g}",
                "" if v.return_mean is None else f"{v.return_mean:.4g}",
                str(order.index(v) + 1) if v in order else "",
            )
            for place, v in enumerate(runs, start=1)
        ]
        text = (
            "Fitted Q evaluation (Le et al. 2019, arXiv 1903.08738), the expectation over codes "
            f"exact: discounted reward (discount {discount:g}) from the first states of the "
            f"data's episodes, whose own episodes have {runs[0].estimate.data_value:.4g}. The "
            "95 % bootstrap interval is over those states; it does not cover what the fit itself "
            "gets wrong, of which the deviation between the Q networks tells a part. "
        )
        rho = correlation(runs)
        if rho is not None:
            text += (
                f"Spearman's rank correlation with the return in the environment is {rho:.2f} over "
                f"{len(known)} policies."
            )
        elif known:
            text += "Too few different returns in an environment to compare the order with."
        header = ("rank", "policy", "value [95 %]", "networks", "return played", "its rank")
        found.append(Section(f"Worth by the data alone: {task}", text, header, tuple(lines)))
    if left_out:
        lines_left = tuple((run, _cell(reason)) for run, reason in left_out)
        found.append(Section("Not valued by the data", "", ("run", "because"), lines_left))
    return found


def to_markdown(title: str, contents: Sequence[Section]) -> str:
    parts = [f"# {title}"]
    for section in contents:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        if section.rows:
            rule = "|" + "---|" * len(section.header)
            lines = [_bar_separated(row) for row in section.rows]
            parts.append("\n".join([_bar_separated(section.header), rule, *lines]))
        if section.picture:
            parts.append(f"![{section.title}]({section.picture[0]})")
    return "\n\n".join(parts) + "\n"


def to_html(title: str, contents: Sequence[Section]) -> str:
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in contents:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.text:
            body.append(f"<p>{html.escape(section.text)}</p>")
        if section.rows:
            header = "".join(f"<th>{html.escape(word)}</th>" for word in section.header)
            lines = "\n".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in section.rows)
            body.append(
                '<div class="wide"><table>\n'
                f"<thead><tr>{header}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
            )
        if section.picture:
            encoded = base64.b64encode(section.picture[1]).decode()
            alt = html.escape(section.title)
            body.append(f'<img alt="{alt}" src="data:image/png;base64,{encoded}">')
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2129; background: #fff }
h1 { font-size: 1.7rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p { max-width: 46rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e6ea }
th { font-weight: 600; border-bottom: 2px solid #9aa3ad; white-space: nowrap }
img { max-width: 100%; height: auto; margin: 1rem 0 }
"""


def _interval(estimate: Estimate, *, digits: int = 1) -> str:
    if not estimate.has_interval:
        return f"{estimate.value:.{digits}f}"
    value, low, high = (f"{number:.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def _cell(text: str) -> str:
    return text if len(text) < 200 else text[:197] + "..."


def _bar_separated(row: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in row) + " |"


def _html_cell(text: str) -> str:
    bold = text.startswith("**") and text.endswith("**")
    inside = html.escape(text.strip("*") if bold else text)
    return f"<td><b>{inside}</b></td>" if bold else f"<td>{inside}</td>"
