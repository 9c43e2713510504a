"""D4RL's normalised score: 0 is a random policy, 100 the published expert."""

import re

# Minimum and maximum return of each task in D4RL's own reward, by environment id.
# Source: Fu et al. 2020 (arXiv 2004.07219), the reference scores published with the data sets.
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    r"Hopper-v\d+": (-20.272305, 3234.3),
    r"HalfCheetah-v\d+": (-280.178953, 12135.0),
    r"Walker2d-v\d+": (1.629008, 4592.3),
    r"Ant-v\d+": (-325.6, 3879.7),
    r"AdroitHandPen-v\d+": (96.262799, 3076.833102),
    r"AdroitHandHammer-v\d+": (-274.856578, 12794.134825),
    r"AdroitHandDoor-v\d+": (-56.512833, 2880.569309),
    r"AdroitHandRelocate-v\d+": (-6.425911, 4233.877798),
    r"FrankaKitchen-v\d+": (0.0, 4.0),
    # Sparse reward only; OGBench's antmaze-* counts steps from -1 and has no reference.
    r"AntMaze_(UMaze|Medium|Large)(_Diverse(_GR)?)?-v\d+": (0.0, 1.0),
}


def normalized_score(environment_id: str, episode_return: float) -> float | None:
    """100 (return - minimum) / (maximum - minimum); None if D4RL has no reference.

    The sparse and dense variants of a task have other rewards, so they have no reference.
    Source: Fu et al. 2020 (arXiv 2004.07219), section 5.
    """
    for pattern, (minimum, maximum) in REFERENCE_RETURNS.items():
        if re.fullmatch(pattern, environment_id):
            return 100 * (float(episode_return) - minimum) / (maximum - minimum)
    return None
