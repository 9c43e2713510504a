"""Progress output in the terminal, and the time spent per stage."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from saqrl.records import printable
from saqrl.training.interrupts import stop_if_asked

# Seconds between two lines if there is no progress bar.
LINE_PERIOD = 10.0


class _Rate(TextColumn):
    """Things done per second since the stage began."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: RichTask) -> Text:
        rate = task.finished_speed or task.speed
        return Text(rate_words(rate) if rate else "")


def rate_words(rate: float) -> str:
    """Things per second; seconds per thing where one takes longer than that."""
    if rate >= 10:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def time_words(seconds: float) -> str:
    """Hours, minutes and seconds, the largest two that count."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Reporter:
    """A progress bar per stage on standard error; `seconds` has the times of finished stages."""

    def __init__(self, *, quiet: bool = False):
        # Messages contain brackets and colons: saqrl[mujoco], npz:walk.npz.
        self.console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False)
        self.seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since this reporter was made."""
        return time.perf_counter() - self.started

    @property
    def spent(self) -> dict[str, float]:
        """`seconds`, including the time so far of running stages."""
        now = time.perf_counter()
        running = {name: now - began for name, began in self._running.items()}
        return self.seconds | {n: self.seconds.get(n, 0.0) + s for n, s in running.items()}

    def say(self, message: str) -> None:
        # Names in a message come from files: they must not act as markup or escape codes.
        self.console.print(printable(message), soft_wrap=True, markup=False)

    @contextmanager
    def stage(
        self, name: str, total: int, *, unit: str = "steps", done: int = 0
    ) -> Iterator[Callable[[int, str], None]]:
        """Yields `update(done, note)`, which stops an interrupted process; the time is `name`'s."""
        stop_if_asked()
        self._running[name] = began = time.perf_counter()
        try:
            if self.console.quiet:
                yield _unseen
            elif self.console.is_terminal:
                with self._bar() as progress:
                    task = progress.add_task(name, total=total, completed=done, note=unit)

                    def update(done: int, note: str = "") -> None:
                        stop_if_asked()
                        progress.update(task, completed=done, note=note or unit)

                    yield update
            else:
                yield self._lines(name, total, unit, done)
        finally:
            del self._running[name]
            elapsed = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            # In a narrow terminal the note is cut: a line that wraps cannot be redrawn.
            TextColumn(
                "{task.fields[note]}", style="dim", table_column=Column(no_wrap=True, ratio=1)
            ),
            console=self.console,
            speed_estimate_period=20,
            refresh_per_second=4,
            expand=True,
        )

    def _lines(self, name: str, total: int, unit: str, first: int) -> Callable[[int, str], None]:
        began = last = time.perf_counter()

        def update(done: int, note: str = "") -> None:
            nonlocal last
            stop_if_asked()
            now = time.perf_counter()
            if now - last < LINE_PERIOD and done < total:
                return
            last = now
            # Work done before a resume must not count in the rate.
            rate = (done - first) / max(now - began, 1e-9)
            pace = f", {rate_words(rate)}, {time_words((total - done) / rate)} left" if rate else ""
            print(
                f"{name}: {done:,}/{total:,} {unit}{pace}  {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

        return update


def _unseen(done: int, note: str = "") -> None:
    """The update of a stage without output."""
    stop_if_asked()
