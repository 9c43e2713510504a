"""The type that leaves the room: one log, checked, in the units of the robot."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from saqrl.datasets.errors import printable
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.statistics import BLOCK_ROWS

# Of a file's words, in characters.
LONGEST_NAME = 200
# Fields of Transitions with one row per step.
ROW_FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated")


@dataclass(frozen=True)
class EnvironmentSpec:
    """How to make the environment that the data came from: a Gymnasium id and its options."""

    id: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RecordedStart:
    """The simulator's state at the first step of an episode, where the file has it."""

    state: Float64[np.ndarray, " state"]
    """The simulator's state as a flat vector."""
    path: Path
    episode: str = ""
    """Name of the episode in the file; `path` may hold a scene model under this name."""


@dataclass(frozen=True, repr=False)
class Transitions:
    """Logged steps, episode after episode, in the order in which they happened.

    Observations and actions are in the units of the file (`action_range` maps actions to [-1, 1]).
    `terminated` is true where the task itself ended, so that no value follows; an episode that
    was truncated (time limit, end of the recording) has it false on its last row.
    Episode e covers the rows episode_starts[e] up to, not including, the next start (or n).
    """

    observations: Float32[np.ndarray, "n obs"]
    actions: Float32[np.ndarray, "n act"]
    rewards: Float32[np.ndarray, " n"]
    next_observations: Float32[np.ndarray, "n obs"]
    terminated: Bool[np.ndarray, " n"]
    episode_starts: Int64[np.ndarray, " episodes"]
    action_range: ActionRange
    angles: tuple[int, ...] = ()
    environment: EnvironmentSpec | None = None
    has_rewards: bool = True
    provenance: Mapping[str, object] = field(default_factory=dict)
    observation_keys: tuple[tuple[str, int], ...] = ()
    """Name and width of each part of an observation, in order, if the file names them."""
    groups: Int64[np.ndarray, " episodes"] | None = None
    """Episodes with the same number are copies; a split keeps them together."""
    held_out: "Transitions | None" = None
    """Held-out episodes, if the file defines a split."""
    starts: tuple[RecordedStart, ...] | None = None
    """Start of each episode, if the file stores simulator states."""
    control_rate: float | None = None
    """Steps per second (Hz), from the file or else from its environment; None if unknown."""
    action_names: tuple[str, ...] = ()
    """Name of each action dimension, if the file has names."""
    observation_names: tuple[str, ...] = ()
    """Name of each observation column, if the file has names."""
    cameras: tuple[str, ...] = ()
    """Cameras in the file; their images are not read."""
    tasks: tuple[str, ...] = ()
    """Task descriptions in the file."""
    successes: Bool[np.ndarray, " episodes"] | None = None
    """Whether each episode solved the task, if the file says so."""

    def __repr__(self) -> str:
        return (
            f"Transitions({len(self)} steps, {self.num_episodes} episodes, observations "
            f"{self.observations.shape[1:]}, actions {self.actions.shape[1:]})"
        )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_starts)

    @property
    def episode_ends(self) -> Int64[np.ndarray, " episodes"]:
        """One past the last row of each episode."""
        return np.append(self.episode_starts[1:], len(self))

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " episodes"]:
        return self.episode_ends - self.episode_starts

    @property
    def episode_rows(self) -> list[slice]:
        """The rows of each episode."""
        return [slice(*ends) for ends in zip(self.episode_starts, self.episode_ends, strict=True)]

    @property
    def last_rows(self) -> Bool[np.ndarray, " n"]:
        """Whether a row is the last of its episode."""
        last = np.zeros(len(self), bool)
        last[self.episode_ends - 1] = True
        return last

    @property
    def episode_returns(self) -> Float32[np.ndarray, " episodes"]:
        """Undiscounted sum of the rewards of each episode."""
        return np.add.reduceat(self.rewards, self.episode_starts)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Of each observation column: the file's own, else its key and place; () where unnamed."""
        if self.observation_names:
            return self.observation_names
        parts = self.observation_keys
        return tuple(
            f"{key}[{place}]" if width > 1 else key
            for key, width in parts
            for place in range(width)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed or assumed on the way from the file, one sentence each."""
        return _sentences(self.provenance.get("notes"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reader found suspicious, each with its remedy; `audit` looks for more."""
        return _sentences(self.provenance.get("warnings"))

    def noted(self, note: str, **record: object) -> "Transitions":
        """The same with one more sentence and more fields in its provenance."""
        notes = [*self.notes, printable(note)]
        return replace(self, provenance={**self.provenance, **record, "notes": notes})

    def with_held_out(self, held_out: "Transitions", note: str) -> "Transitions":
        """The same with the file's own held-out episodes; errors on both are in the same units."""
        held_out = replace(held_out, action_range=self.action_range)
        return replace(self.noted(note), held_out=held_out)

    def named(
        self,
        *,
        actions: Sequence[object] = (),
        observations: Sequence[object] = (),
        cameras: Iterable[object] = (),
        tasks: Iterable[object] = (),
        successes: Bool[np.ndarray, " episodes"] | None = None,
    ) -> "Transitions":
        """The same with what the file calls things; names that do not fit the log are left out."""
        fits = successes is not None and len(successes) == self.num_episodes
        return replace(
            self,
            action_names=_names(actions, self.actions.shape[1]) or self.action_names,
            observation_names=_names(observations, self.observations.shape[1])
            or self.observation_names,
            cameras=tuple(dict.fromkeys(map(_name, cameras))) or self.cameras,
            tasks=tuple(dict.fromkeys(filter(None, map(_name, tasks)))) or self.tasks,
            successes=successes if fits else self.successes,
        )

    def select_episodes(self, episodes: Int64[np.ndarray, " chosen"]) -> "Transitions":
        """The named episodes, in the order given."""
        starts, ends = self.episode_starts[episodes], self.episode_ends[episodes]
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
        begins = np.concatenate([[0], np.cumsum(ends - starts)[:-1]]).astype(np.int64)
        groups = None if self.groups is None else self.groups[episodes]
        recorded = None if self.starts is None else tuple(self.starts[e] for e in episodes)
        solved = None if self.successes is None else self.successes[episodes]
        chosen = self.select_rows(rows, begins)
        return replace(chosen, groups=groups, starts=recorded, successes=solved)

    def select_rows(
        self, rows: Int64[np.ndarray, " chosen"], episode_starts: Int64[np.ndarray, " episodes"]
    ) -> "Transitions":
        """The named rows, in the order given, with an episode beginning at each of the starts.

        Where a row is not followed by its own successor an episode has to begin.
        """
        chosen = {name: getattr(self, name)[rows] for name in ROW_FIELDS}
        return replace(
            self,
            **chosen,
            groups=None,
            starts=None,
            successes=None,
            episode_starts=episode_starts,
        )


def _names(given: Sequence[object], count: int) -> tuple[str, ...]:
    """So many different texts, or none."""
    names = tuple(_name(name) for name in given if isinstance(name, str) and name.strip())
    return names if len(given) == len(names) == count == len({*names}) else ()


def _name(given: object) -> str:
    """A file's word in one line that nothing steers a terminal with."""
    return printable(str(given))[:LONGEST_NAME]


def _sentences(recorded: object) -> tuple[str, ...]:
    return tuple(map(printable, recorded)) if isinstance(recorded, (list, tuple)) else ()


def other_successors(log: Transitions) -> Iterator[tuple[slice, Bool[np.ndarray, " block"]]]:
    """Block by block: whether a next observation differs in any bit from the row that follows."""
    for start in range(0, len(log), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(log)))
        following = np.minimum(np.arange(rows.start, rows.stop) + 1, len(log) - 1)
        own, after = log.next_observations[rows], log.observations[following]
        yield rows, (own.view(np.uint32) != after.view(np.uint32)).any(1)
