"""How a demonstrator moves: what an oracle wants, done in a person's way.

A style is one record of ranges. What is drawn from them holds for a whole episode or a whole leg
(from one use of the gripper to the next, or from one subtask to the next), so episodes differ by
choices, not by white noise. Nothing that is drawn shows in an observation: of one state there are
several right actions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Range = tuple[float, float]

# Above this height (m) the hand moves freely; the oracles themselves turn to a thing below it.
FREE = 0.16
# Share of the noise of a moving hand that one at rest has: motor noise grows with the command.
# Source: Harris and Wolpert 1998 (Nature 394).
REST_NOISE = 0.2
# Things of one kind in a task, at most: the buttons of puzzle-4x6.
THINGS = 24


@dataclass(frozen=True)
class Manners:
    """(lowest, highest) of what is drawn uniformly. The defaults are a robot's: nothing varies."""

    speed: Range = (1, 1)
    """Of an episode: factor on the speed of the hand."""
    detour: Range = (0, 0)
    """Of an episode and each thing: metres that it seems farther away when the next is chosen."""
    bend: Range = (0, 0)
    """Of a leg: degrees by which it sets out beside the straight way, to either side."""
    bend_steps: Range = (1, 1)
    """Of a leg: steps of the free hand until it heads straight for the thing."""
    turn: Range = (0, 0)
    """Of a leg: speed at which the wrist turns meanwhile, in [0, 1], to either side."""
    hover: Range = (0, 0)
    """Of a leg: steps of rest before the hand reaches down."""
    correction: Range = (0, 0)
    """Of a leg: steps aside after that rest, at half speed, which have to be made good."""
    hesitation: Range = (0, 0)
    """Of a leg: steps of rest before the gripper opens or closes."""


# Steps are 0.05 s. Why people look like this: docs/reference/formats.md.
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
    """One episode's hand: called with what the oracle wants, says what is done."""

    def __init__(self, manners: Manners, generator: np.random.Generator) -> None:
        self.manners = manners
        self._generator = generator
        self.speed = self._draw(manners.speed)
        self.preference: Float64[np.ndarray, " things"] = generator.uniform(*manners.detour, THINGS)
        self._grip: float | None = None
        self.begin_leg()

    def begin_leg(self) -> None:
        """Choose the way of the next leg."""
        manners, side = self.manners, self._generator.choice((-1, 1), 2)
        self._bend = side[0] * np.radians(self._draw(manners.bend))
        self._turn = side[1] * self._draw(manners.turn)
        self._bend_steps = self._count(manners.bend_steps)
        self._free_steps = 0
        self._hovered = self._hesitated = False
        self._rests: list[Float64[np.ndarray, 5]] = []

    def pending(self) -> Float64[np.ndarray, "5"] | None:
        """The action of a rest that is not over; None where the oracle is to be asked."""
        return self._rests.pop() if self._rests else None

    def do(self, wanted: Float64[np.ndarray, "5"], height: float) -> Float64[np.ndarray, "5"]:
        """The action, in [-1, 1]: (x, y, z, yaw, gripper), of a hand at `height` (m)."""
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
        """Beside the straight way by an angle that fades, while the hand is free."""
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
    """Share of the noise: REST_NOISE of a hand at rest, 1 of one that moves."""
    return 1.0 if action[:4].any() else REST_NOISE


def _reaches_down(wanted: Float64[np.ndarray, "5"]) -> bool:
    """Whether a way goes down more than twice as much as aside."""
    return bool(wanted[2] < -2 * np.abs(wanted[:2]).max())
