"""Implementations by name: agents, quantizers, baselines, formats, environments.

An implementation is one line here, a call of `register`, or an entry point of an installed package
(NAME = "module:Class" in the group `saqrl.agents`, `saqrl.quantizers`, ...). It is imported on
first use, so that help needs no JAX and a broken package affects nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from saqrl.records import require_types, shown

Act = Literal["greedy", "sample", "mean"]
"""How a policy acts on codes: the code with the highest score, a code sampled by its probability,
or the expectation of the decoded action."""

# Maximum number of agents in an ensemble.
LARGEST_ENSEMBLE = 64

# Limits of the acting temperature: beyond them codes are equal in float32, or overflow.
COLDEST, HOTTEST = 1e-6, 1e6


def require_temperature(temperature: float) -> None:
    """ValueError if log-probabilities cannot be divided by it."""
    if not COLDEST <= temperature <= HOTTEST:
        raise ValueError(
            f"act-temperature is {temperature:g}; it must be from {COLDEST:g} to {HOTTEST:g} "
            "(to play only the best code: --act greedy)"
        )


# Number of known names that an error lists if none is similar.
LISTED = 50


def closest(name: str, known: Iterable[str]) -> str:
    """Text for an error: the most similar known names, else the first LISTED known names."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"known are {', '.join(names[:LISTED])}{more}"


class Registry:
    """Implementations of one kind by name: `module:Class`, a module, or the object itself."""

    def __init__(
        self,
        kind: str,
        group: str,
        entries: Mapping[str, str],
        *,
        settings: tuple[str, ...] = (),
        attributes: tuple[str, ...] = (),
    ):
        """`settings` are required dataclass fields, `attributes` other required attributes."""
        self.kind, self.group = kind, group
        self._entries: dict[str, Any] = dict(entries)
        self._settings, self._attributes = settings, attributes

    @cached_property
    def _installed(self) -> Mapping[str, EntryPoint]:
        """Entry points of other packages; our own names take precedence."""
        return {entry.name: entry for entry in entry_points(group=self.group)}

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entries, **self._installed})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._installed

    def add(self, name: str, implementation: Any) -> None:
        """Register `implementation` under this name.

        It is a class (for an environment: a callable that makes one; for a format: a module) or
        its "module:Class". ValueError if the name is taken or the class lacks a required part.
        """
        if self._entries.get(name, implementation) != implementation:
            raise ValueError(f"there is a {self.kind} {name!r} already: choose another name")
        if not isinstance(implementation, str):
            self._require_fit(name, implementation)
        self._entries[name] = implementation

    def load(self, name: str) -> Any:
        """Import and return the implementation of this name.

        ValueError for an unknown name (with similar names), or if a required part is missing.
        ImportError names the package that cannot be imported.
        """
        if name in self._entries:
            entry = self._entries[name]
            if not isinstance(entry, str):
                return entry
            place = EntryPoint(name, entry, self.group)
        elif name in self._installed:
            place = self._installed[name]
        else:
            raise ValueError(
                f"unknown {self.kind} {name!r}; {closest(name, self)} (from another package: "
                f"install it; your own: call saqrl.register first)"
            )
        try:
            found = place.load()
        except Exception as error:
            if place.value.startswith("saqrl."):
                raise
            package = f" of {place.dist.name} {place.dist.version}" if place.dist else ""
            raise ImportError(
                f"{self.kind} {name!r}{package} cannot be imported from {place.value} "
                f"({type(error).__name__}: {error}): repair or uninstall that package"
            ) from error
        self._require_fit(name, found)
        self._entries[name] = found
        return found

    def name_of(self, instance: object) -> str:
        """The name under which the instance's class is registered."""
        cls = type(instance)
        path = f"{cls.__module__}:{cls.__qualname__}"
        for name in self:
            entry = self._entries.get(name) or self._installed[name].value
            if entry is cls or entry == path:
                return name
        raise ValueError(
            f"{cls.__name__} is not a registered {self.kind}: call saqrl.register first"
        )

    def describe(self, instance: Any) -> dict[str, Any]:
        """The instance as JSON: its name and every field."""
        return {"name": self.name_of(instance), **asdict(instance)}

    def rebuild(self, description: Mapping[str, Any]) -> Any:
        """Rebuild an instance from its description.

        ValueError names a field that is unknown or has a value of the wrong type.
        """
        if not isinstance(description, Mapping) or not isinstance(description.get("name"), str):
            raise ValueError(f"{self.kind} is {shown(description)}; expected an object with a name")
        values = dict(description)
        cls = self.load(values.pop("name"))
        aliases: Mapping[str, str] = getattr(cls, "aliases", {})
        values = {aliases.get(name, name): value for name, value in values.items()}
        retired: Mapping[str, str] = getattr(cls, "retired", {})
        values = {name: value for name, value in values.items() if name not in retired}
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(
                f"{self.kind} {description['name']!r} has no field {unknown[0]!r}; "
                f"{closest(unknown[0], known)}"
            )
        require_types(values, cls, where=f"{self.kind} {description['name']!r}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def earlier(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """Values of retired fields in an older description, by the flags that replace them.

        A class lists these fields in `retired`; `rebuild` ignores them.
        """
        retired: Mapping[str, str] = getattr(self.load(description["name"]), "retired", {})
        return {flag: description[name] for name, flag in retired.items() if name in description}

    def _require_fit(self, name: str, found: Any) -> None:
        """ValueError that lists what is missing."""
        missing = [f"no {wanted}" for wanted in self._attributes if not hasattr(found, wanted)]
        if self._settings:
            if not (is_dataclass(found) and getattr(found, "__dataclass_params__").frozen):  # noqa: B009
                missing.append("no @dataclass(frozen=True)")
            else:
                known = {field.name: field for field in fields(found)}
                missing += [
                    f"no field {wanted}" for wanted in self._settings if wanted not in known
                ]
                missing += [
                    f"no default for {field.name}"
                    for field in known.values()
                    if field.default is MISSING and field.default_factory is MISSING
                ]
        elif not callable(found) and not self._attributes:
            missing.append("it is not callable")
        if missing:
            shown = getattr(found, "__qualname__", getattr(found, "__name__", repr(found)))
            raise ValueError(f"{shown} does not fit as {self.kind} {name!r}: {', '.join(missing)}")


AGENTS = Registry(
    "agent",
    "saqrl.agents",
    {
        "bc": "saqrl.agents.bc:BC",
        "cql": "saqrl.agents.cql:CQL",
        "iql": "saqrl.agents.iql:IQL",
        "brac": "saqrl.agents.brac:BRAC",
    },
    settings=("steps", "batch_size", "precision", "discount"),
    attributes=("init", "update", "actor", "default_act"),
)
QUANTIZERS = Registry(
    "quantizer",
    "saqrl.quantizers",
    {
        "vqvae": "saqrl.quantizers.vqvae:VQVAE",
        "vqvae-unconditioned": "saqrl.quantizers.vqvae:UnconditionedVQVAE",
        "residual": "saqrl.quantizers.residual:ResidualVQ",
        "fsq": "saqrl.quantizers.fsq:FSQ",
        "kmeans": "saqrl.quantizers.kmeans:KMeans",
        "bins": "saqrl.quantizers.bins:Bins",
        "candidates": "saqrl.quantizers.candidates:Candidates",
    },
    settings=("steps", "batch_size", "precision", "codes", "patience"),
    attributes=("init", "update", "codec"),
)
BASELINES = Registry(
    "continuous agent",
    "saqrl.baselines",
    {
        "bc": "saqrl.baselines.bc:ContinuousBC",
        "gaussian": "saqrl.baselines.bc:GaussianBC",
        "gmm": "saqrl.baselines.gmm:GMM",
        "cql": "saqrl.baselines.cql:CQL",
        "iql": "saqrl.baselines.iql:IQL",
        "brac": "saqrl.baselines.brac:BRAC",
        "rebrac": "saqrl.baselines.rebrac:ReBRAC",
        "fql": "saqrl.baselines.fql:FQL",
    },
    settings=("steps", "batch_size", "precision", "discount"),
    attributes=("init", "update", "actor", "default_act"),
)
# More specific formats come first: the first that recognises a file is used.
FORMATS = Registry(
    "format",
    "saqrl.formats",
    {
        "ogbench": "saqrl.datasets.formats.ogbench",
        "robomimic": "saqrl.datasets.formats.robomimic",
        "maniskill": "saqrl.datasets.formats.maniskill",
        "minari": "saqrl.datasets.formats.minari",
        "lerobot": "saqrl.datasets.formats.lerobot",
        "aloha": "saqrl.datasets.formats.aloha",
        "d4rl": "saqrl.datasets.formats.d4rl",
        "npz": "saqrl.datasets.formats.npz",
        "mapped": "saqrl.datasets.formats.mapped",
    },
    attributes=("SUMMARY", "SUFFIXES", "OPTIONS", "recognises", "read"),
)
# Ids that are registered with Gymnasium need no entry; only other environments do.
ENVIRONMENTS = Registry("environment", "saqrl.environments", {})

KINDS: Mapping[str, Registry] = {
    "agent": AGENTS,
    "quantizer": QUANTIZERS,
    "baseline": BASELINES,
    "format": FORMATS,
    "environment": ENVIRONMENTS,
}


def register(kind: str, name: str, implementation: Any) -> None:
    """Register your own implementation under a name, in this process.

    kind: agent, quantizer, baseline (dataclasses of hyperparameters, see the contracts in
    `saqrl.agents`, `saqrl.quantizers`, `saqrl.baselines`), format (a module or object with the
    names of `saqrl.datasets.Reader`), environment (a callable that returns a gymnasium.Env).
    Flags, checkpoints, export and reports then work for it too. If a package declares it as an
    entry point (group saqrl.agents and so on), it is available in every process.

    Raises ValueError for an unknown kind, a name that is taken, or a class that lacks a required
    part, which the message names.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; {closest(kind, KINDS)}")
    KINDS[kind].add(name, implementation)
