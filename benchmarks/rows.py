"""Rows of a benchmark: a line of JSON for each cell as it ends; what is there is not run again."""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from saqrl.studies.grid import Cell
from saqrl.studies.table import TABLE, append_row, read_table, row_of
from saqrl.training.train import saved_settings
from saqrl.training.versions import versions

MACHINE = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"

Flags = Mapping[str, Any]
Row = dict[str, Any]


def rows_of(table: Path) -> list[Row]:
    """All lines of a table in their order, without a torn last one; none where it is not there."""
    whole, _, _ = table.read_text().rpartition("\n") if table.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


def known_rows(table: Path, out: Path) -> None:
    """Go on from the rows that are committed where the runs themselves are not on this machine."""
    if table.exists() and not (out / TABLE).exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(table, out / TABLE)


def describe(cells: list[Cell], known: dict[str, Any], table: Path) -> dict[str, Any]:
    """What a reader needs to know of the machine and of each method's settings.

    Of `known`, the record so far, the settings of the rows that have finished stay: the cells may
    be a part of the grid only, and may have changed since.
    """
    finished = {f"{row['task']} {row['method']}" for row in read_table(table) if "error" not in row}
    kept = {name: s for name, s in known.get("settings", {}).items() if name in finished}
    return {
        "machine": MACHINE,
        "versions": versions(),
        "settings": {f"{c.task} {c.method.name}": c.settings.to_json() for c in cells} | kept,
    }


def scored(out: Path) -> Row:
    """What a finished run's row says in every table."""
    row = row_of(out)
    kept = ("measure", "final", "episodes", "act", "gradient_steps", "wall_seconds", "versions")
    agent = saved_settings(out).agent_name
    return {**{name: row[name] for name in kept}, "agent": agent, "machine": MACHINE}


def fill(table: Path, cells: Iterable[tuple[Row, Callable[[], Row]]], *, listing: bool) -> None:
    """Run each cell that the table does not have; where `listing`, only say which.

    A cell is what tells its row from the others (set, method, seed) and what measures the rest.
    """
    rows = rows_of(table)
    for key, measure in cells:
        if any(key.items() <= row.items() for row in rows):
            continue
        print(*key.values(), flush=True)
        if listing:
            continue
        begun = time.perf_counter()
        row = {**key, **measure()}
        row["seconds_of_cell"] = round(time.perf_counter() - begun)
        print(f"  {row['final']:.1f} {row['measure']} in {row['seconds_of_cell']} s", flush=True)
        append_row(table, row)


def scores_table(
    rows: list[Row], down: tuple[str, Iterable[str]], across: tuple[str, Iterable[str]]
) -> str:
    """Markdown: the final scores of all seeds, in their order.

    `down` and `across` are a field of the rows and the values of it that have a line or a column;
    a line without any score is left out.
    """
    (line, names), (column, heads) = down, (across[0], tuple(across[1]))
    written = ["| | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 1)]
    for name in names:
        own = sorted((row for row in rows if row[line] == name), key=lambda row: row["seed"])
        if own:
            scores = (", ".join(f"{r['final']:.0f}" for r in own if r[column] == h) for h in heads)
            written.append(f"| {name} | " + " | ".join(scores) + " |")
    return "\n".join(written)


def show_or_fill(
    asked: argparse.Namespace,
    table: Path,
    cells: Callable[[argparse.Namespace], Iterable[tuple[Row, Callable[[], Row]]]],
    shown: Callable[[list[Row]], str],
) -> None:
    """Print what is there where --table asks for it, else run what is missing."""
    if asked.table:
        print(shown(rows_of(table)))
    else:
        fill(table, cells(asked), listing=asked.list)


def asked_for(name: str, wanted: str, known: Iterable[str]) -> bool:
    """Whether an option means this name: the one called so, else all that have it in them."""
    return name == wanted if wanted in known else wanted in name


def arguments(doc: str, *, seeds: int, only: str = "data sets") -> argparse.ArgumentParser:
    """The options of every benchmark; `only` is what its --only chooses from, if it has several."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    if only:
        parser.add_argument("--only", default="", help=f"{only} whose name has this in it")
    parser.add_argument("--method", default="", help="this method, or those with this in the name")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="say what would be run, and stop")
    return parser


def with_table(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The option that `show_or_fill` reads."""
    parser.add_argument("--table", action="store_true", help="print what is there, and stop")
    return parser
