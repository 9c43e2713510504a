"""How much of the actions is noise, and what no codebook of a size can do better than."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# Pairs of more neighbours than this lie so far apart that the extrapolation starts to bend.
NEIGHBOURS = 10
# Rows whose neighbours are looked for, and rows among which they are: brute force, seconds.
QUERIES = 2_000
CANDIDATES = 20_000
# Where one episode is all there is: steps this close in time are no independent pair.
APART = 50


@dataclass(frozen=True)
class NoiseEstimate:
    """Variance of the action given the state, per dimension; how near the pairs were."""

    variance: Float[np.ndarray, " act"]
    distance: float
    """Median distance of nearest pairs over that of random pairs: the nearer to 0, the surer."""


def estimate_noise(
    features: Float[np.ndarray, "n features"],
    actions: Float[np.ndarray, "n act"],
    episodes: Int[np.ndarray, " n"],
    *,
    seed: int = 0,
) -> NoiseEstimate | None:
    """Gamma test: half the squared difference of actions in nearby states, at distance zero.

    For the p-th nearest neighbour in another episode, p = 1..10, gamma(p) is the mean of
    (a - a')^2 / 2 and delta(p) that of ||s - s'||^2; the intercept of the line through the pairs
    (delta, gamma) estimates Var(a|s), the noise that no function of the state explains. None where
    there are too few rows for a neighbour each.
    Source: Stefansson, Koncar and Jones 1997, "A note on the Gamma test", eqs. 4 to 6.
    """
    from scipy.spatial.distance import cdist

    draw = np.random.default_rng(seed)
    among = np.sort(draw.permutation(len(features))[:CANDIDATES])
    asked = draw.permutation(among)[:QUERIES]
    single = len(np.unique(episodes)) == 1
    distances, halves = [], []
    for block in np.array_split(asked, max(len(asked) // 250, 1)):
        squared = cdist(features[block], features[among], "sqeuclidean")
        if single:
            squared[np.abs(block[:, None] - among) < APART] = np.inf
        else:
            squared[episodes[block][:, None] == episodes[among]] = np.inf
        nearest = np.argsort(squared, axis=1)[:, :NEIGHBOURS]
        distances.append(np.take_along_axis(squared, nearest, axis=1))
        if nearest.shape[1] < NEIGHBOURS or np.isinf(distances[-1]).any():
            return None
        difference = actions[block][:, None].astype(np.float64) - actions[among[nearest]]
        halves.append(np.square(difference) / 2)
    delta_rows = np.concatenate(distances)
    delta, gamma = delta_rows.mean(0), np.concatenate(halves).mean(0)
    spread = delta - delta.mean()
    slope = spread @ gamma / max(float(spread @ spread), 1e-300)
    intercept = gamma.mean(0) - slope * delta.mean()
    typical = 2 * features.astype(np.float64).var(0).sum()
    return NoiseEstimate(
        np.clip(intercept, 0, actions.astype(np.float64).var(0)),
        float(np.sqrt(np.median(delta_rows[:, 0]) / max(typical, 1e-300))),
    )


def least_distortion(
    variances: Float[np.ndarray, " act"], num_codes: int
) -> Float[np.ndarray, " act"]:
    """The mean squared error per dimension that log K nats leave of independent Gaussian noise.

    Reverse water-filling: D_i = min(theta, variance_i) with sum of log(variance_i / D_i) / 2 equal
    to log K. No K codes of one action at a time do better, whatever the state tells them.
    Source: Cover and Thomas, Elements of Information Theory, theorem 10.3.3.
    """
    ordered = np.sort(variances[variances > 0])[::-1]
    rate = np.log(num_codes)
    for active in range(len(ordered), 0, -1):
        log_theta = np.log(ordered[:active]).mean() - 2 * rate / active
        if log_theta <= np.log(ordered[active - 1]):
            return np.minimum(np.exp(log_theta), variances)
    return np.minimum(0.0, variances)
