"""The page of a run: what was trained, how good it is, and why. One file, no network access."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saqrl.arrays import write_atomically
from saqrl.datasets import Transitions
from saqrl.datasets.naming import dataset_name
from saqrl.policy import Policy
from saqrl.policy.side_by_side import SPEED
from saqrl.policy.storage import load_policy
from saqrl.records import read_regular
from saqrl.studies.page import Section, to_html
from saqrl.studies.run_page import sections
from saqrl.studies.run_page.evidence import Evidence
from saqrl.studies.run_page.film import FILM, leave_film
from saqrl.training.data import load_training_data
from saqrl.training.evaluation import measure_of
from saqrl.training.online.address import ROBOT
from saqrl.training.preparation import split
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import policy_folder, read_config, read_history, read_result
from saqrl.training.settings import Settings
from saqrl.training.summary import method_name, time_text
from saqrl.training.train import saved_settings

PAGE = "index.html"
# Of a film that a page holds: with base64 a third more.
LARGEST_FILM = 1_800_000
# Names and formats of the figures of a result.
FIGURES = {
    "success_rate": ("success", "{:.0%}"),
    "normalized_score": ("D4RL score", "{:.1f}"),
    "max_reward_mean": ("highest reward of an episode, mean", "{:.2f}"),
    "return_mean": ("return of an episode, mean", "{:,.4g}"),
    "held_out_skill": ("held-out actions: nearer than repeating the last command", "{:.0%}"),
    "held_out_action_error": ("held-out actions: greedy error / deviation", "{:.0%}"),
}

SKILL = (
    "nearer to held-out recorded actions than repeating the last command (100 %: it plays exactly "
    "the recorded actions; 0 % or less: it is not better than repeating the last command)"
)


def write_run_page(
    run: Path, data: Transitions | None = None, *, unfilmed: str | None = None
) -> Path:
    """Write index.html into the folder of a finished run; its path. `unfilmed`: why no rollouts.

    `data` are the run's own, read from their recorded path if not given. If they are missing, the
    page says so and shows the rest. Raises RunError or PolicyError if the run has not finished.
    """
    result, config = read_result(run), read_config(run)
    settings = saved_settings(run)
    policy = load_policy(policy_folder(run))
    missing, log, held_out = "", None, False
    try:
        data = load_training_data(run, settings, policy) if data is None else data
        training, kept = split(data, settings)
        log, held_out = (training, False) if kept is None else (kept, True)
    except (ValueError, OSError, ImportError) as error:
        missing = (
            f"The data cannot be read any more, so the page has no comparison with them: {error}"
        )
    own = Evidence(policy, log) if log is not None else None
    beside = None
    if log is not None and (run / "baseline" / "policy.json").is_file():
        with contextlib.suppress(ValueError):
            beside = Evidence(load_policy(run / "baseline"), log)
    found = [
        *_headline(result, settings, policy, own, config),
        *_film(run, result, unfilmed),
        *sections.recipe(config),
        *([Section(text=missing)] if missing else ()),
    ]
    if own is not None:
        found += sections.along_episodes(own, beside, held_out=held_out)
        found += sections.several_ways(own)
        found += sections.code_usage(own, result.get("quantizer") or {})
        found += sections.by_phase(own, beside)
    metrics, evaluations = (read_history(run, name) for name in ("metrics", "evaluations"))
    found += sections.learning_curves(metrics, evaluations, result["env"])
    found += _next(run, result, config)
    page = run / PAGE
    write_atomically(page, to_html(_title(result, config), found).encode())
    return page


def leave_page(
    run: Path, data: Transitions | None, reporter: Reporter, *, film: bool = True
) -> Path | None:
    """The page of a run that has just finished; if it cannot be made, a note is printed.

    film: first play and render a few episodes, for a run that this process has trained.

    The run is finished and saved, so a failure here must not look like a failed run.
    """
    if is_current(run):
        return run / PAGE
    try:
        unfilmed = leave_film(run, read_result(run)) if film else None
        return write_run_page(run, data, unfilmed=unfilmed)
    except Exception as error:
        reporter.say(f"note: the run has no page ({error}); to try again: saqrl view {run}")
        return None


def is_current(run: Path) -> bool:
    """Whether the page is there, and not older than the result that it shows."""
    page, result = run / PAGE, run / "result.json"
    if not (page.is_file() and result.is_file()):
        return False
    return page.stat().st_mtime >= result.stat().st_mtime


def _title(result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return f"{method_name(result)} on {dataset_name(result['dataset'] or result['env'] or 'data')}"


def _headline(
    result: Mapping[str, Any],
    settings: Settings,
    policy: Policy,
    own: Evidence | None,
    config: Mapping[str, Any],
) -> Iterator[Section]:
    held, tiles = config.get("data") or {}, []
    beside = result.get("baseline") or {}
    if result["env"] and result["return_mean"] is not None:
        measure, _ = measure_of(result["env"], result)
        episodes = f"{result['episodes']} episodes of {result['env']}, {result['act']}"
        tiles.append((_told(measure, result), f"{FIGURES[measure][0]}, over {episodes}"))
    if result.get("held_out_skill") is not None:
        tiles.append((_told("held_out_skill", result), SKILL))
    rows = [
        (FIGURES[name][0], _told(name, result)) + ((_told(name, beside),) if beside else ())
        for name in FIGURES
        if result.get(name) is not None
    ]
    text = f"{result['gradient_steps']:,} gradient steps"
    if "steps" in held and "episodes" in held:
        text += f" on {held['steps']:,} recorded steps of {held['episodes']:,} episodes"
    if settings.features.chunk > 1:
        text += (
            f"; decides {settings.features.chunk} actions at a time and plays "
            f"{settings.evaluation.action_horizon}"
        )
    if settings.quantized:
        text += f"; {settings.quantizer.codes} codes"
    header = ("", method_name(result), "continuous BC") if beside else ()
    yield Section(tiles=tiles, text=f"{text}.", header=header, rows=tuple(rows) if beside else ())


def _told(name: str, record: Mapping[str, Any]) -> str:
    if (value := record.get(name)) is None:
        return "-"
    return FIGURES[name][1].format(value).replace("%", " %").replace("-", "\N{MINUS SIGN}")


def _film(run: Path, result: Mapping[str, Any], unfilmed: str | None) -> Iterator[Section]:
    if result["env"] in (None, ROBOT):
        return
    film = b""
    with contextlib.suppress(ValueError, OSError):
        film = read_regular(run / FILM, at_most=LARGEST_FILM)
    if film:
        yield Section("Rollouts", f"In its environment, at {SPEED} times real speed.", film=film)
        return
    if (run / FILM).is_file():
        unfilmed = f"{FILM} is too large for a page"
    why = f"There is no video: {unfilmed}." if unfilmed else "There is no video."
    command = f"saqrl evaluate {run} --episodes 1 --video episode.mp4"
    yield Section("Rollouts", f"{why} To make one:", commands=(command,))


def _next(run: Path, result: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Section]:
    commands = {
        f"saqrl evaluate {run} --episodes 100": "",
        f"saqrl export {run} --out policy.onnx": "one file that needs no JAX",
        "saqrl serve policy.onnx": "answers a robot over a WebSocket",
        f"saqrl report {run.parent}": "compare all runs",
    }
    if result["env"] in (None, ROBOT):
        commands.pop(next(iter(commands)))
    width = max(map(len, commands))
    told = [f"{words:<{width}}  # {why}" if why else words for words, why in commands.items()]
    versions = ", ".join(f"{name} {found}" for name, found in config["versions"].items())
    text = f"Trained in {time_text(result).removeprefix('time: ')}. Versions: {versions}."
    yield Section("Next", text=text, commands=told)
