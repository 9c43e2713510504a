"""What data sets are called in folders, tables and pictures."""

from collections.abc import Iterable
from pathlib import Path

from saqrl.datasets import resolve_spec
from saqrl.datasets.mixture import parts_of


def dataset_name(spec: str, *, folders: int = 0) -> str:
    """The file's name without its suffix, after so many of the folders that it lies in.

    Of several data sets as one, all names with a plus between; an environment's id serves too.
    """
    names = []
    for _, part in parts_of(spec):
        path = Path(part.partition(":")[2] or part)
        above = path.parts[:-1]
        names.append("/".join((*above[max(len(above) - folders, 0) :], path.stem)))
    return "+".join(names)


def absolute_spec(spec: str) -> str:
    """The same data set named from any folder."""
    parts = []
    for weight, part in parts_of(spec):
        name, path = resolve_spec(part)
        whole = f"{name}:{path.expanduser().absolute()}"
        parts.append(whole if weight == 1 else f"{weight:g}*{whole}")
    return " + ".join(parts)


def exists(spec: str) -> bool:
    """Whether every file or folder that a SPEC names is there."""
    return all(resolve_spec(part)[1].expanduser().exists() for _, part in parts_of(spec))


def distinct_names(specs: Iterable[str]) -> dict[str, str]:
    """A name for each SPEC, with as many folders before it as tell it from the others."""
    named: dict[str, str] = {}
    waiting = list(dict.fromkeys(specs))
    deepest = max((len(Path(spec).parts) for spec in waiting), default=0)
    for folders in range(deepest + 1):
        found = {spec: dataset_name(spec, folders=folders) for spec in waiting}
        names = list(found.values())
        alone = {s: n for s, n in found.items() if names.count(n) == 1 or folders == deepest}
        named |= alone
        waiting = [spec for spec in waiting if spec not in alone]
    return named
