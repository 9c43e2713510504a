"""The dataset of a run, read again as its training read it."""

from pathlib import Path

from saqrl.datasets import ReadOptions, Transitions, load_dataset
from saqrl.experiment.settings import Settings
from saqrl.experiment.train import DEMONSTRATIONS


def training_spec(run: Path, settings: Settings) -> str:
    """SPEC of the data; what the run collected lies in its folder."""
    return settings.dataset or f"npz:{run / DEMONSTRATIONS}"


def load_training_data(
    run: Path,
    settings: Settings,
    *,
    dataset: str | None = None,
    options: ReadOptions | None = None,
) -> Transitions:
    """The run's data; `dataset` and `options` where they lie elsewhere or are cut otherwise now."""
    return load_dataset(
        dataset or training_spec(run, settings),
        angles=settings.angles,
        episodes=settings.data_episodes,
        environment=settings.env,
        options=options or settings.reading,
    )
