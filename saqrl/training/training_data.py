"""The dataset of a run, read again as its training read it."""

from pathlib import Path

from saqrl.datasets import ReadOptions, Transitions, load_dataset
from saqrl.policy.policy import Policy
from saqrl.training.settings import Settings
from saqrl.training.train import DEMONSTRATIONS


def training_spec(run: Path, settings: Settings) -> str:
    """SPEC of the data; what the run collected lies in its folder."""
    return settings.dataset or f"npz:{run / DEMONSTRATIONS}"


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
    data = load_dataset(
        spec,
        angles=settings.angles,
        episodes=settings.data_episodes,
        environment=settings.env,
        options=options or settings.reading,
    )
    ours = policy.observation_size, len(policy.action_range.low)
    theirs = data.observations.shape[1], data.actions.shape[1]
    if ours != theirs:
        raise ValueError(
            f"the run's data has observations and actions of {ours[0]} and {ours[1]} numbers, "
            f"{spec} of {theirs[0]} and {theirs[1]}: name the data that the run was trained on"
        )
    return data
