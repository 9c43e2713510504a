"""A log becomes what every stage of a run trains on."""

from collections.abc import Callable
from typing import Any

from saqrl.datasets import Transitions
from saqrl.training.engine import Rows, Stream
from saqrl.training.preparation import (
    Prepared,
    fit_scaling,
    part_rows,
    prepare,
    reward_factor,
    split,
)
from saqrl.training.settings import Settings
from saqrl.training.stream import Batched, Parts


class Features:
    """A log as the networks read it.

    Scaling and reward factor are fitted on the training episodes alone. Their rows are padded to
    the log's length, so that seeds, which hold out other episodes, share compiled programs.
    """

    def __init__(self, log: Transitions, settings: Settings):
        self.log, self.settings = log, settings
        training, self.held_out_log = split(log, settings)
        self.scaling = fit_scaling(training, settings)
        self.factor = factor = reward_factor(training, settings.features.reward_scale)
        self.training = prepare(training, settings, self.scaling, factor)
        self.held_out: Prepared | None = None
        if self.held_out_log is not None:
            self.held_out = prepare(self.held_out_log, settings, self.scaling, factor)
        self.parts: Parts | None = None
        if (rows := part_rows(log, settings)) is not None:
            self.parts = Parts(log, settings, self.scaling, factor, rows=rows)
        self.count = len(training)
        whole = self.parts is not None or self.count == len(log)
        self.padded = self.training if whole else self.training.padded(len(log))

    def columns(self, algorithm: Batched, build: Callable[[Prepared], Any]) -> Rows | Stream:
        """What an algorithm trains on: all rows at once, or part after part."""
        if self.parts is not None:
            return self.parts.stream(algorithm, build)
        return Rows(build(self.padded), self.count)
