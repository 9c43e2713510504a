"""Raw arrays of any reader -> checked `Transitions`. Every rule about the data is stated here.

An episode ends at a row where `terminals` or `timeouts` is set, and at the end of the file. Where
`terminals` is set the task itself ended, whatever `timeouts` says. Without `next_observations` the
next row of the episode is the successor; the last row of an episode that did not terminate then has
none and is dropped, as D4RL does (Fu et al. 2020, arXiv 2004.07219), and the last row of one that
terminated keeps its own observation, a placeholder that no target reads.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int64

from saqrl.datasets.errors import DatasetError, counted, listing, printable
from saqrl.datasets.extras import bounds_of, with_extras
from saqrl.datasets.scaling import ActionRange
from saqrl.datasets.statistics import BLOCK_ROWS, column_statistics
from saqrl.datasets.transitions import EnvironmentSpec, Transitions

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
BOUNDS = ("action_low", "action_high")

# As wide as the smallest customary image (28 x 28): bytes that wide are pixels, not a state.
PIXEL_COLUMNS = 784
# Of the half width: a few float32 steps. Clipping that much changes nothing but the comparison.
RANGE_ROUNDING = 1e-6
# Squares of larger numbers leave float32; of smaller rewards, the factor that scales them does.
LARGEST, SMALLEST_REWARD = 1e18, 1e-30
# A column has lost its meaning where rounding is this share of its standard deviation, it is this
# far from zero, and moves by more than this share of it (less is the noise of its own arithmetic).
ROUNDED, OFFSET, STILL = 0.01, 100.0, 1e-10
# Rows in which that is looked for.
SAMPLED_ROWS = 20_000


def assemble(
    arrays: Mapping[str, np.ndarray],
    *,
    source: str,
    environment: EnvironmentSpec | None = None,
    provenance: Mapping[str, object] | None = None,
    notes: Iterable[str] = (),
    warnings: Iterable[str] = (),
    keys: Mapping[str, str] | None = None,
    observation_keys: tuple[tuple[str, int], ...] = (),
    control_rate: float | None = None,
    extras: Mapping[str, object] | None = None,
) -> Transitions:
    """Check one log, row by row, and build its transitions.

    `arrays` holds some of FIELDS, one row per step, and optionally BOUNDS of the actions, one
    number per dimension. Required are observations, actions and at least one of terminals and
    timeouts, which mark where episodes end. `source` begins every message; `keys` gives the file's
    own name of a field where it differs. `extras` is what our own conversions add to a file: bounds
    (where `arrays` has none), environment, names of observations. What was changed on the way
    (casts, dropped steps) is said in provenance["notes"], one sentence each, and what looks wrong
    in provenance["warnings"]. Raises DatasetError with source, field, row and remedy.
    """
    intake = _Intake(source, dict(keys or {}), list(notes), list(warnings))
    given = {name: np.asarray(arrays[name]) for name in FIELDS if name in arrays}
    for name, array in given.items():
        intake.require_numbers(name, array)
    intake.require_same_length({name: len(array) for name, array in given.items()})

    states = intake.vectors("observations", given["observations"])
    moves = intake.vectors("actions", given["actions"])
    successors = None
    if "next_observations" in given:
        successors = intake.vectors("next_observations", given["next_observations"])
        intake.require_same_width(states, successors)
    gains = intake.rewards(given.get("rewards"), steps=len(states))
    terminated, ends = intake.boundaries(given.get("terminals"), given.get("timeouts"))
    bounds = {**bounds_of(source, extras or {}), **arrays}
    moves, action_range, origin = intake.within_range(
        moves, bounds.get("action_low"), bounds.get("action_high")
    )

    if successors is None:
        dropped = ends & ~terminated
        intake.note_dropped(dropped, ends, gains)
        rows = np.flatnonzero(~dropped)
        successors = states[np.where(ends, np.arange(len(ends)), np.arange(len(ends)) + 1)[rows]]
        states, moves, gains, terminated = states[rows], moves[rows], gains[rows], terminated[rows]
        # Where the last row of an episode was dropped, the row before it is the last.
        ends = (ends | np.append(dropped[1:], False))[rows]
    else:
        intake.note_mismatched_successors(states, successors, ends)
    intake.note_degenerate(states, moves, ends)
    transitions = Transitions(
        observations=states,
        actions=moves,
        rewards=gains,
        next_observations=successors,
        terminated=terminated,
        episode_starts=_starts(ends),
        action_range=action_range,
        environment=environment,
        has_rewards="rewards" in given,
        observation_keys=observation_keys,
        control_rate=control_rate,
        provenance={
            **(provenance or {}),
            "action_range": origin,
            "notes": [printable(note) for note in intake.notes],
            "warnings": [printable(warning) for warning in intake.warnings],
        },
    )
    return with_extras(source, transitions, extras or {})


def _starts(last: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " episodes"]:
    """The first row of each episode, of which the last is flagged."""
    return np.append(0, np.flatnonzero(last)[:-1] + 1)


def _single(last: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether a row is all of its episode."""
    alone: Bool[np.ndarray, " n"] = last & np.append(True, last[:-1])
    return alone


@dataclass
class _Intake:
    """The checks, with what their messages need: source, the file's key names, what they found."""

    source: str
    keys: dict[str, str]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def name(self, name: str) -> str:
        return self.keys.get(name, name)

    def refuse(self, text: str) -> DatasetError:
        return DatasetError(f"{self.source}: {text}")

    def require_numbers(self, name: str, array: np.ndarray) -> None:
        if array.dtype.kind == "O":
            raise self.refuse(
                f"{self.name(name)} holds Python objects, and pickled arrays are never "
                "opened; store a plain array of numbers (episodes of different length: join "
                "them with np.concatenate)"
            )
        if array.dtype.kind not in "fiub":
            raise self.refuse(
                f"{self.name(name)} holds {array.dtype.name}; store it as numbers (float32)"
            )
        if array.ndim == 0:
            raise self.refuse(f"{self.name(name)} is a single number; one row per step is needed")

    def require_same_length(self, lengths: Mapping[str, int]) -> None:
        """Every field has as many rows as `actions`, and that is at least one."""
        steps = lengths["actions"]
        for name, length in lengths.items():
            if length == steps:
                continue
            more = (
                "the last observation has no action: store observations[1:] as "
                "next_observations and observations[:-1] as observations; "
            )
            hint = more if name == "observations" and length == steps + 1 else ""
            raise self.refuse(
                f"{self.name(name)} has {length:,} rows and {self.name('actions')} has {steps:,}; "
                f"{hint}every field needs one row per step"
            )
        if steps == 0:
            raise self.refuse(
                f"{self.name('actions')} has no rows; the file holds no steps: record it again"
            )

    def require_same_width(self, states: np.ndarray, successors: np.ndarray) -> None:
        if states.shape[1] != successors.shape[1]:
            raise self.refuse(
                f"{self.name('next_observations')} has {successors.shape[1]} columns and "
                f"{self.name('observations')} has {states.shape[1]}; both must have the same "
                "columns"
            )

    def vectors(self, name: str, array: np.ndarray) -> Float32[np.ndarray, "n width"]:
        """(n, width) in float32; a 1-d array becomes one column."""
        if array.ndim == 1:
            self.notes.append(f"{self.name(name)} has one dimension: it is read as one column.")
            array = array[:, None]
        if array.ndim > 2:
            raise self.refuse(
                f"{self.name(name)} has shape {array.shape}: images and stacked frames are not "
                "supported; store one flat vector a step, shape (n, width)"
            )
        if array.dtype == np.uint8 and array.shape[1] >= PIXEL_COLUMNS:
            raise self.refuse(
                f"{self.name(name)} has {array.shape[1]} columns of bytes, which are pixels: "
                "images are not supported; store state vectors (n, width) or features of them"
            )
        if array.shape[1] == 0:
            raise self.refuse(
                f"{self.name(name)} has no columns; store at least one number per step"
            )
        return self._as_float32(name, array)

    def rewards(self, array: np.ndarray | None, *, steps: int) -> Float32[np.ndarray, " n"]:
        if array is None:
            self.notes.append(
                "The file has no rewards: only behaviour cloning (bc) can be trained on it."
            )
            return np.zeros(steps, np.float32)
        column = self._single_column("rewards", array)[:, None]
        gains = self._as_float32("rewards", column)[:, 0]
        largest = float(np.abs(column).max())
        if 0 < largest < SMALLEST_REWARD:
            raise self.refuse(
                f"{self.name('rewards')} are at most {largest:g} in size, too small for "
                "float32; multiply them by a constant"
            )
        return gains

    def boundaries(
        self, terminals: np.ndarray | None, timeouts: np.ndarray | None
    ) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """(terminated, last row of an episode) of every row; the file's last row is always one."""
        flags = [
            self._flags(name, array)
            for name, array in (("terminals", terminals), ("timeouts", timeouts))
            if array is not None
        ]
        if not flags:
            raise self.refuse(
                "neither terminals nor timeouts is in the file, so it is not known where "
                "episodes end; add at least one, true on the last step of each episode"
            )
        if timeouts is not None and len(flags[-1]) > 1 and flags[-1].all():
            self.warnings.append(
                f"{self.name('timeouts')} marks every row as the end of an episode, so each step "
                "is an episode of its own: mark only the last row of each episode. Ignore this if "
                "the rows are transitions in no order."
            )
        terminated = flags[0] if terminals is not None else np.zeros_like(flags[0])
        ends = np.logical_or.reduce(flags)
        if not ends.any():
            self.notes.append(
                f"No row is marked as the end of an episode: all {len(ends):,} rows are read as "
                "one episode."
            )
        elif not ends[-1]:
            self.notes.append(
                "The last row is not marked as the end of an episode: it is read as a time limit."
            )
        ends = ends.copy()
        ends[-1] = True
        return terminated, ends

    def within_range(
        self,
        actions: Float32[np.ndarray, "n act"],
        low: np.ndarray | None,
        high: np.ndarray | None,
    ) -> tuple[Float32[np.ndarray, "n act"], ActionRange, str]:
        """Actions, their range and where it is from: "declared", "unit" ([-1, 1]) or "data"."""
        statistics = column_statistics(actions)
        if (low is None) != (high is None):
            missing = "action_low" if low is None else "action_high"
            raise self.refuse(
                f"{self.name(missing)} is missing; store both action_low and action_high, or "
                "neither"
            )
        if low is not None and high is not None:
            bounds = [
                self._bound("action_low", low, actions),
                self._bound("action_high", high, actions),
            ]
            open_ended = np.logical_not((np.abs(bounds) <= LARGEST).all(0))
            if open_ended.any():
                self.notes.append(
                    f"The declared action range is infinite in {_columns(open_ended)}: the "
                    "minimum and maximum of the data are used there."
                )
            bottom = np.where(open_ended, statistics.minimum, bounds[0])
            top = np.where(open_ended, statistics.maximum, bounds[1])
            origin = "declared"
        elif max(-statistics.minimum.min(), statistics.maximum.max()) <= 1 + RANGE_ROUNDING:
            bottom, top = -np.ones(actions.shape[1]), np.ones(actions.shape[1])
            origin = "unit"
        else:
            bottom, top, origin = statistics.minimum, statistics.maximum, "data"
            self.notes.append(
                "The file declares no action range and actions exceed [-1, 1]: the minimum "
                "and maximum of each dimension are used. Store action_low and action_high "
                "to set another range."
            )
        action_range = ActionRange(bottom.astype(np.float32), top.astype(np.float32))
        return self._clip_rounding(actions, action_range), action_range, origin

    def _bound(self, name: str, bound: np.ndarray, actions: np.ndarray) -> np.ndarray:
        array = np.asarray(bound)
        if array.dtype.kind not in "fiu" or array.shape not in ((), (1,), actions.shape[1:]):
            raise self.refuse(
                f"{self.name(name)} has shape {array.shape} and type {array.dtype.name}; "
                f"{counted(actions.shape[1], 'number')} are needed, one per action dimension"
            )
        if np.isnan(array).any():
            raise self.refuse(
                f"{self.name(name)} is nan; store the lowest and highest action of each dimension"
            )
        with np.errstate(over="ignore"):
            return np.broadcast_to(array.astype(np.float32), actions.shape[1:])

    def _clip_rounding(
        self, actions: Float32[np.ndarray, "n act"], action_range: ActionRange
    ) -> Float32[np.ndarray, "n act"]:
        """Refuse what lies outside; clip what lies outside by float32's rounding only."""
        low, high = action_range.low, action_range.high
        if (low > high).any():
            column = int(np.flatnonzero(low > high)[0])
            raise self.refuse(
                f"{self.name('action_low')} {low[column]:g} is above {self.name('action_high')} "
                f"{high[column]:g} in column {column}; swap them"
            )
        outside = (actions < low) | (actions > high)
        if not outside.any():
            return actions
        slack = RANGE_ROUNDING * np.maximum(np.abs(low), np.abs(high))
        far = (actions < low - slack) | (actions > high + slack)
        if far.any():
            row, column = (int(i) for i in np.argwhere(far)[0])
            raise self.refuse(
                f"{self.name('actions')} row {row}, column {column} is "
                f"{actions[row, column]:g}, outside the declared range [{low[column]:g}, "
                f"{high[column]:g}] ({int(far.sum()):,} of {far.size:,} entries are "
                "outside); clip the actions, or correct action_low and action_high"
            )
        self.notes.append("Actions outside their range by rounding errors only were clipped.")
        clipped: Float32[np.ndarray, "n act"] = np.clip(actions, low, high)
        return clipped

    def note_dropped(
        self, dropped: Bool[np.ndarray, " n"], last: Bool[np.ndarray, " n"], rewards: np.ndarray
    ) -> None:
        """Say which last steps go for want of a successor; refuse if none stays."""
        if dropped.all():
            raise self.refuse(
                f"no step is left: {counted(len(dropped), 'episode')} of one step each, without "
                "a next observation; mark only the last row of each episode "
                f"({self.name('timeouts')}), or add next_observations"
            )
        if not dropped.any():
            return
        text = (
            f"{counted(int(dropped.sum()), 'last step')} of episodes that did not terminate "
            "dropped: the file has no next observation there."
        )
        whole, lost = np.abs(rewards).sum(dtype=np.float64), np.abs(rewards[dropped]).sum()
        if lost > 0.1 * whole:
            text += (
                f" They hold {lost / whole:.0%} of all reward: if the task ended there, set "
                "terminals in these rows; if not, add next_observations."
            )
        elif lost > 0:
            text += (
                f" Returns do not include their rewards ({rewards[dropped].mean():.3g} on average)."
            )
        self.notes.append(text)
        vanished = int((dropped & _single(last)).sum())
        if vanished:
            self.notes.append(f"{counted(vanished, 'episode')} of one step dropped with them.")

    def note_mismatched_successors(
        self, states: np.ndarray, successors: np.ndarray, last: Bool[np.ndarray, " n"]
    ) -> None:
        count = int(mismatched_successors(states, successors, last).sum())
        if count:
            self.notes.append(
                f"Inside episodes, {self.name('next_observations')} differ from the observation "
                f"that follows in {counted(count, 'row')}: an episode end may be missing."
            )

    def note_degenerate(
        self, states: np.ndarray, actions: np.ndarray, last: Bool[np.ndarray, " n"]
    ) -> None:
        single = int(_single(last).sum())
        if single:
            self.notes.append(f"{counted(single, 'episode')} of a single step.")
        for name, table in (("observations", states), ("actions", actions)):
            constant = column_statistics(table).constant
            if constant.any() and len(table) > 1:
                self.notes.append(f"{self.name(name)} are constant in {_columns(constant)}.")

    def _single_column(self, name: str, array: np.ndarray) -> np.ndarray:
        if array.ndim == 2 and array.shape[1] == 1:
            return array[:, 0]
        if array.ndim != 1:
            raise self.refuse(
                f"{self.name(name)} has shape {array.shape}; one number per step, shape (n,), is "
                "needed"
            )
        return array

    def _flags(self, name: str, array: np.ndarray) -> Bool[np.ndarray, " n"]:
        column = self._single_column(name, array)
        wrong = (column != 0) & (column != 1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise self.refuse(
                f"{self.name(name)} row {row} is {column[row]:g}; expected 1 (the episode "
                "ends in this row) or 0"
            )
        return column.astype(bool)

    def _as_float32(self, name: str, table: np.ndarray) -> Float32[np.ndarray, "n width"]:
        """Finite float32 numbers; a cast is noted, and refused where a value does not fit.

        What loses its meaning in the cast is warned of.
        """
        for start in range(0, len(table), BLOCK_ROWS):
            block = table[start : start + BLOCK_ROWS]
            if not np.isfinite(block).all():
                raise self._not_finite(name, table)
            if max(float(block.max()), -float(block.min())) > LARGEST:
                sizes = np.abs(block.astype(np.float64))
                row, column = (int(i) for i in np.argwhere(sizes > LARGEST)[0])
                raise self.refuse(
                    f"{self.name(name)} row {start + row}, column {column} is "
                    f"{block[row, column]:g}, too large: squares of values above 1e18 "
                    "overflow float32; check the unit, or remove the value"
                )
        if table.dtype.kind in "iub" or table.dtype.itemsize > 4:
            self.notes.append(f"{self.name(name)} is {table.dtype.name}: it is read as float32.")
        read = np.ascontiguousarray(table, np.float32)
        if table.dtype.itemsize > 4 or table.dtype.kind in "iu":
            self._warn_of_rounding(name, table, read)
        return read

    def _warn_of_rounding(
        self, name: str, table: np.ndarray, read: Float32[np.ndarray, "n width"]
    ) -> None:
        """Columns far from zero whose values float32 can no longer tell apart."""
        shown = slice(None, None, -(-len(table) // SAMPLED_ROWS))
        given, kept = table[shown].astype(np.float64), read[shown].astype(np.float64)
        centre, spread = np.abs(given.mean(0)), given.std(0)
        rounded = np.sqrt(((kept - given) ** 2).mean(0))
        still = STILL if table.dtype.kind == "f" else 0
        lost = (rounded > ROUNDED * spread) & (spread > still * centre) & (centre > OFFSET)
        if not lost.any():
            return
        before, after = (
            [len(np.unique(values[:, column])) for column in np.flatnonzero(lost)]
            for values in (given, kept)
        )
        self.warnings.append(
            f"{self.name(name)} lose precision in float32 in {_columns(lost)}: "
            f"{listing(f'{count:,}' for count in before)} distinct values become "
            f"{listing(f'{count:,}' for count in after)}; subtract an offset in float64 (x - "
            "x[0]) before saving."
        )

    def _not_finite(self, name: str, table: np.ndarray) -> DatasetError:
        bad = ~np.isfinite(table)
        row, column = (int(i) for i in np.argwhere(bad)[0])
        place = f"row {row}" if table.shape[1] == 1 else f"row {row}, column {column}"
        return self.refuse(
            f"{self.name(name)} {place} is {table[row, column]} ({int(bad.sum()):,} of "
            f"{bad.size:,} entries are nan or infinite); {_repair(self.name(name))}"
        )


def _repair(name: str) -> str:
    """The lines of Python that remove numbers which are not finite from an array and its file."""
    return (
        f"drop the episodes that hold them: `ends = terminals | timeouts; episode = "
        f"np.cumsum(ends) - ends; good = np.isfinite({name}).reshape(len({name}), -1).all(1); "
        f"keep = ~np.isin(episode, episode[~good])`, then save x[keep] of every array; or "
        f"interpolate each column x of {name}: `ok = np.isfinite(x); x[~ok] = "
        "np.interp(np.flatnonzero(~ok), np.flatnonzero(ok), x[ok])`"
    )


def mismatched_successors(
    observations: Float32[np.ndarray, "n obs"],
    next_observations: Float32[np.ndarray, "n obs"],
    last: Bool[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """Rows inside an episode whose next observation is not the observation of the following row."""
    differs = np.zeros(len(observations), bool)
    for start in range(0, len(observations) - 1, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(observations) - 1))
        following = observations[rows.start + 1 : rows.stop + 1]
        # Float32 rounding is no difference: writers compute the two sides at different precision.
        same = np.isclose(next_observations[rows], following, rtol=1e-5, atol=1e-6)
        differs[rows] = ~same.all(1)
    differs[last] = False
    return differs


def _columns(chosen: Bool[np.ndarray, " columns"]) -> str:
    numbers = np.flatnonzero(chosen)
    return f"column{'' if len(numbers) == 1 else 's'} {listing(numbers)}"
