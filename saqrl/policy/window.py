"""What one robot has seen of its episode, as far back as its policy looks."""

from collections import deque

import numpy as np
from jaxtyping import Float32


class Window:
    """The last `history` observations, oldest first; the first of an episode is repeated."""

    def __init__(self, history: int):
        self._history = history
        self._seen: deque[Float32[np.ndarray, " obs"]] = deque(maxlen=history)

    def see(self, observation: np.ndarray) -> None:
        """Add what is seen now; it is copied, since environments may use its memory again."""
        seen = np.array(observation, np.float32)
        self._seen.extend([seen] * (1 if self._seen else self._history))

    @property
    def newest(self) -> Float32[np.ndarray, " obs"]:
        """What was seen last."""
        return self._seen[-1]

    def flat(self) -> Float32[np.ndarray, " history*obs"]:
        """All of it as one vector; something must have been seen."""
        return self._seen[0] if self._history == 1 else np.concatenate(self._seen)

    def clear(self) -> None:
        """Begin an episode."""
        self._seen.clear()
