"""The distribution of a policy's actions in a state, and a score for it."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from saqrl.policy.policy import Act, CodeController, Policy

# Number of most probable codes used per state; number of samples from a policy without codes.
MOST_CODES, DRAWS = 128, 64
# States that are decoded in one call.
BLOCK_STATES = 64


@dataclass(frozen=True)
class Spread:
    """The chunks that may be played in each of n states, in the robot's units."""

    probabilities: Float32[np.ndarray, "n atoms"]
    """Sum to 1 in each state."""
    chunks: Float32[np.ndarray, "n atoms chunk act"]
    codes: Int[np.ndarray, "n atoms"] | None = None
    """The codes of the chunks, the most probable first; None without codes."""


def spread(
    policy: Policy, windows: Float32[np.ndarray, "n history*obs"], *, act: Act | None = None
) -> Spread:
    """The chunk that `act` (default: the policy's) plays, or with sample their distribution.

    With codes it is exact for the MOST_CODES most probable ones, and the rest is left out; without
    codes it is DRAWS samples.
    """
    act, states = act or policy.default_act, len(windows)
    key = jax.random.key(0)
    if act != "sample":
        chunks = policy.plan(windows, jax.random.split(key, states), act=act)[:, None]
        return Spread(np.ones((states, 1), np.float32), chunks)
    if not isinstance(policy.controller, CodeController):
        drawn = [
            policy.plan(windows, jax.random.split(jax.random.fold_in(key, draw), states), act=act)
            for draw in range(DRAWS)
        ]
        chunks = np.stack(drawn, axis=1)
        return Spread(np.full(chunks.shape[:2], 1 / DRAWS, np.float32), chunks)
    controller, temperature = policy.controller, policy.act_temperature
    most = min(MOST_CODES, controller.quantizer.num_codes)
    features = policy.observation_scaling(np.asarray(windows, np.float32))
    padded = np.resize(features, (-(-states // BLOCK_STATES) * BLOCK_STATES, features.shape[1]))
    blocks = [
        _most_probable(controller, block, temperature, most=most)
        for block in np.split(padded, len(padded) // BLOCK_STATES)
    ]
    probabilities, codes, unit = (
        np.concatenate(part)[:states] for part in zip(*blocks, strict=True)
    )
    chunks = policy.action_range.from_unit(unit.reshape(*codes.shape, policy.chunk, -1))
    return Spread(probabilities, chunks, codes)


@partial(jax.jit, static_argnames="most")
def _most_probable(
    controller: CodeController,
    features: Float[Array, "n features"],
    temperature: float,
    *,
    most: int,
) -> tuple[Float[Array, "n most"], Int[Array, "n most"], Float[Array, "n most chunk_act"]]:
    scored = partial(type(controller).scores, controller, temperature=temperature)
    scores = jax.vmap(scored)(features)
    kept, codes = jax.lax.top_k(scores, most)
    decode = jax.vmap(jax.vmap(controller.quantizer.decode, (None, 0)))
    return jax.nn.softmax(kept), codes, decode(features, codes)


def energy_score(
    probabilities: Float[np.ndarray, "n atoms"],
    points: Float[np.ndarray, "n atoms act"],
    happened: Float[np.ndarray, "n act"],
) -> Float[np.ndarray, " n"]:
    """E|y - X| - E|X - X'| / 2, exact for atoms; for a single atom its distance from y.

    Strictly proper: lowest in expectation if X has the distribution of y, the recorded action.
    Source: Gneiting and Raftery 2007 (JASA 102), eq. 22, with beta 1.
    """
    missed = np.linalg.norm(points - happened[:, None], axis=-1)
    found = (probabilities * missed).sum(-1)
    if points.shape[1] == 1:
        return found
    squares = np.square(points).sum(-1)
    products = points @ points.swapaxes(1, 2)
    apart = np.sqrt(np.maximum(squares[:, :, None] + squares[:, None] - 2 * products, 0))
    return found - np.einsum("na,nb,nab->n", probabilities, probabilities, apart) / 2
