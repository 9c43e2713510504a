"""State-conditioned action quantization: from logged robot data to an exact policy.

    import saqrl

    run = saqrl.fit("demonstrations.npz", agent="bc", chunk=8)
    action = run.policy.act(observation)

The names here import what they need when they are first used, so `import saqrl` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saqrl.datasets import Transitions as Transitions
    from saqrl.datasets import load_dataset as load_dataset
    from saqrl.policy import Policy as Policy
    from saqrl.policy.discrete_env import QuantizedActions as QuantizedActions
    from saqrl.policy.storage import load_policy as load_policy
    from saqrl.quantizers import ActionQuantizer as ActionQuantizer
    from saqrl.registry import register as register
    from saqrl.run import Run as Run
    from saqrl.run import fit as fit
    from saqrl.training.evaluation import Scores as Scores
    from saqrl.training.settings import Settings as Settings
    from saqrl.training.train import train as train

__version__ = "0.1.0"

_PUBLIC = {
    "fit": "saqrl.run",
    "Run": "saqrl.run",
    "load_policy": "saqrl.policy.storage",
    "Policy": "saqrl.policy",
    "load_dataset": "saqrl.datasets",
    "Transitions": "saqrl.datasets",
    "ActionQuantizer": "saqrl.quantizers",
    "QuantizedActions": "saqrl.policy.discrete_env",
    "register": "saqrl.registry",
    "train": "saqrl.training.train",
    "Settings": "saqrl.training.settings",
    "Scores": "saqrl.training.evaluation",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'saqrl' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
