"""`saqrl ls`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import Word, parse
from saqrl.records import printable


@dataclass
class Ls:
    """The runs below a folder, the newest last: data, method, score, how far they are."""

    folder: Word = "runs"
    """folder with runs"""
    json: bool = False
    """last line of stdout: the runs as JSON"""

    examples = ("saqrl ls", "saqrl ls runs/sweep")


def main(arguments: Sequence[str]) -> int:
    asked = parse(Ls, arguments)
    from saqrl.studies.listing import COLUMNS, listed_runs
    from saqrl.studies.page import to_columns

    folder = Path(asked.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; saqrl train writes runs into runs/")
    runs = listed_runs(folder)
    if runs and not asked.json:
        table = to_columns(COLUMNS, [run.cells(folder) for run in runs])
        print("\n".join(printable(line.rstrip()) for line in table.splitlines()))
    sound = [run for run in runs if run.state != "damaged"]
    finished = sum(run.state == "finished" for run in sound)
    say(f"{len(sound)} runs in {folder}, {finished} finished")
    if asked.json:
        print_json({"runs": [asdict(run) for run in runs]})
    return 0
