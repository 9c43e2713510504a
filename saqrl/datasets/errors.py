"""What is wrong with a file, said in one line to the person who gave it."""

from collections.abc import Iterable
from difflib import get_close_matches


class DatasetError(ValueError):
    """A dataset that cannot be used as it is: the text names file, field, row and remedy.

    File contents (key names, records) may hold line breaks and escape codes: see `printable`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: object) -> str:
    """One line in which nothing steers a terminal: other characters stand as their escapes."""
    line = " ".join(str(text).split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that offers the known names closest to `name`, or an empty string."""
    close = get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def listing(names: Iterable[object], *, limit: int = 12) -> str:
    """Comma-separated names, cut after `limit` of them."""
    all_names = [str(name) for name in names]
    shown = ", ".join(all_names[:limit]) or "nothing"
    rest = len(all_names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def counted(count: int, noun: str) -> str:
    """'1 step', '6,704 steps'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
