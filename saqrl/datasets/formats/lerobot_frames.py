"""The frames of a LeRobot data set: the chosen columns of its parquet files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saqrl.datasets.budget import budget
from saqrl.datasets.errors import DatasetError, counted, listing
from saqrl.datasets.source import damage_named, existing_file

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet as parquet

INFO = "meta/info.json"
# Numbers that one byte of parquet may stand for: a robot with a thousand joints that stands still.
MOST_VALUES = 256
# Of a data set: more are not looked for by their number.
MOST_EPISODES = 1_000_000


class Frames:
    """The chosen columns of all parquet files, one row per frame."""

    def __init__(
        self, path: Path, folder: Path, info: dict[str, object], columns: list[str]
    ) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        self.path = path
        found = (folder / "data").glob("**/*.parquet")
        files = sorted(
            (file for file in found if not file.name.startswith("._")),  # of macOS, no data
            key=lambda file: [int(n) for n in re.findall(r"\d{1,18}", file.as_posix())],
        )
        if not files:
            raise DatasetError(f"{path}: no parquet file in data/; copy the whole folder again")
        total = info.get("total_episodes")
        if info["codebase_version"] != "v3.0" and isinstance(total, int) and len(files) != total:
            there = {int(n) for file in files for n in re.findall(r"\d{1,18}", file.stem)[-1:]}
            absent = [e for e in range(min(total, MOST_EPISODES)) if e not in there]
            raise DatasetError(
                f"{path}: {INFO} promises {total:,} episodes and data holds "
                f"{counted(len(files), 'file')}{_absent(absent)}; if you deleted episodes, "
                "correct total_episodes and total_frames there; if not, copy the data set "
                "again"
            )
        tables = []
        wanted = list(dict.fromkeys(columns))
        for file in files:
            name = str(file.relative_to(folder))
            with damage_named(path, name):
                opened = parquet.ParquetFile(existing_file(file))
                held = opened.schema_arrow.names
                if twice := {column for column in held if held.count(column) > 1}:
                    raise DatasetError(
                        f"{path}: {name} has the column {listing(sorted(twice))} twice; remove one"
                    )
                require_stored(path, name, file, opened, wanted)
                if missing := [column for column in wanted if column not in held]:
                    raise DatasetError(
                        f"{path}: {name} has no column {listing(missing)}, which {INFO} "
                        f"promises; it has {listing(held)}; copy the data set again"
                    )
                tables.append(opened.read(columns=wanted, use_threads=False))
        self.columns: dict[str, list[pyarrow.Array]] = {
            column: [chunk for table in tables for chunk in table.column(column).chunks]
            for column in wanted
        }
        self.rows = sum(table.num_rows for table in tables)
        if self.rows == 0:
            raise DatasetError(f"{path}: the parquet files hold no frames; copy the data set again")

    def numbers(self, column: str) -> np.ndarray:
        """One number per frame."""
        vectors = self.vectors(column)
        if vectors.shape[1] != 1:
            raise DatasetError(
                f"{self.path}: {column} has {vectors.shape[1]} numbers per frame; expected one"
            )
        return vectors[:, 0]

    def vectors(self, column: str) -> np.ndarray:
        """One vector per frame, all of one width."""
        chunks = [chunk for chunk in self.columns[column] if len(chunk)]
        tables = [self._vectors(column, chunk) for chunk in chunks]
        types = {str(chunk.type) for chunk in chunks}
        widths = {table.shape[1] for table in tables}
        if len(types) > 1 or len(widths) > 1:
            raise DatasetError(
                f"{self.path}: {column} has types {listing(sorted(types))} and widths "
                f"{listing(sorted(widths))} in different files; every file needs the same "
                "type and width"
            )
        return np.concatenate(tables)

    def _vectors(self, column: str, chunk: "pyarrow.Array") -> np.ndarray:
        import pyarrow.types as types

        values, lengths = chunk, np.ones(len(chunk), np.int64)
        if types.is_list(chunk.type) or types.is_large_list(chunk.type):
            lengths, values = np.diff(np.asarray(chunk.offsets)), chunk.flatten()
        elif types.is_fixed_size_list(chunk.type):
            lengths, values = np.full(len(chunk), chunk.type.list_size), chunk.flatten()
        numeric = types.is_integer(values.type) or types.is_floating(values.type)
        if not (numeric or types.is_boolean(values.type)):
            raise DatasetError(
                f"{self.path}: {column} holds {chunk.type}; expected numbers or flat lists "
                "of numbers: choose other features with --dataset.keys"
            )
        if chunk.null_count or values.null_count:
            raise DatasetError(
                f"{self.path}: {column} has empty entries; every frame needs a value: remove "
                "the episodes with empty entries"
            )
        if len(set(lengths.tolist())) > 1:
            raise DatasetError(
                f"{self.path}: {column} has {lengths.min()} to {lengths.max()} numbers per "
                "frame; every frame needs the same number"
            )
        array: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
        return array


def _absent(episodes: list[int]) -> str:
    """A clause that names the episodes that are missing."""
    return f" (episode {listing(episodes, limit=3)} is missing)" if episodes else ""


def require_stored(
    path: Path,
    name: str,
    file: Path,
    opened: "parquet.ParquetFile",
    columns: Sequence[str] | None = None,
) -> None:
    """Refuse a footer that promises more than the file can mean, before memory is set aside.

    Equal values in a row take no room in parquet, so that a few bytes may stand for any number of
    them. Real frames differ at least in their index.
    """
    size, described = file.stat().st_size, opened.metadata
    values = sum(
        described.row_group(group).column(column).num_values
        for group in range(described.num_row_groups)
        for column in range(described.num_columns)
    )
    if described.num_rows > size or values > MOST_VALUES * size:
        raise DatasetError(
            f"{path}: {name} promises {described.num_rows:,} rows of {values:,} numbers, which its "
            f"{size:,} bytes cannot hold; the file is damaged, copy it again"
        )
    budget().admit(file)
    for group in range(described.num_row_groups):
        for place in range(described.num_columns):
            column = described.row_group(group).column(place)
            if columns is None or column.path_in_schema.startswith(tuple(columns)):
                size = max(column.num_values * 8, column.total_uncompressed_size)
                budget().take(path, f"{name}, {column.path_in_schema}", size)
