"""Child processes that tests send real signals to; needs /proc."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NEEDS_PROC = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="looks at processes in /proc"
)
# Seconds within which a process that is asked to has to end.
PROMISE = 5.0
# Longer than any of these processes takes on a machine that is not stuck.
HANGS = 240


def limit() -> float:
    """PROMISE, and as much again for every process that waits for the same core."""
    return PROMISE * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))


def start(*words: str, cwd: Path, **options) -> subprocess.Popen[str]:
    """`saqrl WORDS`; what it says comes through a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "saqrl.cli", *words],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_until(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    """Until something is seen, or the process has ended."""
    for _ in range(HANGS * 100):
        if seen() or ended_within(process, 0.01):
            return
    raise AssertionError("nothing was seen")


def ended_within(process: subprocess.Popen[str], seconds: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    return False


def answers(pid: int) -> bool:
    """Whether a process has a handler of its own for SIGTERM."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        mask = next(line for line in lines if line.startswith("SigCgt:")).split()[1]
        return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
    return False


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has asked about its end counts as ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
