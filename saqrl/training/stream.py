"""Data larger than memory: parts of it on the device in turn, read ahead while one trains.

A part is many short blocks of consecutive rows, drawn without replacement within a pass over the
training rows. A row is as likely as any other to be in a part, as it is in a batch drawn from all
rows; but the batches of a part share its blocks, so that within `every` steps they are less varied
than batches from everywhere.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Bool, Int64

from saqrl.datasets import Transitions
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.statistics import release
from saqrl.training.preparation import Prepared, choose, prepare
from saqrl.training.settings import Settings

# Rows of a block: long enough for a disk to read at speed, short beside the rows of a part.
BLOCK_ROWS = 512
# A part has at least so many blocks, shorter ones where it has few rows.
LEAST_BLOCKS = 128
# Of the draws, so that they are not those of another seeded draw.
DRAW_TAG = 0x57AE


class Batched(Protocol):
    """What of an algorithm decides how long a part is trained on."""

    steps: int
    batch_size: int


class Parts:
    """The training episodes of a log, a part of their rows at a time, scaled and chunked.

    Training rows are numbered through the training episodes; the log itself is read where it lies.
    """

    def __init__(
        self,
        transitions: Transitions,
        settings: Settings,
        scaling: ObservationScaling,
        factor: float,
        *,
        rows: int,
    ) -> None:
        self.transitions, self.settings = transitions, settings
        self.scaling, self.factor = scaling, factor
        episodes, _ = choose(transitions, settings)
        starts, lengths = (
            column[episodes] for column in (transitions.episode_starts, transitions.episode_lengths)
        )
        self.ends = np.cumsum(lengths)
        self.firsts = self.ends - lengths
        self.shifts = starts - self.firsts  # of a training row to its row in the log
        self.total = int(self.ends[-1])
        rows = min(rows, self.total)
        self.block = max(min(BLOCK_ROWS, rows // LEAST_BLOCKS), 1)
        self.blocks = rows // self.block

    @property
    def rows(self) -> int:
        """Rows of a part."""
        return self.blocks * self.block

    def first_rows(self, number: int) -> Int64[np.ndarray, " blocks"]:
        """The training row that each block of a part begins with; a block goes on past the last
        row with the first.

        A pass cuts the rows into blocks at a random place and deals them out in random order. It
        depends on the seed and its own number alone, so that any part can be made at any time.
        """
        in_pass = self.total // self.block
        passed, position = divmod(number, in_pass // self.blocks)
        draw = np.random.default_rng((DRAW_TAG, self.settings.seed, passed))
        offset = draw.integers(self.total)
        chosen = draw.permutation(in_pass)[position * self.blocks :][: self.blocks]
        return (offset + np.sort(chosen) * self.block) % self.total

    def prepared(self, number: int) -> Prepared:
        """A part, as `prepare` would make its rows among all the others."""
        rows, starts, kept = self._rows(number)
        drawn = self.transitions.select_rows(rows, starts)
        for name in ("observations", "actions", "rewards", "terminated"):
            release(getattr(self.transitions, name))
        full = prepare(drawn, self.settings, self.scaling, self.factor)
        return Prepared(**{f.name: getattr(full, f.name)[kept] for f in fields(Prepared)})

    def stream(self, algorithm: Batched, build: Callable[[Prepared], Any]) -> "PartStream":
        """What an algorithm trains on. A part stays for as many steps as draw each row once.

        `build` makes what lies on the device, in a thread of its own.
        """
        every = max(self.rows // algorithm.batch_size, 1)
        count = -(-algorithm.steps // every)

        def make(number: int) -> Any:
            return jax.block_until_ready(build(self.prepared(number)))  # type: ignore[no-untyped-call]

        return PartStream(every, count, make)

    def _rows(
        self, number: int
    ) -> tuple[
        Int64[np.ndarray, " read"], Int64[np.ndarray, " episodes"], Bool[np.ndarray, " read"]
    ]:
        """(rows of the log, where episodes begin among them, which of them are the part's).

        Before each block come the rows that the history of its first reaches back to, as far as
        its episode does. Behind it come the rows that its last chunks, and the chunks after those,
        reach into: 2 chunk - 1, or as many as the episode has left.
        """
        firsts = self.first_rows(number)
        last = (firsts + self.block - 1) % self.total
        left = self.ends[self._episode(last)] - 1 - last
        gone = firsts - self.firsts[self._episode(firsts)]
        before = np.minimum(gone, self.settings.features.history - 1)
        behind = np.minimum(left, 2 * self.settings.features.chunk - 1)
        lengths = before + self.block + behind
        begins = np.cumsum(lengths) - lengths
        within = np.arange(lengths.sum()) - np.repeat(begins + before, lengths)
        training = (np.repeat(firsts, lengths) + within) % self.total
        episode = self._episode(training)
        starts = np.union1d(begins, np.flatnonzero(training == self.firsts[episode]))
        return training + self.shifts[episode], starts, (within >= 0) & (within < self.block)

    def _episode(self, training: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.searchsorted(self.ends, training, side="right")


class PartStream:
    """The engine's stream: this part, and the next one as soon as this one is asked for."""

    def __init__(self, every: int, count: int, make: Callable[[int], Any]) -> None:
        self.every, self.count, self._make = every, count, make
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._made: dict[int, Future[Any]] = {}

    def part(self, number: int) -> Any:
        """The data of the steps from number * every on; parts other than this and the next go."""
        wanted = [n for n in (number, number + 1) if n == number or n < self.count]
        self._made = {
            n: self._made[n] if n in self._made else self._reader.submit(self._make, n)
            for n in wanted
        }
        return self._made[number].result()

    def close(self) -> None:
        """Let go of the parts; returns when none is being read any more."""
        self._reader.shutdown(cancel_futures=True)
        self._made = {}
