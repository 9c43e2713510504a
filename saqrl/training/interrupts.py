"""Ctrl-C and SIGTERM: a message at once, an end within seconds, and a state that can be resumed.

A handler cannot raise: JAX swallows exceptions inside its callbacks, and a compiled program returns
to Python only at its end. So the handlers raise nothing: work checks `asked` at places where it can
stop, and a thread, woken by the signal, ends the process if it does not. The last checkpoint is
then on the disk, and resumes bit-exactly.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

EXIT_INTERRUPTED = 130
# Seconds within which work must reach a place where it can stop.
PATIENCE = 4.0
# Environment variable of a process that is to end when its standard input does: with its parent.
ENDS_WITH_INPUT = "SAQRL_ENDS_WITH_INPUT"
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_asked = threading.Event()
_advice: list[str] = []


class Interrupted(KeyboardInterrupt):
    """Work stops because of an interrupt; the message says how to resume."""


def asked() -> bool:
    """Whether an interrupt has been received."""
    return _asked.is_set()


def stop_if_asked() -> None:
    """Raise Interrupted if an interrupt has been received."""
    if _asked.is_set():
        raise Interrupted(_advice[0] if _advice else "")


@contextlib.contextmanager
def resumed_by(command: str) -> Iterator[None]:
    """While inside, an interrupt prints `command` as the way to resume.

    Of nested ones the outermost is printed: a run of a comparison resumes with the comparison.
    """
    _advice.append(command)
    try:
        yield
    finally:
        _advice.remove(command)


def told(advice: str) -> str:
    """The last line of an interrupted process."""
    return f"saqrl: interrupted; to resume: {advice}" if advice else "saqrl: interrupted"


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Answer signals while inside; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if os.environ.pop(ENDS_WITH_INPUT, None):
        threading.Thread(target=_end_with_input, daemon=True, name="parent").start()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours,), daemon=True, name="interrupts").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
        _asked.clear()


def _watch(woken: socket.socket) -> None:
    """Print a message at the first signal; end the process at the second, or after a time limit."""
    with woken:
        while number := woken.recv(1):
            if number[0] not in SIGNALS:
                continue
            _asked.set()
            _say("saqrl: stopping (press Ctrl-C again to stop at once)")
            woken.settimeout(PATIENCE)
            with contextlib.suppress(TimeoutError):
                if not woken.recv(1):
                    return  # the work has stopped by itself
            _say(told(_advice[0] if _advice else ""))
            os._exit(EXIT_INTERRUPTED)


def _end_with_input() -> None:
    """End with the process at the other end of standard input, at once: its next one may be up."""
    while os.read(0, 1):
        pass
    os._exit(EXIT_INTERRUPTED)


def _say(message: str) -> None:
    """To standard error by its descriptor: the main thread may hold the stream's lock."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{message}\n".encode())
