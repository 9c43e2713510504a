"""How many bytes of numbers one read may take: asked before memory is set aside for them.

Compression lets a small file announce any number of equal values. What its headers announce is
counted over the whole read, and compared with the bytes on the disk and with the free memory.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from saqrl.datasets.errors import DatasetError

GIBIBYTE = 2**30
# What any file may take, and what each byte of it may: a recording is compressed a few times, a
# robot that stands still a hundred times.
FLOOR, PER_BYTE = 1 << 28, 64
# Of every number while a log is made: as stored, joined, as float32.
COPIES = 3


@dataclass
class Budget:
    """Of one read. `most` bytes of numbers where a person has said so."""

    most: int | None = None
    free: int | None = None
    stored: int = 0
    """Bytes on the disk of the files that were opened."""
    taken: int = 0
    arrays: dict[tuple[int, int], str] = field(default_factory=dict)
    """Where an array lies in an HDF5 file (file number, address) -> its name."""

    def admit(self, file: Path) -> None:
        """One more file is read."""
        self.stored += file.stat().st_size

    def take(self, path: Path, what: str, size: int) -> None:
        """DatasetError where `size` more bytes, those of `what`, are too many."""
        self.taken += size
        needed = self.taken / GIBIBYTE
        if self.most is not None:
            if self.taken > self.most:
                raise DatasetError(
                    f"{path}: the arrays up to {what} need {needed:.3g} GiB, and "
                    f"--dataset.max-gib allows {self.most / GIBIBYTE:.3g}; raise it, or read "
                    "less (--dataset.keys)"
                )
            return
        if self.taken > max(FLOOR, PER_BYTE * self.stored):
            raise DatasetError(
                f"{path}: the arrays up to {what} claim {needed:.3g} GiB, but the file has "
                f"only {self.stored:,} bytes, which suggests a damaged or malicious file; if "
                f"it is correct, pass --dataset.max-gib {needed * 2:.2g}"
            )
        if self.free is not None and COPIES * self.taken > self.free:
            raise DatasetError(
                f"{path}: the arrays up to {what} hold {needed:.3g} GiB; reading them needs "
                f"{COPIES * needed:.3g} GiB of memory and {self.free / GIBIBYTE:.3g} are "
                "free; read less (--dataset.keys), convert in parts to --format mapped, or "
                "set --dataset.max-gib to try anyway"
            )

    def claim(self, path: Path, key: str, place: tuple[int, int]) -> None:
        """DatasetError where the array at a place of the file was read under another name."""
        if (known := self.arrays.setdefault(place, key)) != key:
            raise DatasetError(
                f"{path}: {key} and {known} are the same stored array (a hard link); remove "
                "one of them, or store a copy of the numbers"
            )


_current: ContextVar[Budget | None] = ContextVar("budget", default=None)


def budget() -> Budget:
    """That of the read that goes on; outside of one, a new one."""
    return _current.get() or Budget(free=free_bytes())


@contextlib.contextmanager
def one_read(max_gib: float | None) -> Iterator[Budget]:
    """All that is read inside shares a budget, of so many GiB where a number is given."""
    most = None if max_gib is None else int(max_gib * GIBIBYTE)
    token = _current.set(Budget(most, free_bytes()))
    try:
        yield budget()
    finally:
        _current.reset(token)


def free_bytes() -> int | None:
    """Memory of the machine that programs may still take; None where nobody knows."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return None
