"""A sweep: runs that differ in a few fields, planned from a TOML file, each in its own folder.

A plan is a pure function of the file, so a sweep that was stopped is the same sweep when it is
started again: finished trials stay, the others go on (see `trials`).
"""

import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saqrl.registry import closest

SECTIONS = ("out", "score", "best", "seeds", "train", "grid", "random")
DISTRIBUTIONS = ("uniform", "log_uniform", "integers", "choice")
NAME_LENGTH = 100


@dataclass(frozen=True)
class Trial:
    """One run: the flags of `saqrl train` by name, and those of them that vary in the sweep."""

    flags: Mapping[str, Any]
    varied: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return int(self.flags["seed"])

    @property
    def name(self) -> str:
        """A folder's name that tells what varies; two trials share it only if they are equal."""
        parts = [f"{name}-{plain(value)}" for name, value in self.varied.items()]
        parts.append(f"seed-{self.seed}")
        text = "_".join(parts)
        slug = re.sub(r"[^A-Za-z0-9._+-]", "-", text)
        if slug == text and len(slug) <= NAME_LENGTH:
            return slug
        return f"{slug[:NAME_LENGTH]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Plan:
    trials: tuple[Trial, ...]
    out: Path
    score: str | None
    """A field of the result, dotted where it is nested; None: the first that the task reports."""
    best: Literal["highest", "lowest"]


def read_plan(file: Path) -> Plan:
    """The trials that a sweep's file describes.

    FileNotFoundError, or ValueError that names the section and what it may hold. Whether
    `saqrl train` knows the fields is for the caller to find out.
    """
    try:
        content = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f'{file} is not valid TOML: {error} (quote dotted names: "agent.alpha" = 5.0)'
        ) from error
    for name in content:
        if name not in SECTIONS:
            raise ValueError(f"{file}: unknown section {name!r}; {closest(name, SECTIONS)}")
    for name in ("train", "grid", "random"):
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"{file}: {name} is a table: write [{name}]")
    best = content.get("best", "highest")
    if best not in ("highest", "lowest"):
        raise ValueError(f"{file}: best is {best!r}; expected 'highest' or 'lowest'")
    base = dict(_flat(content.get("train", {})))
    seeds = _seeds(file, content.get("seeds", base.pop("seed", 0)))
    points = list(_grid(file, content.get("grid", {})))
    draws = list(_draws(file, content.get("random", {})))
    trials: dict[str, Trial] = {}
    for point, draw, seed in itertools.product(points, draws, seeds):
        varied = {**point, **draw}
        if "seed" in varied or "seed" in base:
            raise ValueError(f"{file}: give seeds at the top of the file, as seeds = [0, 1]")
        trial = Trial({**base, **varied, "seed": seed}, varied)
        trials.setdefault(trial.name, trial)
    out = Path(content.get("out", Path("sweeps") / file.stem))
    return Plan(tuple(trials.values()), out, content.get("score"), best)


def _seeds(file: Path, given: Any) -> list[int]:
    seeds = given if isinstance(given, list) else [given]
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(
            f"{file}: seeds is {given!r}; expected a list of integers such as [0, 1, 2]"
        )
    return seeds


def _grid(file: Path, section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    fields = dict(_flat(section))
    for name, values in fields.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file}: grid.{name} is {values!r}; expected a list of values to try")
    for values in itertools.product(*fields.values()):
        yield dict(zip(fields, values, strict=True))


def _draws(file: Path, section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Random points; draw i depends on the seed and on i, so more trials keep those there are."""
    if not section:
        yield {}
        return
    rest = dict(section)
    trials, seed = rest.pop("trials", None), rest.pop("seed", 0)
    if type(trials) is not int or trials < 1:
        raise ValueError(
            f"{file}: random.trials is {trials!r}; expected the number of points to draw"
        )
    fields = dict(_flat(rest, stop=DISTRIBUTIONS))
    for name, described in fields.items():
        _check_distribution(f"{file}: random.{name}", name, described)
    for index in range(trials):
        generator = np.random.default_rng([seed, index])
        yield {name: _draw(generator, *next(iter(d.items()))) for name, d in fields.items()}


def _check_distribution(where: str, name: str, described: Any) -> None:
    if not isinstance(described, dict):
        word = name.rpartition(".")[2]
        raise ValueError(f"{where}: unknown distribution {word!r}; {closest(word, DISTRIBUTIONS)}")
    ((kind, given),) = described.items()
    if kind == "choice":
        if not isinstance(given, list) or not given:
            raise ValueError(f"{where}: choice is {given!r}; expected a list of values")
        return
    numbers = {int} if kind == "integers" else {int, float}
    positive = kind == "log_uniform"
    if not (
        isinstance(given, list)
        and len(given) == 2
        and {type(bound) for bound in given} <= numbers
        and given[0] < given[1]
        and not (positive and given[0] <= 0)
    ):
        more = ", both above 0" if positive else ""
        raise ValueError(f"{where}: {kind} is {given!r}; expected [lowest, highest]{more}")


def _draw(generator: np.random.Generator, kind: str, given: list[Any]) -> Any:
    if kind == "choice":
        return given[int(generator.integers(len(given)))]
    low, high = given
    if kind == "integers":
        return int(generator.integers(low, high, endpoint=True))
    if kind == "log_uniform":
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return float(f"{value:.4g}")  # what a person can read in a folder's name


def _flat(
    table: Mapping[str, Any], prefix: str = "", stop: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Dotted names of a nested table; a table with one of the `stop` names alone is a value."""
    for name, value in table.items():
        dotted = prefix + name.replace("-", "_")
        if isinstance(value, dict) and not (len(value) == 1 and next(iter(value)) in stop):
            yield from _flat(value, f"{dotted}.", stop)
        else:
            yield dotted, value


def plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
