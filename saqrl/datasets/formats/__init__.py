"""Formats by name: one module each, imported when it is asked for.

A module states what it reads, which files it claims, and how rows come out of them (`Reader`); one
that also writes has `write` (`Writer`). Its library is imported inside its functions.
"""

import contextlib
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from saqrl.datasets.errors import DatasetError, listing, nearest
from saqrl.datasets.options import ReadOptions
from saqrl.datasets.source import existing_file
from saqrl.datasets.transitions import Transitions
from saqrl.registry import FORMATS


class Reader(Protocol):
    """What the module of a format offers."""

    SUMMARY: str
    SUFFIXES: tuple[str, ...]
    OPTIONS: tuple[str, ...]
    """Fields of ReadOptions that `read` uses; `environment` if it changes the rewards."""

    def recognises(self, path: Path) -> bool:
        """Whether the content looks like this format; an exception means that it does not."""
        ...

    def read(
        self, path: Path, options: ReadOptions = ..., environment: str | None = ...
    ) -> Transitions: ...


@runtime_checkable
class Writer(Protocol):
    """What the module of a format offers besides, where it can be written too."""

    def write(self, path: Path, transitions: Transitions) -> None:
        """Write a new file or folder, so that reading it gives the same log bit for bit."""
        ...


def reader_of(format_name: str) -> Reader:
    """What is registered as a format, imported now; DatasetError with the nearest names if none."""
    if format_name not in FORMATS:
        raise DatasetError(
            f"unknown dataset format {format_name}{nearest(format_name, FORMATS)}; "
            f"formats: {listing(FORMATS)}"
        )
    return cast(Reader, FORMATS.load(format_name))


# How numbers come out of files that people have and that hold no data set by themselves.
LOADED = {
    ".csv": (
        "rows = numpy.genfromtxt({name!r}, delimiter=',') (skip_header=1 if the first row holds "
        "names)"
    ),
    ".tsv": "rows = numpy.genfromtxt({name!r}) (skip_header=1 if the first row holds names)",
    ".txt": "rows = numpy.loadtxt({name!r})",
    ".npy": "rows = numpy.load({name!r})",
    ".mat": "rows = scipy.io.loadmat({name!r})",
    ".pkl": "load the rows in your own program (saqrl never opens pickled files)",
    ".pickle": "load the rows in your own program (saqrl never opens pickled files)",
}


# By the names of Diffusion Policy's data.
ZARR = (
    "z = zarr.open({name!r}, 'r'); ends = z['meta/episode_ends'][:]; last = numpy.zeros(ends[-1], "
    "bool); last[ends - 1] = True; numpy.savez_compressed('log.npz', "
    "observations=z['data/state'][:], actions=z['data/action'][:], timeouts=last)"
)


def require_numbers(path: Path) -> None:
    """DatasetError for a file whose numbers have to be put into an npz first; it says how."""
    if path.name.lower().endswith((".zarr", ".zarr.zip")):
        raise DatasetError(
            f"{path}: zarr is not read; convert it with zarr and NumPy: "
            f"{ZARR.format(name=path.name)} (print(z.tree()) shows the names of its arrays)"
        )
    if loaded := LOADED.get(path.suffix.lower()):
        raise DatasetError(
            f"{path}: {path.suffix} files are not read; convert it with NumPy: "
            f"{loaded.format(name=path.name)}; numpy.savez_compressed('log.npz', observations=..., "
            "actions=..., timeouts=...), one row per step, timeouts True in the last row of each "
            "episode (docs/start.md)"
        )


def resolve_spec(spec: str) -> tuple[str, Path]:
    """(format, path) of a SPEC; a file whose own name holds a colon is found as it is."""
    prefix, colon, rest = spec.partition(":")
    # One letter before a colon is a drive, and a separator before it makes it part of a path.
    named = colon and len(prefix) > 1 and not {"/", "\\"} & set(prefix)
    if named and (prefix in FORMATS or not Path(spec).exists()):
        reader_of(prefix)
        if not rest:
            raise DatasetError(f"{spec}: no path after the format; pass {prefix}:PATH")
        if Path(rest).suffix.lower() not in reader_of(prefix).SUFFIXES:
            require_numbers(Path(rest))
        return prefix, Path(rest)
    if not spec:
        raise DatasetError("no dataset given; pass FORMAT:PATH or a path")
    path = Path(spec)
    found = path.expanduser()
    return _recognised(path, found if found.is_dir() else existing_file(path)), path


def _recognised(path: Path, file: Path) -> str:
    """By suffix where one format claims it, else by content."""
    readers, broken = {}, ""
    for name in FORMATS:
        try:
            readers[name] = reader_of(name)
        except (ImportError, ValueError) as error:  # of another package: the others still work
            broken += f"; {error}"
    claimed = [name for name, reader in readers.items() if file.suffix.lower() in reader.SUFFIXES]
    for name in readers if file.is_dir() else claimed or readers:
        # A damaged file recognises nobody: the reader that is asked for by name says how.
        with contextlib.suppress(Exception):
            if readers[name].recognises(file):
                return name
    if file.is_dir():
        require_numbers(file)
    existing_file(path)
    if claimed:  # the most general format of the family says what is missing
        return claimed[-1]
    require_numbers(path)
    offered = "; ".join(f"{name}: {reader.SUMMARY}" for name, reader in readers.items())
    raise DatasetError(
        f"{path}: format not recognised; pass FORMAT:{path} with one of these formats: "
        f"{offered}{broken}"
    )
