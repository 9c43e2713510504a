"""The report of a comparison: tables with intervals and plots.

Follows Agarwal et al. 2021 (arXiv 2108.13264): interquartile means with stratified bootstrap
intervals, probability of improvement.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saqrl.studies import plots
from saqrl.studies.page import Picture, Section, write_page
from saqrl.studies.ranking import LeftOut, Valued, comparable, correlation, played
from saqrl.studies.statistics import (
    FEWEST_SEEDS,
    Estimate,
    Scores,
    interquartile_mean,
    interquartile_mean_interval,
    probability_of_improvement,
    tasks_in_common,
)
from saqrl.studies.table import COMPARABLE, TABLE, collect_rows, read_table

Row = Mapping[str, Any]
ByTask = Mapping[str, Sequence[Row]]
ScoresOfMethods = Mapping[str, Scores]
EstimatesOfTasks = Mapping[str, Mapping[str, Estimate]]
Colours = Mapping[str, str]


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a comparison's folder, of a table file, or of the runs below a folder.

    Raises FileNotFoundError if the path does not exist, ValueError if no run has finished.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    table = path / TABLE if path.is_dir() else path
    rows = read_table(table) if table.exists() else list(collect_rows(path))
    if not rows:
        raise ValueError(
            f"{path} holds no finished run; wait until a run has finished, or give another folder"
        )
    return rows


def write_report(
    rows: Sequence[Row],
    folder: Path,
    *,
    title: str,
    more: Sequence[Section] = (),
    last: Sequence[Section] = (),
) -> tuple[Path, Path]:
    """Write report.md with its PNGs and report.html into `folder`; the two paths.

    `more` comes first, `last` at the end. Without `more`, ValueError if no run was scored.
    """
    told = not more or any("error" not in row or row.get("unscored") for row in rows)
    contents = [*more, *(sections(rows) if told else []), *last]
    return write_page(folder, title, contents, names=("report.md", "report.html"))


def sections(rows: Sequence[Row]) -> list[Section]:
    """Everything that the rows support, the summary first.

    Runs without an environment have their held-out figures.
    """
    finished = [row for row in rows if "error" not in row]
    failed = [row for row in rows if "error" in row and not row.get("unscored")]
    beside = [section for section in (_held_out(rows), _differing(rows)) if section is not None]
    if not finished:
        if beside:
            return beside
        raise ValueError("no run has finished, so there is nothing to report yet")
    scores = scores_of(finished)
    shown = plots.colours(scores)
    # A comparison needs two methods, a curve two evaluations.
    by_task = _grouped(finished, "task")
    estimates = {
        task: {
            method: interquartile_mean_interval({task: scores[method][task]})
            for method in _grouped(here, "method")
        }
        for task, here in by_task.items()
    }
    contested = {task: here for task, here in by_task.items() if len(estimates[task]) > 1}
    comparable_tasks = {row["task"] for row in finished if row["measure"] in COMPARABLE}
    found = [
        _per_task(by_task, estimates),
        _overall(scores, comparable_tasks, _sources(finished), shown),
        _improvement(scores, shown),
        _bars(contested, estimates, scores, shown),
        _curves(contested or by_task, shown),
        *beside,
        _codes(by_task),
        _protocol(finished, failed),
    ]
    return [section for section in found if section is not None]


def scores_of(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Scores by method and task, in order of seed."""
    return {
        method: {
            task: [row["score"] for row in sorted(runs, key=lambda row: row["seed"])]
            for task, runs in _grouped(of_method, "task").items()
        }
        for method, of_method in _grouped(rows, "method").items()
    }


def _grouped(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """The rows by their value of a field, in the order of its first appearance."""
    return {
        value: [row for row in rows if row[name] == value]
        for value in dict.fromkeys(row[name] for row in rows)
    }


def _per_task(by_task: ByTask, estimates: EstimatesOfTasks) -> Section:
    lines = []
    for task, here in by_task.items():
        best = max(estimate.value for estimate in estimates[task].values())
        of_method = _grouped(here, "method")
        for method in sorted(of_method, key=lambda name: -estimates[task][name].value):
            runs, estimate = of_method[method], estimates[task][method]
            score = f"{estimate:.1f}"
            if not estimate.has_interval and len(runs) > 1:
                score += f" ({', '.join(format(row['score'], '.1f') for row in runs)})"
            lines.append(
                (
                    task,
                    method,
                    f"**{score}**" if estimate.value == best else score,
                    runs[0]["measure"],
                    str(len(runs)),
                    *_steps(runs),
                    f"{interquartile_mean([row['best'] for row in runs]):.1f}",
                    f"{np.mean([row['wall_seconds'] for row in runs]):.0f} s",
                )
            )
    return Section(
        "Scores",
        "Interquartile mean over seeds (with fewer than four: their mean) of the final "
        f"policies. In brackets: with {FEWEST_SEEDS} or more seeds a 95 % bootstrap interval "
        "(for five seeds of one data set it covers about 87 %), with fewer the seeds themselves. "
        '"Best" is the best single evaluation of each run: it is chosen with knowledge of the '
        "scores, so compare it only with figures chosen in the same way. Steps are those of the "
        "agent, and of its prior if it has one, which acts too; a quantizer's are in a separate "
        "column.",
        header=(
            *("data", "method", "score [95 %] (seeds)", "measure"),
            *("seeds", "steps", "quantizer", "best", "time of a run"),
        ),
        rows=tuple(lines),
    )


def _steps(runs: Sequence[Row]) -> tuple[str, str]:
    """Gradient steps of everything that acts, and of the quantizer; '' if not recorded."""
    most = max(runs, key=lambda row: int(row["curve"][-1][0]))
    beside = most.get("steps_beside", {})
    steps = f"{most['curve'][-1][0]:,}"
    if prior := beside.get("prior"):
        steps += f" + {prior:,}"
    return steps, f"{beside['quantizer']:,}" if beside.get("quantizer") else ""


def _without_best(method: str, scores: ScoresOfMethods, sources: Mapping[str, str]) -> str:
    """The overall figure without the source on which it is farthest above the others' mean."""
    tasks = list(scores[method])
    others = [by_task for name, by_task in scores.items() if name != method]
    if len({sources[task] for task in tasks}) < 2 or not others:
        return "-"

    def lead(task: str) -> float:
        theirs = [interquartile_mean(by_task[task]) for by_task in others]
        return interquartile_mean(scores[method][task]) - float(np.mean(theirs))

    best = sources[max(tasks, key=lead)]
    left = {task: seeds for task, seeds in scores[method].items() if sources[task] != best}
    return f"{interquartile_mean_interval(left, sources=sources).value:.1f} (without {best})"


def _sources(rows: Sequence[Row]) -> dict[str, str]:
    """Task -> the first task that was read from the same data."""
    first: dict[str, str] = {}
    return {
        row["task"]: first.setdefault(str(row.get("dataset") or row["task"]), row["task"])
        for row in rows
    }


def _overall(
    scores: ScoresOfMethods, comparable: set[str], sources: Mapping[str, str], shown: Colours
) -> Section | None:
    # A method tried on only a few data sets would reduce the common data sets to these.
    most = max(len(by_task) for by_task in scores.values())
    rare = [method for method, by_task in scores.items() if 2 * len(by_task) < most]
    averageable = {
        method: {task: seeds for task, seeds in by_task.items() if task in comparable}
        for method, by_task in scores.items()
        if method not in rare
    }
    tasks = tasks_in_common(averageable.values())
    if not tasks:
        return None
    shown_tasks = {m: {task: by[task] for task in tasks} for m, by in averageable.items()}
    estimates = {
        method: interquartile_mean_interval(by_task, sources=sources)
        for method, by_task in shown_tasks.items()
    }
    estimates = dict(sorted(estimates.items(), key=lambda item: -item[1].value))
    shared = set.intersection(*map(set, averageable.values()))
    once = [task for task in next(iter(averageable.values())) if task in shared - set(tasks)]
    text = f"Interquartile mean over the seeds of {', '.join(tasks)}: the data sets on which "
    if all(estimate.has_interval for estimate in estimates.values()):
        text += (
            "every method has finished several seeds. All data sets have the same weight, whatever "
            "their number of seeds. For the intervals, seeds are resampled within each data set: "
            "they say how the figure varies with other seeds, not with other data sets."
        )
    else:
        text += (
            "every method has finished. All data sets have the same weight, whatever their number "
            f"of seeds. Only a method with {FEWEST_SEEDS} or more seeds on each has an interval."
        )
    if len({sources[task] for task in tasks}) < len(tasks):
        text += " Data sets of one source share one weight."
    if once:
        text += f" Left out, because a method has a single seed: {', '.join(once)}."
    if rare:
        text += f" Methods left out, because they have too few data sets: {', '.join(rare)}."
    drawn = plots.intervals(estimates, label="interquartile mean", shown=shown)
    return Section(
        "All data sets together",
        text,
        header=("method", "score [95 %]", "without its most favourable source"),
        rows=tuple(
            (method, f"{estimate:.1f}", _without_best(method, shown_tasks, sources))
            for method, estimate in estimates.items()
        ),
        pictures=(Picture("overall.png", drawn),),
    )


def _improvement(scores: ScoresOfMethods, shown: Colours) -> Section | None:
    lines, pairs = [], {}
    ours_and_theirs = itertools.product(
        (method for method in scores if method.startswith("saq-")),
        (method for method in scores if not method.startswith("saq-")),
    )
    for ours, theirs in ours_and_theirs:
        tasks = tasks_in_common((scores[ours], scores[theirs]))
        if not tasks:
            continue
        estimate = probability_of_improvement(scores[ours], scores[theirs])
        if ours.split("-")[1] == theirs:  # the picture shows each method over its counterpart
            pairs[f"{ours} > {theirs}"] = estimate, shown[ours]
        runs = " : ".join(str(sum(len(scores[m][t]) for t in tasks)) for m in (ours, theirs))
        lines.append((ours, theirs, f"{estimate:.2f}", str(len(tasks)), runs))
    if not lines:
        return None
    pictures = []
    if pairs:
        drawn = plots.intervals(
            {pair: estimate for pair, (estimate, _) in pairs.items()},
            label="probability of improvement",
            shown={pair: colour for pair, (_, colour) in pairs.items()},
            centre=0.5,
        )
        pictures.append(Picture("improvement.png", drawn))
    return Section(
        "Probability of improvement",
        "The probability that a run of the first method scores higher than one of the second on "
        "the same data, averaged over data sets (ties count one half); 0.5 is no difference. Data "
        "sets with a single run of either are left out, unless there are no others: then the "
        "probability has no interval, and the column of runs says on how many it is based.",
        header=("method", "over", "probability [95 %]", "data sets", "runs"),
        rows=tuple(lines),
        pictures=tuple(pictures),
    )


def _bars(
    by_task: ByTask, estimates: EstimatesOfTasks, scores: ScoresOfMethods, shown: Colours
) -> Section | None:
    if not by_task:
        return None
    panels = {task: estimates[task] for task in by_task}
    drawn = plots.bars(panels, scores=scores, labels=_measures(by_task), shown=shown)
    return Section(
        "Each data set",
        f"Interquartile means, with 95 % intervals for {FEWEST_SEEDS} or more seeds; of fewer, the "
        "seeds.",
        pictures=(Picture("bars.png", drawn),),
    )


def _curves(by_task: ByTask, shown: Colours) -> Section | None:
    panels: dict[str, dict[str, list[list[tuple[int, float]]]]] = {}
    for task, here in by_task.items():
        if longer := [row for row in here if len(row["curve"]) > 1]:
            by_method = _grouped(longer, "method")
            panels[task] = {m: [row["curve"] for row in runs] for m, runs in by_method.items()}
    if not panels:
        return None
    drawn = plots.curves(panels, labels=_measures(by_task), shown=shown)
    return Section(
        "Learning curves",
        "Mean over seeds at each evaluation; the band is from the lowest to the highest seed (left "
        f"out with more than {plots.MOST_BANDS} methods).",
        pictures=(Picture("curves.png", drawn),),
    )


def _measures(by_task: ByTask) -> dict[str, str]:
    return {task: here[0]["measure"] for task, here in by_task.items()}


def _held_out(rows: Sequence[Row]) -> Section | None:
    """Scores of single runs on their own held-out episodes, the best first."""
    told = [row for row in rows if row.get("held_out_action_error") is not None]
    if not told:
        return None
    told.sort(key=lambda row: -float(row.get("held_out_skill") or -1e9))
    by_task = _grouped(told, "task")
    return Section(
        "Held-out episodes",
        "Skill: by what share the possible actions of a policy are nearer to the recorded actions "
        "than repeating the last command; at 0 % they are not nearer. Error: root mean square of "
        "the greedy action, as a share of the actions' deviation; it ranks policies badly.",
        header=("data", "method", "seed", "skill", "error"),
        rows=tuple(
            (
                task,
                row["method"],
                str(row["seed"]),
                "-" if row["held_out_skill"] is None else f"{100 * row['held_out_skill']:.0f} %",
                f"{100 * row['held_out_action_error']:.0f} %",
            )
            for task, here in by_task.items()
            for row in here
        ),
    )


def _differing(rows: Sequence[Row]) -> Section | None:
    """All settings in which runs of one agent on one data set differ."""
    lines = {
        (row["task"], row["method"]): (
            row["task"],
            row["method"],
            ", ".join(f"{name}={value}" for name, value in row["differs"].items()),
            row["run"],
        )
        for row in reversed(rows)
        if row.get("differs")
    }
    if not lines:
        return None
    header = ("data", "method", "all that differs", "run")
    return Section("Settings", header=header, rows=tuple(reversed(lines.values())))


def _codes(by_task: ByTask) -> Section | None:
    lines = []
    for task, here in by_task.items():
        # Runs of one seed have their codes in common, but for those that were trained otherwise.
        ways: dict[str, dict[int, Any]] = {}
        for row in here:
            if row["quantizer"]:
                way = row["method"].partition(" (")[1:]
                ways.setdefault("".join(way), {})[row["seed"]] = row["quantizer"]
        for way, by_seed in ways.items():
            reports = list(by_seed.values())
            error, perplexity, accuracy = (
                np.mean([report[name] for report in reports])
                for name in ("error_per_deviation", "perplexity", "prior_accuracy")
            )
            shares = f"{100 * error:.1f} %", f"{perplexity:.1f}", f"{100 * accuracy:.0f} %"
            lines.append((f"{task}{way}", *shares, reports[0]["measured_on"]))
    if not lines:
        return None
    return Section(
        "Codes",
        "Quality of the codes: root mean square error of the decoded actions as a share of the "
        "actions' deviation, exp of the codes' entropy, and how often the most probable code "
        "is the data's code. Means over seeds.",
        header=("data", "error", "perplexity", "prior accuracy", "measured on"),
        rows=tuple(lines),
    )


def _protocol(finished: Sequence[Row], failed: Sequence[Row]) -> Section:
    versions: dict[str, set[str]] = {}
    for row in finished:
        for name, version in row["versions"].items():
            versions.setdefault(name, set()).add(version)
    episodes = " or ".join(map(str, sorted({row["episodes"] for row in finished})))
    earlier = sum(row.get("averaged", 1) > 1 for row in finished)
    told = f" (but {earlier} rows of an earlier version average several evaluations)"
    named = ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in versions.items())
    return Section(
        "How it was measured",
        f"{len(finished)} finished runs, {len(failed)} failed. A score is "
        f"the final policy's, of {episodes} episodes{told if earlier else ''}. Versions: {named}.",
        header=("data", "method", "seed", "failed with") if failed else (),
        rows=tuple(
            (row["task"], row["method"], str(row["seed"]), _cut(row["error"])) for row in failed
        ),
    )


def offline_sections(valued: Sequence[Valued], left_out: Sequence[LeftOut]) -> list[Section]:
    """Runs in the order of their FQE estimates, and how well that order was right."""
    found = []
    for (task, discount), runs in comparable(valued).items():
        known = played(runs)
        order = sorted(known, key=lambda v: -float(v.return_mean or 0))
        lines = [
            (
                str(place),
                v.name,
                f"{v.estimate.interval:.5g}",
                f"{v.estimate.spread:.2g}",
                "" if v.return_mean is None else f"{v.return_mean:.4g}",
                str(order.index(v) + 1) if v in order else "",
            )
            for place, v in enumerate(runs, start=1)
        ]
        text = (
            "Fitted Q evaluation (Le et al. 2019, arXiv 1903.08738) with an exact expectation over "
            f"codes: discounted reward (discount {discount:g}) from the first states of the "
            f"data's episodes, which themselves have {runs[0].estimate.data_value:.4g}. The "
            "95 % bootstrap interval is over those states; it does not include errors of the fit, "
            "which the deviation between the Q networks shows in part. "
        )
        rho = correlation(runs)
        if rho is not None:
            text += (
                f"Spearman's rank correlation with the return in the environment is {rho:.2f} over "
                f"{len(known)} policies."
            )
        elif known:
            text += "There are too few different returns in an environment to compare the order."
        header = ("rank", "policy", "value [95 %]", "networks", "return played", "its rank")
        found.append(Section(f"FQE estimates: {task}", text, header=header, rows=tuple(lines)))
    if left_out:
        skipped = tuple((run, _cut(reason)) for run, reason in left_out)
        found.append(Section("Runs without an estimate", header=("run", "because"), rows=skipped))
    return found


def _cut(text: str) -> str:
    return text if len(text) < 200 else text[:197] + "..."
