"""Between the robot's units and the networks': both directions.

Arrays may be NumPy's or another library's of the array API, such as JAX's when a policy is traced.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float32

from saqrl.datasets.statistics import column_statistics

Scale = Literal["columns", "common", "none"]

# Standard deviations beyond which a feature stops: farther out a network only extrapolates.
FEATURE_LIMIT = 10.0


@dataclass(frozen=True, eq=False)
class ActionRange:
    """The interval of each action dimension, in the environment's units."""

    low: Float32[np.ndarray, " act"]
    high: Float32[np.ndarray, " act"]

    def union(self, other: "ActionRange") -> "ActionRange":
        """The smallest range that holds both."""
        return ActionRange(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    @property
    def half_width(self) -> Float32[np.ndarray, " act"]:
        """Environment units per network unit; 1 where the range is a point, so both ways work."""
        half = (self.high - self.low) / 2
        return np.where(half > 0, half, 1).astype(np.float32)

    def to_unit(self, actions: Float32[np.ndarray, "*n act"]) -> Float32[np.ndarray, "*n act"]:
        """Environment units -> [-1, 1]."""
        return ((actions - (self.low + self.high) / 2) / self.half_width).astype(np.float32)

    def from_unit(self, actions: Float32[np.ndarray, "*n act"]) -> Float32[np.ndarray, "*n act"]:
        """[-1, 1] -> environment units; what lies outside is clipped to the range first."""
        xp = actions.__array_namespace__()
        scaled = xp.clip(actions, -1, 1) * self.half_width + (self.low + self.high) / 2
        return xp.clip(scaled, self.low, self.high).astype(np.float32)


@dataclass(frozen=True, eq=False)
class ObservationScaling:
    """Raw observation -> network features: angles as cosine and sine, then (x - mean) / scale.

    Features are the columns that are no angles in their order, then all cosines, then all sines.
    A column that never changes in the data has an inverse scale of 0: it says nothing, and what it
    would say outside the data was never seen. Features stop at +-`limit`. With a history a vector
    of so many observations, oldest first (`datasets.windows`), becomes their features, one after
    the other.
    """

    angles: tuple[int, ...]
    mean: Float32[np.ndarray, " features"]
    inverse_scale: Float32[np.ndarray, " features"]
    limit: float = math.inf
    history: int = 1

    @classmethod
    def fit(
        cls,
        observations: Float32[np.ndarray, "n obs"],
        *,
        angles: tuple[int, ...] = (),
        scale: Scale = "columns",
        deviation: float = 1.0,
        history: int = 1,
    ) -> "ObservationScaling":
        """Scale that gives `observations` features of mean 0 and the given standard deviation.

        columns: each column has it, whatever its unit. common: one factor for all columns, so that
        their relative sizes stay, and their root mean square deviation is the given one: for
        columns that share a unit, such as joint angles and metres. none: only angles are unrolled.
        """
        if scale == "none":
            width = observations.shape[1] + len(angles)
            mean, ones = np.zeros(width, np.float32), np.ones(width, np.float32)
            return cls(angles, mean, ones, history=history)
        statistics = column_statistics(observations, columns=partial(expand_angles, angles=angles))
        mean, spread, constant = statistics.mean, statistics.deviation, statistics.constant
        if scale == "common" and not constant.all():
            spread = np.full_like(spread, np.sqrt(np.square(spread[~constant]).mean()))
        inverse = np.where(constant, 0, deviation / np.where(constant, 1, spread))
        limit = FEATURE_LIMIT * deviation
        return cls(angles, mean.astype(np.float32), inverse.astype(np.float32), limit, history)

    def __call__(
        self, observations: Float32[np.ndarray, "*n obs"]
    ) -> Float32[np.ndarray, "*n features"]:
        lead = observations.shape[:-1]
        if self.history > 1:
            observations = observations.reshape(*lead, self.history, -1)
        features = (expand_angles(observations, self.angles) - self.mean) * self.inverse_scale
        xp = features.__array_namespace__()
        clipped = xp.clip(features, -self.limit, self.limit).astype(np.float32)
        return clipped.reshape(*lead, -1) if self.history > 1 else clipped


def expand_angles(
    observations: Float32[np.ndarray, "*n obs"], angles: tuple[int, ...]
) -> Float32[np.ndarray, "*n features"]:
    """Replace angle columns (radians) by their cosines and sines, appended at the end."""
    if not angles:
        return observations
    xp = observations.__array_namespace__()
    rest = [column for column in range(observations.shape[-1]) if column not in angles]
    turned = observations[..., np.asarray(angles)]
    kept = observations[..., np.asarray(rest, int)]
    return xp.concatenate([kept, xp.cos(turned), xp.sin(turned)], axis=-1)
