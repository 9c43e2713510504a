"""From flags to a training: read the data, and choose settings from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saqrl.datasets import Transitions
from saqrl.training.data import with_demonstrations
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.recipe import Choice, applies, recommended
from saqrl.training.settings import Settings, first_difference
from saqrl.training.train import read_data, saved_settings


def begun(
    settings: Settings,
    said: Mapping[str, Any],
    folder: Path,
    reporter: Reporter,
    data: Transitions | None = None,
) -> tuple[Settings, Transitions, tuple[Choice, ...]]:
    """Settings, data and the recipe's choices, which are printed.

    `settings` are those of the flags `said`. Their data are read here unless they are given;
    without a data set, demonstrations are collected into `folder`.
    """
    if data is None:
        settings = with_demonstrations(settings, folder, reporter)
        data = read_data(settings, reporter)
    if not applies(said):
        return settings, data, ()
    settings, data, choices = recommended(data, {**said, "dataset": settings.data.dataset})
    for choice in choices:
        reporter.say(f"recipe: {choice}")
    return settings, data, choices


def resumed(run: Path, said: Mapping[str, Any]) -> Settings:
    """The settings of a run to resume; ValueError if a flag contradicts them."""
    saved = saved_settings(run)
    if difference := first_difference(saved, settings_from(said, base=saved)):
        raise ValueError(f"--resume: {difference}: remove that flag, or choose another --out")
    return saved
