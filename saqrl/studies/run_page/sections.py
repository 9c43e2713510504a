"""A run's evidence as sections of its page."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saqrl.studies.charts import Bars, Dots, Hover, Line, chart
from saqrl.studies.page import Section
from saqrl.studies.run_page.evidence import (
    EPISODES,
    PHASES,
    Evidence,
    Traced,
    Ways,
    action_names,
)
from saqrl.training.evaluation import measure_of

# Dimensions of an action that get charts, and codes that get bars.
MOST_DIMENSIONS, MOST_BARS = 14, 96
# Ways that are drawn of one state, and the probability from which an action is worth a dot.
MOST_WAYS, PROBABLE = 6, 0.05
# Metrics of a stage that are drawn first; others follow up to so many.
FIRST = (
    *("reconstruction", "held_out_reconstruction", "cross_entropy", "squared_error"),
    *("log_likelihood", "bellman_error", "value_loss", "perplexity", "codes_used"),
)
MOST_METRICS = 4
# Fields of an evaluation that are drawn, with their words.
MEASURES = {
    "success_rate": "success rate",
    "max_reward_mean": "highest reward",
    "normalized_score": "D4RL score",
    "return_mean": "return",
}
STAGES = ("quantizer", "prior", "agent", "baseline")


def recipe(config: Mapping[str, Any]) -> Iterator[Section]:
    """What the recipe chose, with its reasons."""
    chosen = [each for each in config.get("recipe") or () if isinstance(each, Mapping)]
    rows = tuple(
        (
            f"--{str(each.get('flag', '')).replace('_', '-')}",
            _value(each.get("value")),
            str(each.get("reason", "")),
        )
        for each in chosen
    )
    if rows:
        yield Section(
            "Chosen from the data",
            "Settings that the recipe chose, because no flag set them; flags always win.",
            header=("setting", "value", "because"),
            rows=rows,
        )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)


def along_episodes(own: Evidence, beside: Evidence | None, *, held_out: bool) -> Iterator[Section]:
    """Recorded against predicted actions, dimension by dimension."""
    legend = [("recorded", "recorded"), ("policy", "policy, most probable")]
    text = (
        "The policy gets the recorded observations and decides at the steps at which it would "
        "decide. Its actions are plotted with the recorded ones, in the robot's units. "
    )
    if own.quantized:
        text += "Dots are other actions that it may take; the darker, the more probable. "
    if beside is not None:
        legend.append(("baseline", "continuous BC"))
    names = action_names(own.log)
    if len(names) > MOST_DIMENSIONS:
        text += f"The first {MOST_DIMENSIONS} of {len(names)} dimensions. "
    if not held_out:
        text += "No episode is held out: the policy was trained on these. "
    folded = []
    for place, (word, episode) in enumerate(own.shown_episodes()[:EPISODES]):
        found = own.traced(episode)
        other = beside.traced(episode) if beside is not None else None
        drawings = _traces(found, other, names, own.log.control_rate)
        title = f"{word} episode (number {episode + 1} of {own.log.num_episodes})"
        if place == 0:
            yield Section(
                "Recorded and predicted actions",
                text=f"{text}This is a {title}.",
                legend=legend,
                drawings=drawings,
            )
        else:
            folded.append(Section(f"The {title}", legend=legend, drawings=drawings))
    if folded:
        yield Section(folded=folded)


def _traces(
    found: Traced, beside: Traced | None, names: Sequence[str], rate: float | None
) -> list[str]:
    steps = np.arange(len(found.recorded))
    times = steps / rate if rate else steps
    drawings = []
    for column, name in enumerate(names[:MOST_DIMENSIONS]):
        recorded, likeliest = found.recorded[:, column], found.likeliest[:, column]
        marks: list[Any] = []
        step, atom = np.nonzero(found.probabilities[:, 1:] >= PROBABLE)
        if len(step):
            shades = np.minimum(found.probabilities[step, atom + 1] * 1.5, 0.8)
            values = found.atoms[step, atom + 1, column]
            marks.append(Dots(times[step].tolist(), values.tolist(), "policy", shades.tolist()))
        if beside is not None:
            line = beside.likeliest[:, column].tolist()
            marks.append(Line(times.tolist(), line, "baseline", 0.8, 1.1))
        marks.append(Line(times.tolist(), recorded.tolist(), "recorded"))
        marks.append(Line(times.tolist(), likeliest.tolist(), "policy"))
        half = 0.5 / (rate or 1)
        stride = max(1, -(-len(steps) // 48))
        hovers = [
            Hover(
                float(times[s] - half),
                float(times[min(s + stride, len(steps)) - 1] + half),
                f"step {s}{f' ({times[s]:.2f} s)' if rate else ''}: recorded {recorded[s]:.4g}, "
                f"policy {likeliest[s]:.4g}",
            )
            for s in range(0, len(steps), stride)
        ]
        axis = "time (s)" if rate else "step"
        drawings.append(chart(marks, title=name, x=axis, hovers=hovers))
    return drawings


def several_ways(own: Evidence) -> Iterator[Section]:
    """States in which the policy may go one way or another."""
    if not own.quantized:
        return
    found = own.ways()
    if not found:
        return
    names = action_names(own.log)
    folded = [
        Section(
            f"Episode {ways.episode + 1}, step {ways.step}: {_probabilities(ways)}",
            legend=(("recorded", "recorded"), ("policy", "possible actions of the policy")),
            drawings=_drawn_ways(ways, names),
        )
        for ways in found
    ]
    text = (
        "Recorded states in which the probable actions of the policy differ most. Each line or "
        "dot is the decoded action of one code, the stronger the more probable; regression would "
        "play something between them."
    )
    yield Section(
        "One state, several ways",
        text=text + f" {folded[0].title}.",
        legend=folded[0].legend,
        drawings=folded[0].drawings,
    )
    yield Section(folded=folded[1:])


def _probabilities(ways: Ways) -> str:
    told = [f"{100 * p:.0f} %" for p in ways.probabilities[:MOST_WAYS] if p >= 0.005]
    return f"the most probable codes have {', '.join(told)}"


def _drawn_ways(ways: Ways, names: Sequence[str]) -> list[str]:
    """In the plane where an action has two dimensions, and dimension by dimension."""
    order = list(range(min(MOST_WAYS, len(ways.probabilities))))[::-1]
    chance = [float(p) for p in ways.probabilities]
    told = [f"{100 * p:.1f} %" for p in chance]
    if ways.codes is not None:
        told = [f"code {code}: {words}" for code, words in zip(ways.codes, told, strict=False)]
    shades = [0.25 + 0.75 * p / chance[0] for p in chance]
    chunk, recorded = ways.chunks.shape[1], ways.recorded
    drawings = []
    if recorded.shape[1] == 2:
        if chunk == 1:
            dots = ways.chunks[order, 0]
            marks: list[Any] = [
                Dots(
                    dots[:, 0].tolist(),
                    dots[:, 1].tolist(),
                    "policy",
                    [shades[k] for k in order],
                    5,
                    [told[k] for k in order],
                ),
                Dots(
                    [float(recorded[0, 0])],
                    [float(recorded[0, 1])],
                    "recorded",
                    1.0,
                    4,
                    ["recorded"],
                ),
            ]
        else:
            marks = [
                Line(
                    ways.chunks[k, :, 0].tolist(),
                    ways.chunks[k, :, 1].tolist(),
                    "policy",
                    shades[k],
                    1 + 4 * chance[k],
                    told=told[k],
                    ends=True,
                )
                for k in order
            ]
            first, second = (recorded[:, column].tolist() for column in (0, 1))
            marks.append(Line(first, second, "recorded", told="recorded", ends=True))
        drawings.append(chart(marks, title="in the plane", x=names[0], y=names[1], square=True))
    for column, name in enumerate(names[:MOST_DIMENSIONS]):
        if chunk == 1:
            values = [float(ways.chunks[k, 0, column]) for k in order]
            stems: list[Any] = [
                Line([v, v], [0, chance[k]], "policy", 1.0, 3, told=told[k])
                for k, v in zip(order, values, strict=True)
            ]
            mark = float(recorded[0, column])
            stems.append(
                Line(
                    [mark, mark],
                    [0, chance[0]],
                    "recorded",
                    dashed=True,
                    told=f"recorded: {mark:.4g}",
                )
            )
            drawings.append(chart(stems, title=name, x="value", y="probability", from_zero=True))
            continue
        steps = list(range(chunk))
        lines = [
            Line(
                steps,
                ways.chunks[k, :, column].tolist(),
                "policy",
                shades[k],
                1 + 4 * chance[k],
                told=told[k],
            )
            for k in order
        ]
        lines.append(Line(steps, recorded[:, column].tolist(), "recorded", told="recorded"))
        drawings.append(chart(lines, title=name, x="steps ahead"))
    return drawings


def code_usage(own: Evidence, report: Mapping[str, Any]) -> Iterator[Section]:
    """How often codes are recorded, and played."""
    if not own.quantized:
        return
    recorded, played = own.usage
    order = np.argsort(-recorded, kind="stable")[:MOST_BARS]
    places = list(range(len(order)))
    told = [
        f"code {code}: {100 * recorded[code]:.1f} % recorded, {100 * played[code]:.1f} % played"
        for code in order
    ]
    marks: list[Any] = [
        Bars(places, (100 * recorded[order]).tolist(), "recorded", told=told),
        Dots(places, (100 * played[order]).tolist(), "policy", 1.0, 2.2, told),
    ]
    used, codes = int((recorded > 0).sum()), len(recorded)
    text = f"{used} of {codes} codes are used for the recorded actions"
    if "error_per_deviation" in report:
        share = 100 * report["error_per_deviation"]
        text += f"; the error of their decoded actions is {share:.0f} % of the actions' deviation"
    text += ". If a bar and its dot differ much, the policy prefers other actions than the data."
    if codes > MOST_BARS:
        text += f" The plot shows the {MOST_BARS} most used codes."
    yield Section(
        "How often each code is used",
        text=text,
        legend=(("recorded", "in the data"), ("policy", "by the policy")),
        drawings=(chart(marks, title="share of decisions", x="codes, by use in the data", y="%"),),
    )


def by_phase(own: Evidence, beside: Evidence | None) -> Iterator[Section]:
    """Where in an episode the policy goes wrong, and by how much in the robot's units."""
    names, centres = action_names(own.log), [(k + 0.5) * 100 / PHASES for k in range(PHASES)]
    other = own if beside is None else beside
    sides: list[tuple[Evidence, Any]] = [(own, "policy")]
    if beside is not None:
        sides.append((beside, "baseline"))
    whole = [Line(centres, each.by_phase(each.distances[0]), look) for each, look in sides]
    whole.append(Line(centres, own.by_phase(own.distances[1]), "recorded", dashed=True))
    drawings = [
        chart(
            whole,
            title="distance over all dimensions, in ranges",
            x="% of the episode",
            from_zero=True,
            hovers=_phase_hovers(whole),
        )
    ]
    for column, name in enumerate(names[:MOST_DIMENSIONS]):
        lines = [
            Line(
                centres,
                [math.sqrt(v) for v in each.by_phase(np.square(each.errors[:, column]))],
                look,
            )
            for each, look in sides
        ]
        drawings.append(
            chart(
                lines,
                title=name,
                x="% of the episode",
                y="error",
                from_zero=True,
                hovers=_phase_hovers(lines),
            )
        )
    header = ("", "error", "deviation of the data", "share")
    rows = tuple(
        (name, f"{error:.3g}", f"{spread:.3g}", _percent(error, spread))
        + ((f"{plain:.3g}",) if beside is not None else ())
        for name, error, spread, plain in zip(
            names, own.error, own.deviation, other.error, strict=True
        )
    )
    many = len(names) > 5
    yield Section(
        "Errors from the beginning of an episode to its end",
        text=(
            "Root mean square difference of the most probable and the recorded action, in the "
            "robot's units. A peak shows a phase that needs more demonstrations, or another "
            "observation."
        ),
        legend=(
            ("policy", "policy"),
            *((("baseline", "continuous BC"),) if beside else ()),
            ("recorded", "dashed: repeating the last command"),
        ),
        header=header + (("continuous BC",) if beside is not None else ()),
        rows=rows,
        drawings=drawings[: 1 if many else None],
        folded=[Section("Each dimension", drawings=drawings[1:])] if many else (),
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole > 0 else "-"


def _phase_hovers(lines: Sequence[Line]) -> list[Hover]:
    half = 50 / PHASES
    names = {"policy": "policy", "baseline": "continuous BC", "recorded": "last command repeated"}
    return [
        Hover(
            lines[0].x[k] - half,
            lines[0].x[k] + half,
            f"{100 * k // PHASES} to {100 * (k + 1) // PHASES} %: "
            + ", ".join(f"{names[line.look]} {line.y[k]:.3g}" for line in lines),
        )
        for k in range(PHASES)
    ]


def learning_curves(
    metrics: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    env: str | None,
) -> Iterator[Section]:
    """Every stage's losses, and the scores on the way in `env`."""
    drawings = []
    played = {stage: [r for r in evaluations if r["stage"] == stage] for stage in STAGES}
    if len(played["agent"]) > 1 and env is not None:
        measure, _ = measure_of(env, dict.fromkeys(MEASURES) | dict(played["agent"][-1]))
        lines = [
            _history(played[stage], measure, look)
            for stage, look in (("agent", "policy"), ("baseline", "baseline"))
        ]
        title = f"{MEASURES[measure]} in the environment"
        drawings.append(chart(lines, title=title, x="steps of the agent"))
    stages = list(dict.fromkeys([*STAGES, *(str(r["stage"]) for r in metrics)]))
    for stage in stages:
        records = [record for record in metrics if record["stage"] == stage]
        names = dict.fromkeys(
            itertools.chain.from_iterable(record.keys() for record in records[:3] + records[-1:])
        )
        known = [n for n in (*FIRST, *names) if n in names and n not in ("stage", "step")]
        for name in list(dict.fromkeys(known))[:MOST_METRICS]:
            line = _history(records, name, "baseline" if stage == "baseline" else "policy")
            if len(line.x) > 1:
                title = f"{stage}: {name.replace('_', ' ')}"
                drawings.append(chart([line], title=title, x="steps"))
    if drawings:
        yield Section("Learning curves", drawings=drawings)


def _history(records: Sequence[Mapping[str, Any]], name: str, look: Any) -> Line:
    pairs = [
        (record["step"], float(record[name]))
        for record in records
        if type(record.get(name)) in (int, float) and type(record.get("step")) is int
    ]
    return Line([step for step, _ in pairs], [value for _, value in pairs], look)
