"""What quantizers are compared on: a data set, split by episode and prepared as a run does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from saqrl.datasets import Transitions
from saqrl.datasets.audit.findings import codes_for
from saqrl.datasets.errors import listing
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.split import split_episodes
from saqrl.studies.codebooks.noise import NoiseEstimate, estimate_noise
from saqrl.training.codebook_health import total_variance
from saqrl.training.flags import changed
from saqrl.training.preparation import Prepared, fit_scaling, prepare
from saqrl.training.presets import build_settings
from saqrl.training.settings import Settings

# Share of the episodes that errors are measured on, where the file has no split of its own.
HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Material:
    """A dataset split by episode and prepared, with what is known about its noise."""

    settings: Settings
    data: Transitions
    scaling: ObservationScaling
    training: Prepared
    shown: Prepared
    """Held-out episodes, or the training ones where there is only one."""
    shown_transitions: Transitions
    held_out: bool
    noise: NoiseEstimate | None
    distinct: int
    """Different actions (chunks of them) among those trained on."""
    supported: int
    """Codes that `saqrl train` takes of itself for the training episodes."""

    @property
    def most_codes(self) -> int:
        """As many as there are actions to stand for; two where there is one, as no fewer can be."""
        return max(self.distinct, 2)

    @property
    def half_width(self) -> Float32[np.ndarray, " chunk_act"]:
        """Environment units per network unit, for every number of an action chunk."""
        return np.tile(self.data.action_range.half_width, self.settings.features.chunk)

    def deviation(self, split: Prepared) -> float:
        """Root of the summed variance of a split's actions, in the environment's units."""
        return float(np.sqrt(total_variance(split.actions * self.half_width)))

    @property
    def noise_variance(self) -> Float64[np.ndarray, " chunk_act"] | None:
        """Of the noise, in the environment's units; None where it could not be estimated."""
        if self.noise is None:
            return None
        return self.noise.variance * np.square(self.half_width.astype(np.float64))

    @property
    def noise_per_deviation(self) -> float | None:
        """The noise's standard deviation over the actions', all dimensions together."""
        variance = self.noise_variance
        if variance is None:
            return None
        return float(np.sqrt(variance.sum())) / self.deviation(self.training)

    @property
    def measured_on(self) -> str:
        if self.held_out:
            own = " of the file's own split" if self.data.held_out is not None else ""
            return f"{self.shown_transitions.num_episodes} held-out episodes{own}"
        return "the training episode itself (one episode cannot be split)"


def settings_of(preset: str = "default", **changes: Any) -> Settings:
    """The settings of a preset with the changes that are not None, and a fifth held out.

    Agents have no part in it: the networks' inputs, the chunks and the prior's training are what
    counts. ValueError where the preset is unknown or a change impossible.
    """
    settings = build_settings(preset, agent="bc", quantizer="vqvae")
    given = {name: value for name, value in changes.items() if value is not None}
    return changed(settings, {"held_out": HELD_OUT, "action_horizon": 1, **given})


def gather(data: Transitions, *, preset: str = "default", **changes: Any) -> Material:
    """Split, scale and chunk a dataset as a training run with these settings does.

    `changes` are fields of the settings. The file's own held-out episodes are measured on where it
    has some. Unlike a training run, two episodes are enough to hold one out: here the report is the
    point. ValueError where the preset is unknown, or the fraction or the chunk impossible.
    """
    settings = settings_of(preset, **changes)
    kept, left = data, data.held_out
    if left is None:
        kept, left = split_episodes(
            data, held_out_fraction=settings.data.held_out, seed=settings.seed
        )
    scaling = fit_scaling(kept, settings)
    training = prepare(kept, settings, scaling, 1.0)
    shown = left or kept
    episodes = np.repeat(np.arange(kept.num_episodes), kept.episode_lengths)
    return Material(
        settings=settings,
        data=data,
        scaling=scaling,
        training=training,
        shown=prepare(shown, settings, scaling, 1.0),
        shown_transitions=shown,
        held_out=left is not None,
        noise=estimate_noise(training.features, training.actions, episodes, seed=settings.seed),
        distinct=len(np.unique(training.actions, axis=0)),
        supported=codes_for(len(kept), settings.features.chunk),
    )


def fitting_sizes(material: Material, codes: Sequence[int]) -> tuple[list[int], str | None]:
    """(sizes in order, what to say of those that were too large).

    Where actions repeat, as many codes as there are different ones stand for all of them exactly:
    that many are tried in place of more.
    """
    sizes, most = sorted(set(codes)), material.most_codes
    larger = [size for size in sizes if size > most]
    if not larger or 2 * material.distinct > len(material.training.actions):
        return sizes, None
    tried = sorted({most, *(size for size in sizes if size <= most)})
    if material.distinct == 1:
        return tried, (
            "the actions never change: one code is enough, and 2, the fewest there may be, are "
            f"tried in place of {listing(larger)}"
        )
    return tried, (
        f"there are only {material.distinct} distinct actions, but {listing(larger)} codes were "
        f"requested: {most} codes are tried instead (--codes {most}; in a run "
        f"--quantizer.codes {most})"
    )
