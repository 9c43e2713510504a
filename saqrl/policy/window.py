"""The observation history of one robot, as long as its policy needs."""

from collections import deque

import numpy as np
from jaxtyping import Float32


class Window:
    """The last `history` observations, oldest first; the first of an episode is repeated."""

    def __init__(self, history: int):
        self._history = history
        self._seen: deque[Float32[np.ndarray, " obs"]] = deque(maxlen=history)

    def see(self, observation: np.ndarray) -> None:
        """Add an observation; it is copied, because environments may reuse its memory."""
        seen = np.array(observation, np.float32)
        self._seen.extend([seen] * (1 if self._seen else self._history))

    @property
    def newest(self) -> Float32[np.ndarray, " obs"]:
        """The last observation."""
        return self._seen[-1]

    def flat(self) -> Float32[np.ndarray, " history*obs"]:
        """The window as one vector; at least one observation must have been added."""
        return self._seen[0] if self._history == 1 else np.concatenate(self._seen)

    def clear(self) -> None:
        """Start a new episode."""
        self._seen.clear()
