"""Names for implementations, imported only when asked for."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any


def closest(name: str, known: Iterable[str]) -> str:
    """A phrase for an error: the nearest names if any is near, else all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known are {', '.join(names)}"


class Registry:
    """Dataclasses of hyperparameters by name: `module:Class`, loaded at first use."""

    def __init__(self, kind: str, entries: Mapping[str, str]):
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def load(self, name: str) -> type:
        """The class registered as `name`; ValueError with the nearest names otherwise."""
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} {name!r}; {closest(name, self)}")
        module, _, attribute = self._entries[name].partition(":")
        return getattr(import_module(module), attribute)

    def name_of(self, instance: object) -> str:
        """The name under which the instance's class is registered."""
        path = f"{type(instance).__module__}:{type(instance).__qualname__}"
        return next(name for name, entry in self._entries.items() if entry == path)

    def describe(self, instance: Any) -> dict[str, Any]:
        """The instance as JSON: its name and every field."""
        return {"name": self.name_of(instance), **asdict(instance)}

    def rebuild(self, description: Mapping[str, Any]) -> Any:
        """The instance that `describe` described; ValueError names a field that is not known."""
        values = dict(description)
        cls = self.load(values.pop("name"))
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(
                f"{self.kind} {description['name']!r} has no field {unknown[0]!r}; "
                f"{closest(unknown[0], known)}"
            )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
