"""Strings of any length in HDF5, read by a process that may die of it.

HDF5 2.0 never returns from a string whose place or heap is damaged: H5T__conv_vlen loops after any
error. A process with limits reads such strings for us; run as a script, this file is that process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

# A record such as an environment's name or options; more is no record.
TEXT_LIMIT = 1 << 20
# Of the processor for one string, and by the clock for all, where processor time is not measured.
CPU_SECONDS, SECONDS = 0.5, 60
MEMORY = 1 << 31

# Path of an object in the file; name of a data set in it or of its attribute; which of the two.
Place = tuple[str, str, bool]


def texts(filename: str, places: Sequence[Place]) -> list[str | None]:
    """The string at each place; None where it is no string or damaged, and for all that follow.

    Raises RuntimeError where the other process cannot work at all.
    """
    if not places:
        return []
    try:
        answer = subprocess.run(
            [sys.executable, "-P", __file__],
            input=json.dumps([filename, places]).encode(),
            capture_output=True,
            timeout=SECONDS,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        lines, code = answer.stdout.splitlines(keepends=True), answer.returncode
    except subprocess.TimeoutExpired as late:
        lines, code = (late.stdout or b"").splitlines(keepends=True), None
    if code == 1:  # no signal, but an exception of Python's own
        said = answer.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"{filename}: the process that reads strings has failed ({said})")
    found: list[str | None] = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return found + [None] * (len(places) - len(found))


def _read(filename: str, places: Sequence[Place]) -> Iterator[str | None]:
    import h5py

    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every platform
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with h5py.File(filename, "r") as file:
        for path, name, is_attribute in places:
            if hasattr(signal, "setitimer"):  # ends the process, inside of HDF5 too
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                value = file[path].attrs[name] if is_attribute else file[path][name][()]
                raw = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
            except Exception:  # damaged, but HDF5 says so
                yield None
                continue
            yield raw.decode(errors="replace") if len(raw) <= TEXT_LIMIT else None


if __name__ == "__main__":
    for text in _read(*json.load(sys.stdin)):
        print(json.dumps(text), flush=True)
