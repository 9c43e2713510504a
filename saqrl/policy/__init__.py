"""An actor becomes a policy: raw observation in, environment action out.

Other packages use `Policy`. It holds a controller (features to an action chunk in [-1, 1]), the
scaling on both sides and how much of a chunk is played before planning again. `policy.quantizer`
encodes and decodes in the robot's units.
"""

from saqrl.policy.coding import PolicyQuantizer
from saqrl.policy.policy import (
    Act,
    CodeController,
    ContinuousController,
    Controller,
    Player,
    Policy,
)

__all__ = [
    "Act",
    "CodeController",
    "ContinuousController",
    "Controller",
    "Player",
    "Policy",
    "PolicyQuantizer",
]
