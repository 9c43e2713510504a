"""State-conditioned action quantization: from logged robot data to an exact policy.

The names here import what they need when they are first used, so `import saqrl` is instant.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_dataset": "saqrl.datasets",
    "Transitions": "saqrl.datasets",
    "ActionQuantizer": "saqrl.quantizers",
    "Policy": "saqrl.policy",
    "load_policy": "saqrl.policy.storage",
    "Settings": "saqrl.training.settings",
    "train": "saqrl.training.train",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'saqrl' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
