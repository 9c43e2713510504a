"""A policy's quantizer in the robot's units."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Float32, Int

from saqrl.datasets.scaling import ActionRange, ObservationScaling
from saqrl.policy.checks import check_batch, check_codes, window_name
from saqrl.quantizers import ActionQuantizer

# Batched, in the networks' units.
_encode = jax.jit(jax.vmap(ActionQuantizer.encode, (None, 0, 0)))
_decode = jax.jit(jax.vmap(ActionQuantizer.decode, (None, 0, 0)))
_log_prior = jax.jit(jax.vmap(ActionQuantizer.log_prior, (None, 0)))


@dataclass(frozen=True, eq=False, repr=False)
class PolicyQuantizer:
    """Encodes and decodes actions, given the raw observation; NumPy in, NumPy out.

    Every method takes one example, or a batch of them along the first axis. An action is (act,),
    or (chunk, act) if the policy plans chunks; with a history an observation is the last
    observations concatenated, oldest first, (history * obs,). Raises ValueError for another size,
    not numbers, not finite numbers, or a code that does not exist.
    """

    quantizer: ActionQuantizer
    observation_scaling: ObservationScaling
    action_range: ActionRange
    observation_size: int
    chunk: int

    def __repr__(self) -> str:
        return (
            f"PolicyQuantizer({self.num_codes} codes, observations ({self.observation_size},), "
            f"actions {self.action_shape})"
        )

    @property
    def num_codes(self) -> int:
        return self.quantizer.num_codes

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one decoded code."""
        act = len(self.action_range.low)
        return (act,) if self.chunk == 1 else (self.chunk, act)

    def encode(
        self, observations: Float[np.ndarray, "*n obs"], actions: Float[np.ndarray, "*n act"]
    ) -> Int[np.ndarray, "*n"]:
        """The codes of `actions` in these states."""
        single, features = self._features(observations)
        rows = check_batch(_batch(actions, single), self.action_shape, what="action")
        if len(rows) != len(features):
            raise ValueError(f"there are {len(features)} observations but {len(rows)} actions")
        unit = self.action_range.to_unit(rows).reshape(len(rows), -1)
        codes = np.asarray(_encode(self.quantizer, features, unit))
        return codes[0] if single else codes

    def decode(
        self, observations: Float[np.ndarray, "*n obs"], codes: int | Int[np.ndarray, "*n"]
    ) -> Float32[np.ndarray, "*n act"]:
        """The actions of `codes` in these states, inside the range of the data."""
        single, features = self._features(observations)
        rows = check_codes(_batch(codes, single), self.num_codes, count=len(features))
        unit = np.asarray(_decode(self.quantizer, features, rows))
        actions = self.action_range.from_unit(unit.reshape(len(rows), *self.action_shape))
        return actions[0] if single else actions

    def log_prior(
        self, observations: Float[np.ndarray, "*n obs"]
    ) -> Float32[np.ndarray, "*n codes"]:
        """Log of the data's probability of each code in these states, normalised."""
        single, features = self._features(observations)
        log_prior = np.asarray(_log_prior(self.quantizer, features))
        return log_prior[0] if single else log_prior

    def _features(self, observations: np.ndarray) -> tuple[bool, Float32[np.ndarray, "n features"]]:
        """Whether it was one observation, and the features of the batch."""
        single = np.ndim(observations) == 1
        history = self.observation_scaling.history
        size, name = history * self.observation_size, window_name(history)
        rows = check_batch(_batch(observations, single), (size,), what=name)
        return single, self.observation_scaling(rows)


def _batch(values: object, single: bool) -> np.ndarray:
    return np.asarray(values)[None] if single else np.asarray(values)
