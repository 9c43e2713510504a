"""The data of a run: read for its training, or read again later as its training read it."""

from pathlib import Path

from saqrl.datasets import ReadOptions, Transitions, arrange, load_dataset
from saqrl.policy import Policy
from saqrl.training.settings import Settings

# What a run without a data set collects first, in its folder.
DEMONSTRATIONS = "demonstrations.npz"
# The SPEC of data that a run was given as arrays.
IN_MEMORY = "arrays in memory"


def load_data(
    settings: Settings, *, dataset: str | None = None, options: ReadOptions | None = None
) -> Transitions:
    """What the settings say is read; `dataset` and `options` where that lies elsewhere now.

    Raises what `load_dataset` raises.
    """
    data = settings.data
    spec = dataset or data.dataset
    if spec in (None, IN_MEMORY):
        raise ValueError("this run was trained on arrays in memory: name its data with --dataset")
    return load_dataset(
        spec,
        angles=data.angles,
        episodes=data.episodes,
        environment=data.env,
        options=options or data.reading,
    )


def arranged(log: Transitions, settings: Settings) -> Transitions:
    """A log that somebody holds, as the settings would have read it."""
    data = settings.data
    return arrange(log, IN_MEMORY, angles=data.angles, episodes=data.episodes, environment=data.env)


def training_spec(run: Path, settings: Settings) -> str:
    """SPEC of a run's data; what the run collected lies in its folder."""
    return settings.data.dataset or f"npz:{run / DEMONSTRATIONS}"


def load_training_data(
    run: Path,
    settings: Settings,
    policy: Policy,
    *,
    dataset: str | None = None,
    options: ReadOptions | None = None,
) -> Transitions:
    """The run's data; `dataset` and `options` where they lie elsewhere or are cut otherwise now.

    ValueError where observations or actions have other sizes than the run's policy.
    """
    spec = dataset or training_spec(run, settings)
    data = load_data(settings, dataset=spec, options=options)
    ours = policy.observation_size, len(policy.action_range.low)
    theirs = data.observations.shape[1], data.actions.shape[1]
    if ours != theirs:
        raise ValueError(
            f"the run's data has observations and actions of {ours[0]} and {ours[1]} numbers, "
            f"{spec} of {theirs[0]} and {theirs[1]}: name the data that the run was trained on"
        )
    return data
