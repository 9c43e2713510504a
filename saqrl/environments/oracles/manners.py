"""How a demonstrator moves: an oracle's actions, varied as a person would vary them.

A style is one record of ranges. A value drawn from them holds for a whole episode or a whole leg
(from one use of the gripper to the next, or from one subtask to the next), so episodes differ by
choices, not by white noise. Observations do not contain the drawn values, so one state has several
right actions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Range = tuple[float, float]

# Above this height (m) the path of the hand is varied; below it the oracles approach an object.
FREE = 0.16
# Noise of a resting hand relative to a moving one: motor noise grows with the command.
# Source: Harris and Wolpert 1998 (Nature 394).
REST_NOISE = 0.2
# Maximum number of objects of one kind in a task: the buttons of puzzle-4x6.
THINGS = 24


@dataclass(frozen=True)
class Manners:
    """(lowest, highest) of values that are drawn uniformly. With the defaults nothing varies."""

    speed: Range = (1, 1)
    """Per episode: factor on the speed of the hand."""
    detour: Range = (0, 0)
    """Per episode and object: metres added to its distance when the next object is chosen."""
    bend: Range = (0, 0)
    """Per leg: initial angle in degrees between its direction and the straight way, to a side."""
    bend_steps: Range = (1, 1)
    """Per leg: steps of the free hand until it moves straight to the object."""
    turn: Range = (0, 0)
    """Per leg: initial speed of the wrist's turn during these steps, in [0, 1], to a side."""
    hover: Range = (0, 0)
    """Per leg: steps of rest before the hand moves down."""
    correction: Range = (0, 0)
    """Per leg: steps sideways after that rest, at half speed, which the oracle then corrects."""
    hesitation: Range = (0, 0)
    """Per leg: steps of rest before the gripper opens or closes."""
    offset: Range = (0, 0)
    """Per leg: metres from a way-point that the free hand passes; `transport` alone uses it."""


# Steps are 0.05 s. The reasons for these ranges: docs/how-to/collect.md.
MANNERS: Mapping[str, Manners] = {
    "expert": Manners(),
    "human": Manners(
        speed=(0.6, 1.0),
        detour=(0.0, 0.3),
        bend=(20, 70),
        bend_steps=(5, 15),
        turn=(0.0, 0.6),
        hover=(0, 8),
        correction=(0, 2),
        hesitation=(10, 30),
    ),
}


class Hand:
    """The hand of one episode: turns the oracle's actions into the executed ones."""

    def __init__(self, manners: Manners, generator: np.random.Generator) -> None:
        self.manners = manners
        self._generator = generator
        self.speed = self._draw(manners.speed)
        self.preference: Float64[np.ndarray, " things"] = generator.uniform(*manners.detour, THINGS)
        self._grip: float | None = None
        self.begin_leg()

    def begin_leg(self) -> None:
        """Draw the variations of the next leg."""
        manners, side = self.manners, self._generator.choice((-1, 1), 2)
        self._bend = side[0] * np.radians(self._draw(manners.bend))
        self._turn = side[1] * self._draw(manners.turn)
        self._bend_steps = self._count(manners.bend_steps)
        self._free_steps = 0
        self._hovered = self._hesitated = False
        self._rests: list[Float64[np.ndarray, 5]] = []

    def pending(self) -> Float64[np.ndarray, "5"] | None:
        """The next action of the current rest; None if the oracle's action is needed."""
        return self._rests.pop() if self._rests else None

    def do(self, wanted: Float64[np.ndarray, "5"], height: float) -> Float64[np.ndarray, "5"]:
        """The action, in [-1, 1]: (x, y, z, yaw, gripper), for a hand at `height` (m)."""
        grip = float(np.sign(wanted[4]))
        if self._grip is None:
            self._grip = grip
        if grip != self._grip:
            if not self._hesitated:
                self._hesitated = True
                self._rest(self._count(self.manners.hesitation))
            if self._rests:
                return self._rests.pop()
            self._grip = grip
            self.begin_leg()
        elif _reaches_down(wanted) and not self._hovered:
            self._hovered = True
            self._step_aside(self._count(self.manners.correction))
            self._rest(self._count(self.manners.hover))
            if self._rests:
                return self._rests.pop()
        return self._bent(wanted, height)

    def _bent(self, wanted: Float64[np.ndarray, "5"], height: float) -> Float64[np.ndarray, "5"]:
        """Turned from the straight way by an angle that decreases, while the hand is free."""
        left = max(0.0, 1 - self._free_steps / self._bend_steps)
        action = wanted.copy()
        action[:3] *= self.speed
        if height > FREE and left > 0:
            self._free_steps += 1
            cosine, sine = np.cos(left * self._bend), np.sin(left * self._bend)
            action[:2] = np.array([[cosine, -sine], [sine, cosine]]) @ action[:2]
            if self._turn:
                action[3] += left * (self._turn - action[3])
        return action

    def _rest(self, steps: int) -> None:
        self._rests += [np.array([0, 0, 0, 0, self._grip])] * steps

    def _step_aside(self, steps: int) -> None:
        angle = self._generator.uniform(-np.pi, np.pi)
        aside = 0.5 * self.speed * np.array([np.cos(angle), np.sin(angle)])
        self._rests += [np.array([*aside, 0, 0, self._grip])] * steps

    def _draw(self, bounds: Range) -> float:
        return float(self._generator.uniform(*bounds))

    def _count(self, bounds: Range) -> int:
        return round(self._draw(bounds))


def noise_scale(action: Float64[np.ndarray, "5"]) -> float:
    """Factor on the noise: REST_NOISE for a hand at rest, 1 for one that moves."""
    return 1.0 if action[:4].any() else REST_NOISE


def _reaches_down(wanted: Float64[np.ndarray, "5"]) -> bool:
    """Whether a motion goes down more than twice as far as sideways."""
    return bool(wanted[2] < -2 * np.abs(wanted[:2]).max())
