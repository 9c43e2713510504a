"""Flags become settings, the same way from the command line, from Python and from a sweep's file.

A flag is a name as `saqrl train` has it, with underscores or hyphens: `chunk`, `eval_episodes`,
`quantizer_steps`, `agent.alpha`, `dataset.fraction`. Its value is a Python value, or the words that
somebody typed.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Integral
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from saqrl.datasets import ReadOptions
from saqrl.registry import closest
from saqrl.training.settings import Settings, flag_of

# Older names that scripts use.
ALIASES = {"execute": "action_horizon"}
# Flags that stand for a field of an algorithm.
SHORTCUTS = {"steps": "agent.steps", "quantizer_steps": "quantizer.steps"}
# The algorithms and the record whose fields are dotted flags.
OWNERS = ("agent", "quantizer", "prior", "dataset")
# What decides which other flags there are; `presets.settings_from` reads them.
CHOICES = ("preset", "agent", "quantizer", "actions", "recipe")


def _settings_flags() -> dict[str, tuple[str, str, Any]]:
    found = {}
    for name, record in Settings.RECORDS.items():
        kinds = get_type_hints(record)
        for each in fields(record):
            if each.name != "reading":  # its fields are the flags dataset.NAME
                found[flag_of(each)] = (name, each.name, kinds[each.name])
    return found


# (record, field, type) of every flag that is no algorithm's.
FLAGS: Mapping[str, tuple[str, str, Any]] = _settings_flags()


def canonical(name: str) -> str:
    """The one name of a flag, in any spelling."""
    plain = name.replace("-", "_")
    return ALIASES.get(plain, plain)


def changed(settings: Settings, said: Mapping[str, Any]) -> Settings:
    """The settings with flags applied.

    A chunk given without `action_horizon` is played whole. ValueError names the flag: unknown (with
    the nearest names), or of another type; or what the settings themselves refuse.
    """
    named = {canonical(name): value for name, value in said.items()}
    if "chunk" in named and "action_horizon" not in named:
        chunk = typed("chunk", int, named["chunk"])
        if chunk != settings.features.chunk:
            named["action_horizon"] = chunk
    records: dict[str, dict[str, Any]] = {}
    for name, value in named.items():
        if name in ("seed", "members"):
            settings = replace(settings, **{name: typed(name, int, value)})
            continue
        record, field_name, kind = _place(settings, name)
        records.setdefault(record, {})[field_name] = typed(name, kind, value)
    if reading := records.pop("dataset", None):
        options = replace(settings.data.reading, **reading)
        records.setdefault("data", {})["reading"] = options
    parts: dict[str, Any] = {
        each.name: replace(getattr(settings, each.name), **records[each.name])
        for each in fields(settings)
        if each.name in records
    }
    return replace(settings, **parts)


def _place(settings: Settings, name: str) -> tuple[str, str, Any]:
    """(record, field, type) that a flag sets; of data set options the record is `dataset`."""
    if name in FLAGS:
        return FLAGS[name]
    owner, dot, field_name = SHORTCUTS.get(name, name).partition(".")
    if not dot or owner not in OWNERS:
        raise ValueError(_unknown(settings, name))
    record = ReadOptions if owner == "dataset" else type(getattr(settings, owner))
    retired = getattr(record, "retired", {})
    if owner == "agent" and field_name in retired:
        return FLAGS[retired[field_name]]
    field_name = getattr(record, "aliases", {}).get(field_name, field_name)
    if field_name not in {each.name for each in fields(record)}:
        raise ValueError(_unknown(settings, name))
    return owner, field_name, get_type_hints(record)[field_name]


def known_flags(settings: Settings) -> list[str]:
    """Every flag that these settings' algorithms have."""
    dotted = [
        f"{owner}.{each.name}"
        for owner in OWNERS
        for each in fields(ReadOptions if owner == "dataset" else getattr(settings, owner))
    ]
    return [*CHOICES, "seed", "members", *SHORTCUTS, *FLAGS, *dotted]


def _unknown(settings: Settings, name: str) -> str:
    quantizer = type(settings.quantizer).__name__
    which = f" with agent {settings.agent_name} and quantizer {quantizer}" if "." in name else ""
    near = closest(name, known_flags(settings)).replace("_", "-")
    return f"unknown flag {name.replace('_', '-')!r}{which}; {near}"


def typed_as(name: str, value: Any) -> list[str]:
    """The words by which somebody types a flag."""
    flag = name.replace("_", "-")
    if isinstance(value, bool) and "." not in flag:
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, (list, tuple)) else [value])]


def typed(name: str, kind: Any, value: Any) -> Any:
    """A value, or the words for it, as the type that a field states; ValueError otherwise."""
    shown = name.replace("_", "-")
    if get_origin(kind) in (Union, UnionType):
        inner = [option for option in get_args(kind) if option is not type(None)]
        if value is None or (value in ("none", ["none"]) and inner[0] is not str):
            return None
        return typed(name, inner[0], value)
    if get_origin(kind) is tuple:
        words = value if isinstance(value, (list, tuple)) else [value]
        parts = [part for word in words for part in _divided(word, get_args(kind)[0])]
        return tuple(typed(name, get_args(kind)[0], part) for part in parts)
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = " or ".join(map(repr, get_args(kind)))
            raise ValueError(f"{shown} is {value!r}; {choices}")
        return value
    if kind is bool:
        known = {"true": True, "false": False}
        if isinstance(value, (str, bool)) and str(value).lower() in known:
            return known[str(value).lower()]
        raise ValueError(f"{shown} is {value!r}; expected true or false")
    if kind in (int, float):
        return _number(shown, kind, value)
    if kind is str and isinstance(value, str):
        return value
    raise ValueError(f"{shown} is {value!r}; expected {getattr(kind, '__name__', kind)}")


def _divided(word: Any, kind: Any) -> list[Any]:
    """The parts of a word with commas, or spaces between numbers; a name may hold spaces."""
    if not isinstance(word, str):
        return [word]
    return word.replace(",", " ").split() if kind in (int, float) else word.split(",")


def _number(shown: str, kind: type, value: Any) -> Any:
    what = "an integer" if kind is int else "a number"
    try:
        if isinstance(value, bool) or (kind is int and not isinstance(value, (str, Integral))):
            raise ValueError
        number = kind(value)
    except (ValueError, TypeError):
        raise ValueError(f"{shown} is {value!r}; expected {what}") from None
    if kind is float and not math.isfinite(number):
        raise ValueError(f"{shown} is {value!r}; expected a finite number")
    return number
