"""Untrusted records: regular files of bounded size, JSON checked by rules.

Every error is a ValueError of one line: the file or record, the value found, what was expected.
"""

import json
import math
import reprlib
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

# Maximum bytes of a JSON file; settings take a few thousand.
LARGEST_RECORD = 4 << 20
# Larger whole numbers cannot be sizes, steps or counts.
LARGEST_WHOLE = 2**48


class Rule(NamedTuple):
    """What is expected of a value in a record: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(
            f"{self.words} or {other.words}",
            lambda value: self.holds(value) or other.holds(value),
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def whole(low: int = 0, high: int = LARGEST_WHOLE) -> Rule:
    words = f"a whole number of at least {low}" if high == LARGEST_WHOLE else f"{low} to {high}"
    return Rule(words, lambda value: type(value) is int and low <= value <= high)


def among(*choices: str) -> Rule:
    return Rule(" or ".join(choices), lambda value: isinstance(value, str) and value in choices)


def listed(each: Rule, most: int = 65_536) -> Rule:
    return Rule(
        f"a list of {each.words}",
        lambda value: (
            isinstance(value, list) and len(value) <= most and all(map(each.holds, value))
        ),
    )


def mapped(each: Rule) -> Rule:
    return Rule(
        f"an object whose values are {each.words}",
        lambda value: isinstance(value, dict) and all(map(each.holds, value.values())),
    )


NULL = Rule("null", lambda value: value is None)
TEXT = Rule("text", lambda value: isinstance(value, str))
NUMBER = Rule("a finite number", _is_number)
OBJECT = Rule("an object", lambda value: isinstance(value, dict))


def require(record: Any, rules: Mapping[str, Rule], *, where: object) -> dict[str, Any]:
    """The record; ValueError names the first field that is missing or breaks its rule.

    A field whose rule accepts null may be missing. Fields without a rule may be anything.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {shown(record)}; expected a JSON object")
    for name, rule in rules.items():
        if name not in record and not rule.holds(None):
            raise ValueError(f"{where}: {name} is missing; expected {rule.words}")
        if not rule.holds(record.get(name)):
            raise ValueError(f"{where}: {name} is {shown(record[name])}; expected {rule.words}")
    return record


def shown(value: Any) -> str:
    """A value for an error message: short, and without terminal control characters."""
    return reprlib.repr(value)


def printable(text: str) -> str:
    """The text with terminal control characters (escape codes, carriage returns) escaped."""
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    return "".join(kept)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has the annotated type; types that JSON lacks always fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(each, arguments[0]) for each in value)
    if hint is float:
        return type(value) in (int, float) and not math.isnan(value)
    if hint is int:
        return type(value) is int and abs(value) <= LARGEST_WHOLE
    return type(value) is hint if hint in (bool, str, NoneType) else True


def require_types(values: Mapping[str, Any], record: type, *, where: object) -> None:
    """ValueError for the first value from JSON that does not have its field's type."""
    hints = get_type_hints(record)
    for name, value in values.items():
        if not fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", None) or str(hints[name])
            raise ValueError(f"{where}: {name} is {shown(value)}; expected {expected}")


def require_regular(path: Path, *, at_most: int) -> None:
    """ValueError for a link, a pipe, a device or a larger file; FileNotFoundError."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise ValueError(f"{path} is a symbolic link, which is not followed: copy the file there")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is not a regular file: copy a regular file there")
    if found.st_size > at_most:
        raise ValueError(f"{path} has {found.st_size:,} bytes; at most {at_most:,} are allowed")


def read_regular(path: Path, *, at_most: int) -> bytes:
    """The bytes of a file; raises as `require_regular`, and ValueError if memory is too small."""
    require_regular(path, at_most=at_most)
    try:
        return path.read_bytes()
    except MemoryError as error:
        raise ValueError(f"{path} does not fit into memory") from error


def read_record(path: Path, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Read a JSON file and check it by these rules; raises ValueError or FileNotFoundError."""
    return require(parsed(read_regular(path, at_most=LARGEST_RECORD), path), rules, where=path)


def parsed(text: str | bytes, where: object) -> Any:
    """The value of JSON text; ValueError says where the text is not valid."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where}: not readable JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where}: not readable JSON: {error}") from error
