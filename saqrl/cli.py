"""The command `saqrl`: finds the subcommand; prints errors as one line and exits with 2.

Each subcommand is a module in `saqrl.commands` with `main(arguments) -> int`, imported only when
it is used, so that `saqrl --help` needs no JAX.
"""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from saqrl import __version__
from saqrl.records import printable
from saqrl.registry import closest
from saqrl.training.interrupts import EXIT_INTERRUPTED, answered, told

COMMANDS = {
    "train": "learn a policy from a dataset; without arguments: an example in a minute",
    "view": "open the page of a run: how good it is, and how to see why",
    "ls": "the runs in a folder, with their scores",
    "finetune": "continue a run in its environment or on a robot, on its own and new data",
    "evaluate": "play a run's policy in its environment",
    "export": "write a run's policy as one file that needs no JAX",
    "serve": "answer policy queries over a WebSocket",
    "quantize": "how well codes reproduce a dataset's actions, and how many are needed",
    "sweep": "train with many settings: grid, random search and seeds, from a file",
    "compare": "train a grid of methods, data sets and seeds; resumable",
    "report": "tables, intervals and plots of a comparison or of runs",
    "presets": "named starting points and the scores to expect",
    "inspect": "what is in a dataset, and what is wrong with it",
    "convert": "write a dataset in another format",
    "collect": "make demonstrations with OGBench's scripted experts",
    "completion": "a script that completes commands and flags in your shell",
}
EXIT_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status is 0, 2 for bad input, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"saqrl {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _fail(f"unknown command {words[0]!r}; {closest(words[0], COMMANDS)}")
    if not {"-h", "--help"} & set(words):
        keep_compiled_programs()
    # Servers end by themselves.
    watched = contextlib.nullcontext() if words[0] in ("serve", "view") else answered()
    try:
        with watched:
            return int(import_module(f"saqrl.commands.{words[0]}").main(words[1:]))
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except KeyboardInterrupt as stopped:
        print(told(str(stopped)), file=sys.stderr, flush=True)
        if arguments is None:  # JAX's threads may crash when the interpreter ends
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; avoid a second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if debug:
            traceback.print_exc()
        return _fail(_message(error))
    except Exception as error:  # unexpected
        if debug:
            traceback.print_exc()
        return _fail(_unforeseen(error))


def keep_compiled_programs() -> None:
    """Set JAX's cache of compiled programs for the next process; JAX reads this when imported.

    The cache is $XDG_CACHE_HOME/saqrl (or ~/.cache/saqrl) and may be deleted at any time;
    JAX_COMPILATION_CACHE_DIR sets another folder, an empty value turns it off.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not caches.startswith("~"):  # an account without a home keeps none
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(caches) / "saqrl"))
    if place := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
            if not os.access(place, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
            print(
                f"note: {place} is not writable ({error.strerror}): programs are compiled again "
                "in every process; set JAX_COMPILATION_CACHE_DIR to another folder",
                file=sys.stderr,
            )
    # Less is compiled again as fast as it is read.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"no such file: {error.filename}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _unforeseen(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory: use fewer rows (--data-episodes, --stream-rows) or smaller networks"
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked and not _finds_device():
        return f"JAX finds no device for JAX_PLATFORMS={asked}: unset it, or install jax[cuda12]"
    return (
        f"unforeseen {type(error).__name__}: {_message(error)[:300]}: please report it with the "
        "traceback that --debug shows"
    )


def _finds_device() -> bool:
    """Whether JAX, where it is in use, computes on anything here."""
    if "jax" not in sys.modules:
        return True
    try:
        return bool(sys.modules["jax"].devices())
    except Exception:  # of several types, without a text in some
        return False


def _fail(message: str) -> int:
    print(f"saqrl: error: {printable(message)}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: saqrl COMMAND [OPTIONS]\n\n"
        "From logged robot data to the best policy that the data supports.\n\n"
        f"{rows}\n\n"
        "saqrl COMMAND --help tells a command's options, saqrl --version the version;\n"
        "--debug shows the traceback of an error."
    )


if __name__ == "__main__":
    sys.exit(main())
