"""Control rates of known environments."""

import re
from collections.abc import Mapping

# Steps per second of simulated time: 1 / (timestep x frames skipped), from the packages.
RATES: Mapping[str, float] = {
    r"gym_pusht/PushT-v\d+": 10,
    r"AdroitHand(Door|Hammer|Relocate|Pen)(Sparse)?-v\d+": 100,
    r"(cube|scene|puzzle)(-[a-z0-9]+)*-v\d+": 20,
    r"(pointmaze|antmaze|antsoccer)(-[a-z0-9]+)*-v\d+": 10,
    r"humanoidmaze(-[a-z0-9]+)*-v\d+": 40,
    r"(Ant|HalfCheetah)-v\d+": 20,
    r"(Hopper|Walker2d)-v\d+": 125,
    r"Humanoid-v\d+": 200 / 3,
    r"Swimmer-v\d+": 25,
    r"FrankaKitchen-v\d+": 12.5,
    r"AntMaze_\w+-v\d+": 20,
    r"PointMaze_\w+-v\d+": 100,
    r"robosuite/\w+": 20,
}


def control_rate_of(environment_id: str, options: Mapping[str, object]) -> float | None:
    """Environment steps per second (Hz), from the options if they set it; None if unknown.

    Nothing is imported, so that the result does not depend on what is installed.
    """
    said = as_rate(options.get("control_freq"))
    if said is not None or "frame_skip" in options:
        return said
    name = environment_id.rpartition(":")[2]
    return next((rate for known, rate in RATES.items() if re.fullmatch(known, name)), None)


def as_rate(value: object) -> float | None:
    """The value as a plausible rate in Hz; None for anything else."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0.01 <= value <= 100_000 else None  # type: ignore[arg-type,operator]
