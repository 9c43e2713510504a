"""What one robot has seen of its episode, as far back as its policy looks."""

from collections import deque

import numpy as np


class Window:
    """The last `history` observations, oldest first; the first of an episode is repeated."""

    def __init__(self, history: int):
        self._history = history
        self._seen: deque[np.ndarray] = deque(maxlen=history)

    def see(self, observation: np.ndarray) -> None:
        """Add what is seen now."""
        self._seen.extend([observation] * (1 if self._seen else self._history))

    def flat(self) -> np.ndarray:
        """All of it as one vector, (history * obs,); something must have been seen."""
        return self._seen[0] if self._history == 1 else np.concatenate(self._seen)

    def clear(self) -> None:
        """Begin an episode."""
        self._seen.clear()
