"""What is compared: each agent with quantized actions, with continuous ones, or both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from saqrl.registry import AGENTS, BASELINES, Act, closest
from saqrl.training.settings import Actions

_REGISTRIES = {"quantized": AGENTS, "continuous": BASELINES}


@dataclass(frozen=True)
class Method:
    """One way to learn from a data set: `saq-NAME` on codes, `NAME` without."""

    actions: Actions
    agent: str
    act: Act | None = None
    """None: the agent's own way."""

    @property
    def name(self) -> str:
        prefix = "saq-" if self.actions == "quantized" else ""
        return f"{prefix}{self.agent}" + (f"-{self.act}" if self.act else "")


def methods(agents: Sequence[str], actions: Sequence[Actions]) -> list[Method]:
    """Every agent with each kind of actions that it exists for, without repetitions.

    An agent is `NAME`, or `saq-NAME` for its quantized kind alone; `:greedy`, `:sample` or `:mean`
    behind it makes it act so. ValueError where no agent of the kinds asked for is called so.
    """
    found: dict[Method, None] = {}
    for word in agents:
        full, _, wanted = word.partition(":")
        act = next((act for act in get_args(Act) if act == wanted), None)
        if wanted and act is None:
            raise ValueError(f"agent {word!r}: after the colon, expected greedy, sample or mean")
        name = full.removeprefix("saq-")
        asked = [kind for kind in actions if name == full or kind == "quantized"]
        kinds = [kind for kind in asked if name in _REGISTRIES[kind]]
        if not kinds:
            known = {known for kind in actions for known in _REGISTRIES[kind]}
            near = closest(name, known)
            raise ValueError(f"unknown {' or '.join(actions)} agent {full!r}; {near}")
        for kind in kinds:
            found[Method(kind, name, act)] = None
    return list(found)
