"""What of a dataset is read, where the file or the person has a choice."""

from dataclasses import dataclass, fields
from typing import Literal

from saqrl.datasets.errors import DatasetError, listing

Rewards = Literal["file", "success-at-end", "none"]

# Honoured by the reader of a format, if it names them in OPTIONS; all others work on every format.
READER_OPTIONS = ("keys", "action", "mask")


@dataclass(frozen=True)
class ReadOptions:
    """Choices beside the SPEC; the defaults take a file as it is."""

    keys: tuple[str, ...] = ()
    """observation keys to read, concatenated in this order (robomimic, minari, lerobot, maniskill,
    aloha)"""
    action: str | None = None
    """feature that holds the actions; A,B concatenates several (lerobot)"""
    mask: str | None = None
    """named subset of the demonstrations (robomimic)"""
    rewards: Rewards = "file"
    """file: as stored; success-at-end: 1 on the last step of each episode, which terminates; none:
    ignore them"""
    fraction: float = 1.0
    """share of the episodes to use, the same ones every time"""
    min_return: float | None = None
    """only episodes whose rewards sum to at least this"""
    min_reward: float | None = None
    """only episodes with at least one reward this high, which means success in many tasks"""

    max_gib: float | None = None
    """most GiB that a file may decompress to; default: limited by its size and the free memory"""

    def __post_init__(self) -> None:
        if self.max_gib is not None and not self.max_gib > 0:
            raise DatasetError(f"dataset.max-gib is {self.max_gib}; it must be above 0")
        if not 0 < self.fraction <= 1:
            raise DatasetError(
                f"dataset.fraction is {self.fraction}; it must be above 0 and at most 1"
            )
        twice = {key for key in self.keys if self.keys.count(key) > 1}
        if twice:
            raise DatasetError(f"dataset.keys names {listing(sorted(twice))} twice")

    def require_honoured(self, spec: str, format_name: str, honoured: tuple[str, ...]) -> None:
        """Refuse what the reader of this format would not look at."""
        defaults = {field.name: field.default for field in fields(self)}
        for name in READER_OPTIONS:
            if getattr(self, name) != defaults[name] and name not in honoured:
                raise DatasetError(
                    f"{spec}: the format {format_name} does not use dataset.{name}; remove "
                    "that flag"
                )


DEFAULT = ReadOptions()
